"""The training loop: batches in, steps, and what is looked at along the way."""

import collections
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from rar_jax.ceilings import product_rate
from rar_jax.checkpoints.load import Weights, load
from rar_jax.checkpoints.store import CheckpointStore
from rar_jax.config import SCORE, Config, check_same_run, mesh_shape, sample_options
from rar_jax.costs import train_flops
from rar_jax.data.datasets import Datasets, open_datasets
from rar_jax.data.loader import DeviceBatches, eval_batches, train_iterator
from rar_jax.data.tokenizers import Tokenizer, decoded, load_tokenizer
from rar_jax.evaluation.digits import digits_report
from rar_jax.evaluation.sample_scores import DigitsScorer, SampleScorer, open_scorer
from rar_jax.files import write_atomically
from rar_jax.images.files import image_grid, write_png
from rar_jax.images.plots import plot_curves, plot_scan_orders
from rar_jax.orders import randomness
from rar_jax.parallel.distributed import from_first, is_first, together, wait_for_all
from rar_jax.parallel.mesh import fetch, host_rows, make_mesh, put_batch
from rar_jax.parallel.partition import on_mesh
from rar_jax.progress import Progress
from rar_jax.run_folder import CONFIG_FILE, check_folder, is_locked_by, lock, read_config, write_config
from rar_jax.sampling.sampler import Sampler, sample_tokens, spread_classes
from rar_jax.training.finetune import begin_from, check_sizes
from rar_jax.training.metrics import MetricsLog, read_metrics
from rar_jax.training.preemption import NonFiniteError, Preempted, Preemption
from rar_jax.training.program import Program, make_program
from rar_jax.training.speed import StepTimer, Trace
from rar_jax.training.state import TrainState
from rar_jax.training.step import eval_step

_log = logging.getLogger(__name__)

_REPORT_BATCH = 128
# Steps that the host may be ahead of the devices.
_AHEAD = 2
# Of samples that are scored, which are many: a batch of no more than a grid would leave accelerators idle.
_SCORE_BATCH = 256
# Logged with a step that was looked at, whether or not there are held-out images.
_LOOKED = "eval/done"


@dataclasses.dataclass
class Run:
    """A run, set up and checked; nothing is compiled yet."""

    config: Config
    folder: epath.Path
    mesh: Mesh
    program: Program
    shardings: TrainState
    datasets: Datasets
    tokenizer: Tokenizer | None
    store: CheckpointStore
    # The newest checkpoint's state and position, or None in a new run.
    restored: tuple[TrainState, dict[str, Any]] | None
    # Keeps other processes of this machine out of the folder until it is closed.
    lock: TextIO | None

    # Scores samples along the way, where that is asked for.
    scorer: SampleScorer | None

    # What a new run begins with instead of random weights.
    init_from: Weights | None

    def start(self) -> TrainState:
        """The state of a new run, on the mesh."""
        state = jax.jit(self.program.init, out_shardings=self.shardings)()
        if self.init_from is None:
            return state
        initial = jax.tree.map(fetch, state.params)
        params, left = begin_from(self.program.model, initial, self.init_from.model, self.init_from.params)
        _log.info("begins with %s; initialised anew: %s", self.config.init_from, ", ".join(left) or "nothing")
        state = state.replace(params=jax.device_put(params, self.shardings.params))
        if state.ema is not None:
            state = state.replace(ema=jax.device_put(params, self.shardings.ema))
        self.init_from = None
        return state


