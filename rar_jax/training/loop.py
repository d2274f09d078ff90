"""The training loop of any run: steps, logs, evaluations and checkpoints."""

import collections
import contextlib
import logging
from typing import Any

import jax
import jax.numpy as jnp

from rar_jax.files import warn_of_write_errors
from rar_jax.parallel.distributed import is_first, wait_for_all
from rar_jax.performance.ceilings import product_rate
from rar_jax.progress import Progress
from rar_jax.run_folder import write_config
from rar_jax.training.base_program import State
from rar_jax.training.base_run import BaseRun
from rar_jax.training.evaluations import Evaluations
from rar_jax.training.metrics import MetricsLog, TrainingMetrics
from rar_jax.training.preemption import Preempted, Preemption
from rar_jax.training.speed import StepTimer, Trace

_log = logging.getLogger(__name__)

# Number of steps by which the host may be ahead of the devices.
_AHEAD = 2


class NonFiniteError(RuntimeError):
    """Training cannot continue: updates are not finite."""


class NotSavedError(OSError):
    """The last checkpoint of a run could not be saved."""


def train(run: BaseRun, preemption: Preemption | None = None) -> bool:
    """Trains to the last step, from the newest checkpoint or from the start. Closes the run.

    Args:
      run: a run that is set up, such as `run.prepare` returns.
      preemption: tells when to end early; by default nothing does.

    Returns:
      Whether training is complete. If not, the run was preempted, and its state is saved if it made a step.

    Raises:
      UserError: the checkpoints or the initial weights cannot be read. Raised before the step is compiled.
      NonFiniteError: too many updates in a row were not finite, or the state is not.
      NotSavedError: the last checkpoint could not be saved.
    """
    # Measured before the state fills the memory of the devices.
    rate = product_rate(jnp.dtype(run.config.train.dtype), brief=True)
    preempted = False
    try:
        loop = _Loop(run, preemption or Preemption(), rate, *run.begin())
        preempted = not loop.train()
    finally:
        saved = run.close(hurried=preempted)
    if not saved:
        raise NotSavedError(f"step {loop.step} could not be saved; {_last_good(run)}")
    if is_first():
        with warn_of_write_errors(run.folder):
            run.draw_curves()
    # JAX gives the last process that exits only a limited time.
    wait_for_all("the run's files are written")
    ended = "Saved, to be started again" if run.store.steps else "Ended before the first save, to be started again"
    _log.info("%s: %s", ended if preempted else "Done", run.folder)
    return not preempted


