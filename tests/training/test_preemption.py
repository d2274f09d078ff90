import signal

from rar_jax.training.preemption import Preemption


def test_a_second_interrupt_ends_the_process_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        assert not preemption.asked()
        signal.raise_signal(signal.SIGINT)
        assert preemption.asked() and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