def prepare(config: Config, folder: epath.PathLike, allow_config_change: Sequence[str] = ()) -> Run:
    """Sets a run up: devices, data, and the newest checkpoint that can be read, where there is one.

    Args:
      config: of the run.
      folder: of the run.
      allow_config_change: fields that may differ from the run so far although they change what is trained.

    Raises:
      ValueError: the config does not fit the devices, the data or the run so far, another process trains in the folder,
        or there are checkpoints and none can be read.
    """
    folder = epath.Path(folder)
    mesh = make_mesh(mesh_shape(config, jax.device_count()))
    with together():
        check_folder("workdir", folder)
        tokenizer = load_tokenizer(config)
        datasets = open_datasets(config, tokenizer)
    program = make_program(config)
    shapes, state_shardings = jax.eval_shape(program.init), program.shardings(mesh)
    init_from = None
    with together():
        if (folder / CONFIG_FILE).exists():
            for difference in check_same_run(config, read_config(folder), allow_config_change):
                _log.info("goes on with other settings: the run had %s", difference)
        scorer = _open_scorer(config)
        steps = CheckpointStore(folder).steps if config.init_from else []
    if config.init_from and not from_first(steps):
        with together():
            init_from = _load_init_from(config.init_from)
            check_sizes(program.model, init_from.model)
    with together():
        held = lock(folder) if is_first() else None
    holder = from_first(os.getpid())
    with together():
        if not is_locked_by(folder, holder):
            raise ValueError(
                f"--workdir={folder} is another folder here than in the first process: all processes need one that "
                "they share, on a network file system or gs://"
            )
    store = CheckpointStore(folder, config.checkpoint)
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, state_shardings
    )
    restored = store.restore_newest(like)
    return Run(
        config=config,
        folder=folder,
        mesh=mesh,
        program=program,
        shardings=state_shardings,
        datasets=datasets,
        tokenizer=tokenizer,
        store=store,
        restored=restored,
        lock=held,
        scorer=scorer,
        init_from=init_from,
    )


def _load_init_from(path: str) -> Weights:
    """In host memory: the devices may not have room for it whole."""
    try:
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        platforms = os.environ.get("JAX_PLATFORMS")
        raise ValueError(
            f"config.init_from={path} is read on the CPU, which JAX_PLATFORMS={platforms} leaves out: set it to "
            f"{platforms},cpu"
        ) from None
    try:
        return load(path, "rar", sharding=host)
    except ValueError as error:
        raise ValueError(f"config.init_from={path}: {error}") from None


def _open_scorer(config: Config) -> SampleScorer | None:
    options = config.eval
    if not options.score_every:
        return None
    if not options.inception:
        return DigitsScorer()
    try:
        scorer = open_scorer("inception", options.inception, options.reference, config.data.image_size)
        # Before the first step: what is wrong with an image of the reference would end the run at its first scores.
        if is_first():
            scorer.prepare()
        return scorer
    except ValueError as error:
        raise ValueError(f"config.eval.inception and config.eval.reference: {error}") from None


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
            plot_scan_orders(folder / "figures" / "scan_orders.png", run.program.model.grid_side)
    _log.info(
        "%s: steps %d to %d (%d an epoch) on %d devices %s of %d processes",
        *(config.name, step, config.last_step, config.steps_per_epoch, run.mesh.size, dict(run.mesh.shape)),
        jax.process_count(),
    )
    progress = Progress("train", config.last_step, done=step)
    flops = config.train.batch_size / run.mesh.size * train_flops(run.program.model)
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
                # The one place where the host waits for the devices.
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