class _Loop:
    """The loop over the steps. Nothing else holds the state, because each step donates it.

    Attributes:
      step: number of updates done.
    """

    def __init__(self, run: BaseRun, preemption: Preemption, rate: float, state: State, position: dict[str, Any]):
        """Opens the logs.

        Args:
          run, preemption: see `train`.
          rate: measured FLOP/s of a device, for the utilisation.
          state, position: from `BaseRun.begin`.
        """
        config = run.config
        self._run, self._preemption, self._state = run, preemption, state
        # With another config, a run can be beyond its last batch.
        ended = int(state.step) >= config.last_step
        self._batches = run.batches(None if ended else position.get("loader"))
        self._step_fn = None
        self._note = ""
        self.step = self._saved = int(state.step)
        if is_first():
            write_config(run.folder, config)
        self._log = MetricsLog(run.folder, self.step)
        self._evaluations = Evaluations(run.folder, self.step, run.evaluators, self._log)
        wait_for_all("the logs are open")
        # One program for all schedules compiles faster than the many small ones that they would be.
        self._metrics = TrainingMetrics(
            self._log, jax.jit(run.program.schedules), run.steps_per_epoch, position.get("pending", ())
        )
        self._timer = StepTimer(config.train.batch_size, run.step_flops, rate)
        self._trace = Trace(run.folder, config.train.profile_step)
        self._skipped = _SkippedUpdates(run)
        _log.info(
            "%s: steps %d to %d (%d per epoch) on %d devices %s of %d processes",
            *(config.name, self.step, config.last_step, run.steps_per_epoch, run.mesh.size, dict(run.mesh.shape)),
            jax.process_count(),
        )
        self._progress = Progress("train", config.last_step, done=self.step)

    def train(self) -> bool:
        """Trains to the last step. Returns False if the run was preempted; its state is then being saved."""
        try:
            self._to_the_last_step()
            return True
        except Preempted:
            _log.warning("asked to end: at step %d of %d", self.step, self._run.config.last_step)
            if self.step > self._saved:
                self._save(hurried=True)
            return False
        finally:
            # Each is closed, also if closing another one fails.
            with contextlib.ExitStack() as closing:
                for each in (self._log, self._evaluations, self._progress, self._batches, self._trace):
                    closing.callback(each.close)

    def _to_the_last_step(self) -> None:
        config = self._run.config
        if self.step:
            # A preemption may have come between the last save and the evaluation.
            self._evaluate()
        while self.step < config.last_step:
            self._take_step()
            if self.step % config.checkpoint.every == 0 or self.step == config.last_step:
                # Saved before the evaluation, so that nothing is lost however that ends. Orbax writes meanwhile.
                self._save()
                self._timer.restart(self.step)
            self._evaluate()
            if self._preemption.asked():
                raise Preempted

    def _take_step(self) -> None:
        config = self._run.config
        batch = self._timer.next(self._batches)
        if self._step_fn is None:
            self._step_fn = self._run.program.compile_step(self._run.mesh, self._state, batch)
            self._preemption.check()
            self._timer.restart(self.step)
        self.step += 1
        self._trace.before(self.step)
        self._state, values = self._step_fn(self._state, batch)
        self._trace.after(self.step, values)
        self._metrics.add(values)
        self._skipped.check(self.step, values)
        if self.step % config.train.log_every == 0 or self.step == config.last_step:
            self._note = self._metrics.write(self.step, self._timer)
        self._progress.update(note=self._note)

    def _evaluate(self) -> None:
        """Runs the evaluators that are due."""
        if self._evaluations.due(self.step):
            self._evaluations.run(self.step, self._state.sampling_params, self._preemption)
            self._run.store.add_measured(self.step, self._evaluations.measured(self.step))
            self._timer.restart(self.step)

    def _save(self, hurried: bool = False) -> None:
        """Starts to save a checkpoint; see `CheckpointStore.save`.

        Raises:
          NonFiniteError: the state is not finite.
        """
        if not _all_finite(self._state):
            raise NonFiniteError(f"step {self.step}: the state is not finite and is not saved; {_last_good(self._run)}")
        self._log.flush()
        self._evaluations.flush()
        position = {"loader": self._batches.get_state(), "pending": self._metrics.fetch_pending()}
        self._run.store.save(self._state, position, hurried)
        self._saved = self.step


@jax.jit
def _all_finite(state: State) -> jax.Array:
    """Returns whether all values that a checkpoint holds are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))


def _last_good(run: BaseRun) -> str:
    steps = run.store.steps
    return f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"


class _SkippedUpdates:
    """Ends the run when too many updates in a row were skipped because they were not finite."""

    def __init__(self, run: BaseRun):
        self._run = run
        self._in_a_row = 0
        self._waiting: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()

    def check(self, step: int, values: dict[str, jax.Array]) -> None:
        """Checks the updates that are already computed, and waits for all but the last two.

        Waiting for this update would leave the devices idle. Not waiting at all would let the host run ahead by
        hundreds of steps, and a save would have to wait for all of them.

        Raises:
          NonFiniteError: too many updates in a row were skipped.
        """
        self._waiting.append((step, values))
        while len(self._waiting) > _AHEAD or (self._waiting and self._waiting[0][1]["skipped"].is_ready()):
            step, values = self._waiting.popleft()
            self._in_a_row = self._in_a_row + 1 if values["skipped"] else 0
            if self._in_a_row >= self._run.config.train.max_skipped:
                raise NonFiniteError(
                    f"step {step}: {self._in_a_row} updates in a row were not finite and were skipped "
                    f"(loss {float(values['loss'])}, gradient norm {float(values['grad_norm'])}, learning rate "
                    f"{float(self._run.program.learning_rate(step - 1)):.3g}); {_last_good(self._run)}"
                )
