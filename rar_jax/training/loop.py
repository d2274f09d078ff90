"""The training loop: batches in, steps, saves, and when to look."""

import collections
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview

from rar_jax.data.loader import DeviceBatches, train_iterator
from rar_jax.images.plots import plot_curves, plot_scan_orders
from rar_jax.parallel.distributed import is_first, wait_for_all
from rar_jax.parallel.mesh import host_rows, put_batch
from rar_jax.performance.ceilings import product_rate
from rar_jax.performance.costs import train_flops
from rar_jax.progress import Progress
from rar_jax.run_folder import write_config
from rar_jax.training.metrics import MetricsLog, read_metrics
from rar_jax.training.observer import Observer
from rar_jax.training.preemption import NonFiniteError, Preempted, Preemption
from rar_jax.training.run import Run
from rar_jax.training.speed import StepTimer, Trace
from rar_jax.training.state import TrainState

_log = logging.getLogger(__name__)

# Steps that the host may be ahead of the devices.
_AHEAD = 2


def train(run: Run, preemption: Preemption | None = None) -> bool:
    """Trains to the last step, from the newest checkpoint or from the start.

    Args:
      run: from `prepare`.
      preemption: tells when to end early; by default nothing does.

    Returns:
      Whether the work is complete; if not, the run was preempted, and what was done is saved.

    Raises:
      NonFiniteError: too many updates in a row were not finite, or the state is not.
      OSError: the last checkpoint could not be saved.
    """
    config, folder, preemption = run.config, run.folder, preemption or Preemption()
    host_batches = train_iterator(
        run.datasets.train,
        config.train.batch_size,
        config.total_steps,
        config.seed,
        host_rows(run.mesh, config.train.batch_size),
    )
    # Metrics of steps that were not logged yet; saved too, so that the log does not show where a run was interrupted.
    pending: list[dict[str, Any]] = []
    # Before the state fills the devices.
    rate = product_rate(run.program.model.dtype, brief=True)
    if run.restored is None:
        state = run.start()
    else:
        state, position = run.restored
        host_batches.set_state(position["loader"])
        pending = position["pending"]
        run.restored = None  # The first step donates the state.
    batches = DeviceBatches(host_batches, functools.partial(put_batch, mesh=run.mesh))
    step = saved = int(state.step)
    if is_first():
        write_config(folder, config)
    metrics = MetricsLog(folder, step)
    wait_for_all("the log says what was done before")
    observer = Observer(run, metrics, preemption)
    if step == 0:
        _log.info("Parameters:\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
        if is_first():
            plot_scan_orders(folder / "figures" / "scan_orders.png", run.program.model.config.grid_side)
    _log.info(
        "%s: steps %d to %d (%d an epoch) on %d devices %s of %d processes",
        *(config.name, step, config.last_step, config.steps_per_epoch, run.mesh.size, dict(run.mesh.shape)),
        jax.process_count(),
    )
    progress = Progress("train", config.last_step, done=step)
    flops = config.train.batch_size / run.mesh.size * train_flops(run.program.model.config)
    timer, trace = StepTimer(config.train.batch_size, flops, rate), Trace(folder, config.train.profile_step)
    skipped, step_fn, note, complete, preempted = SkippedUpdates(run), None, "", False, False

    def save() -> None:
        nonlocal saved
        if not _all_finite(state):
            raise NonFiniteError(f"step {step}: the state is not finite and is not saved; {_last_good(run)}")
        metrics.flush()
        position = {"loader": batches.get_state(), "pending": _floats(pending)}
        run.store.save(state, position, observer.evaluations.get(step))
        saved = step

    try:
        if step and observer.due(step):
            # Unless it was done, a preemption came in between.
            observer.look(step, state.sampling_params)
        while step < config.last_step:
            batch = timer.next(batches)
            if step_fn is None:
                step_fn = _compile_step(run, state, batch)
                preemption.check()
                timer.restart(step)
            step += 1
            trace.before(step)
            state, values = step_fn(state, batch)
            trace.after(step, values)
            pending.append(values)
            skipped.check(step, values)
            if step % config.train.log_every == 0 or step == config.last_step:
                # The one place where the host waits for the step that it just began.
                values = _floats(pending)
                note = observer.log_training(step, values, timer.lap(step))
                pending = []
            progress.update(note=note)
            due = step % config.checkpoint.every == 0 or step == config.last_step
            if due and not config.checkpoint.best_metric:
                # First, as who asks to end may not wait until samples are scored; and it is written meanwhile.
                save()
            if observer.due(step):
                observer.look(step, state.sampling_params)
                timer.restart(step)
            if due and config.checkpoint.best_metric:
                save()
            if due:
                timer.restart(step)
            if preemption.asked():
                raise Preempted
        if config.eval.report_samples:
            observer.report(step, state.sampling_params)
        complete = True
    except Preempted:
        preempted = True
        _log.warning("asked to end: at step %d of %d", step, config.last_step)
        if step > saved:
            save()
    finally:
        trace.close()
        progress.close()
        last_saved = run.store.close(hurried=preempted)
        if run.lock is not None:
            run.lock.close()
        metrics.close()
    if not last_saved:
        raise OSError(f"step {step} could not be saved; {_last_good(run)}")
    if is_first():
        plot_curves(folder / "figures" / "curves.png", read_metrics(folder), config.anneal_steps)
    # At its exit JAX gives the last process only so long.
    wait_for_all("the run's files are written")
    _log.info("%s: %s", "Done" if complete else "Saved, to be started again", folder)
    return complete


def _compile_step(run: Run, state: TrainState, batch: dict[str, jax.Array]) -> Callable:
    """The compiled step; what is asked of the run meanwhile is heard when this returns."""
    return run.program.jit_step(run.mesh).lower(state, batch).compile()


def _floats(values: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in each.items()} for each in jax.device_get(values)]


@jax.jit
def _all_finite(state: TrainState) -> jax.Array:
    """Whether there is no infinity or NaN in anything that a checkpoint holds."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))


def _last_good(run: Run) -> str:
    steps = run.store.steps
    return f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"


class SkippedUpdates:
    """Ends the run when too many updates in a row were left out because they were not finite."""

    def __init__(self, run: Run):
        self._run = run
        self._in_a_row = 0
        self._waiting: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()

    def check(self, step: int, values: dict[str, jax.Array]) -> None:
        """Looks at the updates that are through by now, and waits for all but the last few.

        Waiting for this one would leave the devices idle. Not waiting at all would let the host run ahead by hundreds
        of steps, all of which a save must wait for.

        Raises:
          NonFiniteError: too many.
        """
        self._waiting.append((step, values))
        while len(self._waiting) > _AHEAD or (self._waiting and self._waiting[0][1]["skipped"].is_ready()):
            step, values = self._waiting.popleft()
            self._in_a_row = self._in_a_row + 1 if values["skipped"] else 0
            if self._in_a_row >= self._run.config.train.max_skipped:
                raise NonFiniteError(
                    f"step {step}: {self._in_a_row} updates in a row were not finite and were left out "
                    f"(loss {float(values['loss'])}, gradient norm {float(values['grad_norm'])}, learning rate "
                    f"{float(self._run.program.learning_rate(step - 1)):.3g}); {_last_good(self._run)}"
                )
