import json
import time

import jax
import pytest

from rar_jax.training import loop
from rar_jax.training.metrics import SPEED_FILE
from rar_jax.training.run import prepare
from rar_jax.training.speed import StepTimer, Trace


def test_evaluations_do_not_count_in_the_speed(monkeypatch):
    """A fake clock gives an evaluation of 30 s, and then four steps of 2 s with a wait of 0.5 s in each."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def batches():
        while True:
            now[0] += 0.5
            yield "batch"

    timer = StepTimer(batch_size=16, step_flops=6e9, product_rate=1e10)
    now[0] += 30
    timer.restart(10)
    given = batches()
    for _ in range(4):
        assert timer.next(given) == "batch"
        now[0] += 1.5
    assert timer.lap(14) == {"steps_per_s": 0.5, "images_per_s": 8.0, "utilisation": 0.3, "data_wait": 0.25}
    assert timer.lap(14) == {}


def test_a_trace_covers_three_steps(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **options: calls.append(f"start in {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    trace = Trace("run", 3)
    for step in range(1, 9):
        trace.before(step)
        calls.append(step)
        trace.after(step, {})
    trace.close()
    assert calls == [1, 2, "start in run", 3, 4, 5, "stop", 6, 7, 8]


def test_a_run_logs_its_speed_and_traces_the_requested_steps(small_config, tmp_path):
    config = small_config(train={"stop_step": 10, "log_every": 5, "profile_step": 3})
    assert loop.train(prepare(config, tmp_path))
    entries = [json.loads(line) for line in (tmp_path / SPEED_FILE).read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [5, 10]
    for entry in entries:
        assert entry["images_per_s"] == pytest.approx(16 * entry["steps_per_s"])
        assert 0 < entry["utilisation"] < 1 and 0 <= entry["data_wait"] < 1
    (trace,) = (tmp_path / "plugins" / "profile").iterdir()
    assert {"perfetto_trace.json.gz"} <= {path.name for path in trace.iterdir()}
    assert list(trace.glob("*.xplane.pb"))