class Observer:
    """What is looked at along the way: metrics, held-out losses, sample grids and scores, the report of the digits.

    Attributes:
      evaluations: step -> the losses and scores measured there.
    """

    def __init__(self, run: Run, metrics: MetricsLog, preemption: Preemption):
        self._run = run
        self._metrics = metrics
        self._preemption = preemption
        written = from_first(read_metrics(run.folder) if is_first() else None)
        self._looked = {entry["step"] for entry in written if _LOOKED in entry}
        self._scored = {entry["step"] for entry in written if any(name.startswith(SCORE) for name in entry)}
        self.evaluations = collections.defaultdict(dict)
        for entry in written:
            if entry["step"] in self._looked | self._scored:
                self.evaluations[entry["step"]] |= entry
        self._reported = {entry["step"] for entry in written if "report/svm_accuracy_samples" in entry}
        self._grid_classes = spread_classes(run.program.model.num_classes)
        # Also the batch of the report, so that the decode loop is compiled once.
        self._grid_images = len(self._grid_classes) * run.config.eval.samples_per_class
        program = run.program
        # One small program instead of some twenty.
        self._schedules = jax.jit(
            lambda step: {
                "learning_rate": program.learning_rate(step),
                "r": randomness(step, *run.config.anneal_steps),
            }
        )
        evaluate = functools.partial(eval_step, model=program.model, recipe=program.recipe)
        self._eval_step = jax.jit(on_mesh(evaluate, run.mesh))

    def due(self, step: int) -> bool:
        """Whether a step is to be looked at or its samples are to be scored, and that was not done."""
        return self._due(step, self._run.config.eval.every, self._looked) or self._score_due(step)

    def _score_due(self, step: int) -> bool:
        return self._run.scorer is not None and self._due(step, self._run.config.eval.score_every, self._scored)

    def _due(self, step: int, every: int, done: set[int]) -> bool:
        return (step % every == 0 or step == self._run.config.last_step) and step not in done

    def look(self, step: int, params: dict[str, Any]) -> None:
        """Does what is due at a step: evaluates and draws samples, and scores some.

        Raises:
          Preempted: the run is to end; nothing was written that a second look would write again.
        """
        if self._due(step, self._run.config.eval.every, self._looked):
            self._look(step, params)
        if self._score_due(step):
            scores = self.score(params)
            _log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
            scores = {SCORE + name: value for name, value in scores.items()}
            self._metrics.write(step, scores)
            self.evaluations[step] |= scores
            self._scored.add(step)

    def _look(self, step: int, params: dict[str, Any]) -> None:
        losses = self.evaluate(params)
        grid = self.sample_grid(params)
        if losses:
            self.evaluations[step] |= losses
            _log.info(
                "step %d: held-out loss %.4f in the target order, %.4f in random order",
                *(step, losses["heldout/target_loss"], losses["heldout/random_loss"]),
            )
        if grid is not None:
            write_png(self._run.folder / "samples" / f"step_{step:08d}.png", grid)
            self._metrics.write_image(step, "samples", grid)
        self._metrics.write(step, losses | {_LOOKED: 1.0})
        self._looked.add(step)

    def log_training(self, step: int, values: list[dict[str, float]], speed: dict[str, float]) -> str:
        """Writes the means over the steps since the last time, the schedules at this one's update, and the speed.

        Updates that were left out are counted and not in the means.

        Args:
          step: the last one.
          values: the metrics of each.
          speed: of `StepTimer.lap`.

        Returns:
          What to show of it.
        """
        run = self._run
        taken = [each for each in values if not each["skipped"]]
        names = [name for name in values[0] if name != "skipped"] if taken else []
        logged = {f"train/{name}": float(np.mean([each[name] for each in taken])) for name in names} | {
            "train/skipped": float(len(values) - len(taken)),
            "train/epoch": step / run.config.steps_per_epoch,
        }
        logged |= {f"train/{name}": float(value) for name, value in self._schedules(step - 1).items()}
        self._metrics.write(step, logged)
        note = f"loss {logged['train/loss']:.3f}" if taken else "no finite update"
        if speed:
            self._metrics.write_speed(step, speed)
            note += f", utilisation {speed['utilisation']:.0%}, waiting for data {speed['data_wait']:.0%}"
        return note + (f", {len(values) - len(taken)} updates left out" if len(taken) < len(values) else "")

    def evaluate(self, params: dict[str, Any]) -> dict[str, float]:
        """The losses of held-out images, and of as many training ones, in the target and in random order."""
        run, losses = self._run, {}
        heldout = run.datasets.heldout
        if heldout is None:
            return losses
        count = min(run.config.eval.num_images or heldout.num_images, heldout.num_images)
        # What fits in memory when training.
        batch_size = run.config.train.batch_size // run.config.train.accumulation
        for split, records in (("train", run.datasets.train), ("heldout", heldout)):
            sums = None
            for batch in eval_batches(records, batch_size, count, host_rows(run.mesh, batch_size)):
                self._preemption.check()
                new = self._eval_step(params, put_batch(batch, run.mesh))
                sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
            sums = jax.device_get(sums)
            images = sums.pop("count")
            losses |= {f"{split}/{name}": float(value / images) for name, value in sums.items()}
        return losses

    def _sample_tokens(
        self, params: dict[str, Any], labels: np.ndarray, batch_size: int, **options: float
    ) -> np.ndarray:
        config = self._run.config
        return sample_tokens(
            Sampler(self._run.program.model, params, self._run.mesh),
            labels,
            dataclasses.replace(sample_options(config), **options),
            seed=config.seed,
            batch_size=batch_size,
            on_batch=lambda _: self._preemption.check(),
        )

    def _sample(self, params: dict[str, Any], labels: np.ndarray) -> np.ndarray | None:
        """Images uint8 [N, H, W, 3] of labels [N], in the first process; the others help to sample, and get None."""
        tokens = self._sample_tokens(params, labels, self._grid_images or _REPORT_BATCH)
        return self._run.tokenizer.decode(tokens) if is_first() else None

    def score(self, params: dict[str, Any]) -> dict[str, float]:
        """Scores samples, as many of each class: with the run's guidance (guided) and with none (unguided).

        Of several processes the first one scores, and tells the others.
        """
        labels = np.arange(self._run.config.eval.score_images) % self._run.program.model.num_classes
        scores = {}
        for guidance, options in (("guided", {}), ("unguided", {"guidance_scale": 1.0})):
            tokens = self._sample_tokens(params, labels, _SCORE_BATCH, **options)
            if is_first():
                images = decoded(self._run.tokenizer, tokens, lambda _: self._preemption.check_alone())
                found = self._run.scorer.score(images, labels)
                scores |= {f"{name}_{guidance}": value for name, value in found.items()}
        return from_first(scores)

    def sample_grid(self, params: dict[str, Any]) -> np.ndarray | None:
        """A grid with one class a row, of up to ten classes spread over all, or None where there are no images.

        Of several processes the first gets it.
        """
        if self._run.tokenizer is None or not self._grid_images:
            return None
        per_class = self._run.config.eval.samples_per_class
        images = self._sample(params, self._grid_classes.repeat(per_class))
        return None if images is None else image_grid(images, columns=per_class)

    def report(self, step: int, params: dict[str, Any]) -> None:
        """Scores samples of the digits, as many of each class, and says how they compare; once a step."""
        if step in self._reported:
            return
        labels = np.arange(self._run.config.eval.report_samples) % self._run.program.model.num_classes
        images = self._sample(params, labels)
        if images is None:
            return
        scores = digits_report(images, labels)
        self._metrics.write(step, {f"report/{name}": value for name, value in scores.items()})
        last = {name: value for entry in read_metrics(self._run.folder) for name, value in entry.items()}
        losses = {name: last[f"heldout/{name}"] for name in ("target_loss", "random_loss")}
        write_atomically(
            self._run.folder / "report.json", json.dumps({"step": step} | losses | scores, indent=2) + "\n"
        )
        print(
            f"held-out loss, target order: {losses['target_loss']:.4f} nats a token (random order: "
            f"{losses['random_loss']:.4f})\n"
            f"recognised as their class by an SVM trained on the real training digits: "
            f"{scores['svm_accuracy_samples']:.1%} of {len(labels)} samples, "
            f"{scores['svm_accuracy_heldout']:.1%} of the real held-out digits\n"
            f"Frechet distance of pixel statistics to the held-out digits: {scores['frechet_samples']:.1f} for the "
            f"samples, {scores['frechet_train']:.1f} for the real training digits"
        )
