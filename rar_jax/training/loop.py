"""The training loop: batches in, steps, and what is looked at along the way."""

import collections
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from rar_jax.checkpoints.load import Weights, load
from rar_jax.checkpoints.store import CheckpointStore
from rar_jax.config import Config, check_same_run, make_model, mesh_shape
from rar_jax.data.datasets import Datasets, open_datasets
from rar_jax.data.loader import DeviceBatches, eval_batches, train_iterator
from rar_jax.data.tokenizers import Tokenizer, load_tokenizer
from rar_jax.evaluation.digits import digits_report
from rar_jax.evaluation.sample_scores import DigitsScorer, SampleScorer, decoded, open_scorer
from rar_jax.images.files import image_grid, write_png
from rar_jax.images.plots import plot_curves, plot_scan_orders
from rar_jax.models.rar import RAR
from rar_jax.orders import randomness, scan_order
from rar_jax.parallel.mesh import batch_sharding, make_mesh, put_batch, replicated
from rar_jax.parallel.partition import shardings
from rar_jax.progress import Progress
from rar_jax.run_folder import CONFIG_FILE, check_folder, lock, read_config, write_config
from rar_jax.sampling.sampler import sample_tokens, spread_classes
from rar_jax.training.finetune import begin_from, check_sizes
from rar_jax.training.metrics import MetricsLog, read_metrics
from rar_jax.training.optimizer import adamw, learning_rate_schedule
from rar_jax.training.preemption import NonFiniteError, Preempted, Preemption
from rar_jax.training.state import TrainState, init_state
from rar_jax.training.step import Recipe, eval_step, train_step

_log = logging.getLogger(__name__)

_REPORT_BATCH = 128
# Logged with a step that was looked at, whether or not there are held-out images.
_LOOKED = "eval/done"
# Before the names of scores of samples.
_SCORE = "score/"


@dataclasses.dataclass
class Run:
    """A run, set up and checked; nothing is compiled yet."""

    config: Config
    folder: epath.Path
    mesh: Mesh
    model: RAR
    recipe: Recipe
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    init: Callable[[], TrainState]
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
        state = jax.jit(self.init, out_shardings=self.shardings)()
        if self.init_from is None:
            return state
        params, left = begin_from(self.model, state.params, self.init_from.model, self.init_from.params)
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
    check_folder("workdir", folder)
    tokenizer = load_tokenizer(config)
    datasets = open_datasets(config, tokenizer)
    model = make_model(config)
    optimizer_config, warmup = config.optimizer, config.optimizer.warmup_epochs * config.steps_per_epoch
    learning_rate = learning_rate_schedule(
        optimizer_config.learning_rate, optimizer_config.end_learning_rate, warmup, config.total_steps
    )
    optimizer = adamw(
        learning_rate,
        b1=optimizer_config.b1,
        b2=optimizer_config.b2,
        eps=optimizer_config.eps,
        weight_decay=optimizer_config.weight_decay,
        clip_norm=optimizer_config.clip_norm,
    )
    anneal_start, anneal_end = config.anneal_steps
    recipe = Recipe(
        seed=config.seed,
        scan_order=scan_order(config.permutation.scan_order, model.grid_side),
        anneal_start=anneal_start,
        anneal_end=anneal_end,
        label_dropout=config.train.label_dropout,
        accumulation=config.train.accumulation,
        ema_decay=config.train.ema_decay,
    )
    init = functools.partial(init_state, model, optimizer, config.seed, config.train.ema_decay > 0)
    shapes = jax.eval_shape(init)
    state_shardings = shardings(shapes, mesh)
    if (folder / CONFIG_FILE).exists():
        for difference in check_same_run(config, read_config(folder), allow_config_change):
            _log.info("goes on with other settings: the run had %s", difference)
    init_from = None
    if config.init_from and not CheckpointStore(folder).steps:
        # In host memory: the devices may not have room for it whole.
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        try:
            init_from = load(config.init_from, "rar", sharding=host)
        except ValueError as error:
            raise ValueError(f"config.init_from={config.init_from}: {error}") from None
        check_sizes(model, init_from.model)
    scorer = _open_scorer(config)
    held = lock(folder) if jax.process_index() == 0 else None
    store = CheckpointStore(folder, config.checkpoint)
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, state_shardings
    )
    restored = store.restore_newest(like)
    return Run(
        config=config,
        folder=folder,
        mesh=mesh,
        model=model,
        recipe=recipe,
        learning_rate=learning_rate,
        optimizer=optimizer,
        init=init,
        shardings=state_shardings,
        datasets=datasets,
        tokenizer=tokenizer,
        store=store,
        restored=restored,
        lock=held,
        scorer=scorer,
        init_from=init_from,
    )


def _open_scorer(config: Config) -> SampleScorer | None:
    options = config.eval
    if not options.score_every:
        return None
    if not options.inception:
        return DigitsScorer()
    try:
        return open_scorer("inception", options.inception, options.reference, config.data.image_size)
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
        jax.process_index(),
        jax.process_count(),
    )
    # Metrics of steps that were not logged yet; saved too, so that the log does not show where a run was interrupted.
    pending: list[dict[str, Any]] = []
    if run.restored is None:
        state = run.start()
    else:
        state, position = run.restored
        host_batches.set_state(position["loader"])
        pending = position["pending"]
        run.restored = None  # The first step donates the state.
    batches = DeviceBatches(host_batches, functools.partial(put_batch, mesh=run.mesh))
    step = saved = int(state.step)
    write_config(folder, config)
    metrics = MetricsLog(folder, step)
    observer = Observer(run, metrics, preemption)
    if step == 0:
        _log.info("Parameters:\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
        plot_scan_orders(folder / "figures" / "scan_orders.png", run.model.grid_side)
    _log.info(
        "%s: steps %d to %d (%d an epoch) on %d devices %s",
        *(config.name, step, config.last_step, config.steps_per_epoch, run.mesh.size, dict(run.mesh.shape)),
    )
    progress = Progress("train", config.last_step, done=step)
    skipped, step_fn, note, complete = SkippedUpdates(run), None, "", False

    def save() -> None:
        if not _all_finite(state):
            raise NonFiniteError(f"step {step}: the state is not finite and is not saved; {_last_good(run)}")
        position = {"loader": batches.get_state(), "pending": _floats(pending)}
        run.store.save(state, position, observer.evaluations.get(step))

    try:
        if step and observer.due(step):
            # Unless it was done, a preemption came in between.
            observer.look(step, state.sampling_params)
        while step < config.last_step:
            batch = next(batches)
            if step_fn is None:
                step_fn = _compile_step(run, state, batch)
                preemption.check()
            state, values = step_fn(state, batch)
            step += 1
            pending.append(values)
            skipped.check(step, values)
            if step % config.train.log_every == 0 or step == config.last_step:
                note = observer.log_training(step, _floats(pending))
                pending = []
            progress.update(note=note)
            if observer.due(step):
                observer.look(step, state.sampling_params)
            if step % config.checkpoint.every == 0 or step == config.last_step:
                save()
                saved = step
            if preemption.asked(step):
                raise Preempted
        if config.eval.report_samples:
            observer.report(step, state.sampling_params)
        complete = True
    except Preempted:
        _log.warning("asked to end: at step %d of %d", step, config.last_step)
        if step > saved:
            save()
    finally:
        progress.close()
        metrics.close()
        last_saved = run.store.close()
        if run.lock is not None:
            run.lock.close()
    if not last_saved:
        raise OSError(f"step {step} could not be saved; {_last_good(run)}")
    plot_curves(folder / "figures" / "curves.png", read_metrics(folder), config.anneal_steps)
    _log.info("%s: %s", "Done" if complete else "Saved, to be started again", folder)
    return complete


def _compile_step(run: Run, state: TrainState, batch: dict[str, jax.Array]) -> Callable:
    """The compiled step; what is asked of the run meanwhile is heard when this returns."""
    step_fn = jax.jit(
        functools.partial(train_step, model=run.model, optimizer=run.optimizer, recipe=run.recipe),
        in_shardings=(run.shardings, batch_sharding(run.mesh)),
        out_shardings=(run.shardings, replicated(run.mesh)),
        donate_argnums=0,
    )
    return step_fn.lower(state, batch).compile()


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
        """Looks at the updates that are through by now; waiting for this one would leave the devices idle.

        Raises:
          NonFiniteError: too many.
        """
        self._waiting.append((step, values))
        while self._waiting and self._waiting[0][1]["skipped"].is_ready():
            step, values = self._waiting.popleft()
            self._in_a_row = self._in_a_row + 1 if values["skipped"] else 0
            if self._in_a_row >= self._run.config.train.max_skipped:
                raise NonFiniteError(
                    f"step {step}: {self._in_a_row} updates in a row were not finite and were left out "
                    f"(loss {float(values['loss'])}, gradient norm {float(values['grad_norm'])}, learning rate "
                    f"{float(self._run.learning_rate(step - 1)):.3g}); {_last_good(self._run)}"
                )


class Observer:
    """What is looked at along the way: metrics, held-out losses, sample grids and scores, the report of the digits.

    Attributes:
      evaluations: step -> the held-out losses measured there.
    """

    def __init__(self, run: Run, metrics: MetricsLog, preemption: Preemption):
        self._run = run
        self._metrics = metrics
        self._preemption = preemption
        written = read_metrics(run.folder)
        self.evaluations = {entry["step"]: entry for entry in written if "heldout/target_loss" in entry}
        self._looked = {entry["step"] for entry in written if _LOOKED in entry}
        self._scored = {entry["step"] for entry in written if any(name.startswith(_SCORE) for name in entry)}
        self._reported = {entry["step"] for entry in written if "report/svm_accuracy_samples" in entry}
        self._grid_classes = spread_classes(run.model.num_classes)
        # Also the batch of the report, so that the decode loop is compiled once.
        self._grid_images = len(self._grid_classes) * run.config.eval.samples_per_class
        self._eval_step = jax.jit(functools.partial(eval_step, model=run.model, recipe=run.recipe))

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
            self._metrics.write(step, {_SCORE + name: value for name, value in scores.items()})
            self._scored.add(step)

    def _look(self, step: int, params: dict[str, Any]) -> None:
        losses = self.evaluate(params)
        grid = self.sample_grid(params)
        if losses:
            self.evaluations[step] = losses
            _log.info(
                "step %d: held-out loss %.4f in the target order, %.4f in random order",
                *(step, losses["heldout/target_loss"], losses["heldout/random_loss"]),
            )
        if grid is not None:
            write_png(self._run.folder / "samples" / f"step_{step:08d}.png", grid)
            self._metrics.write_image(step, "samples", grid)
        self._metrics.write(step, losses | {_LOOKED: 1.0})
        self._looked.add(step)

    def log_training(self, step: int, values: list[dict[str, float]]) -> str:
        """Writes the means over the steps since the last time, and the schedules at this one's update.

        Updates that were left out are counted and not in the means.

        Returns:
          What to show of it.
        """
        run = self._run
        taken = [each for each in values if not each["skipped"]]
        names = [name for name in values[0] if name != "skipped"] if taken else []
        logged = {f"train/{name}": float(np.mean([each[name] for each in taken])) for name in names} | {
            "train/skipped": float(len(values) - len(taken)),
            "train/epoch": step / run.config.steps_per_epoch,
            "train/learning_rate": float(run.learning_rate(step - 1)),
            "train/r": float(randomness(jnp.int32(step - 1), *run.config.anneal_steps)),
        }
        self._metrics.write(step, logged)
        note = f"loss {logged['train/loss']:.3f}" if taken else "no finite update"
        return note + (f", {len(values) - len(taken)} updates left out" if len(taken) < len(values) else "")

    def evaluate(self, params: dict[str, Any]) -> dict[str, float]:
        """The losses of held-out images, and of as many training ones, in the target and in random order."""
        run, losses = self._run, {}
        heldout = run.datasets.heldout
        if heldout is None:
            return losses
        count = min(run.config.eval.num_images or heldout.num_images, heldout.num_images)
        for split, records in (("train", run.datasets.train), ("heldout", heldout)):
            sums = None
            for batch in eval_batches(
                records, run.config.train.batch_size, count, jax.process_index(), jax.process_count()
            ):
                self._preemption.check()
                new = self._eval_step(params, put_batch(batch, run.mesh))
                sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
            sums = jax.device_get(sums)
            images = sums.pop("count")
            losses |= {f"{split}/{name}": float(value / images) for name, value in sums.items()}
        return losses

    def _sample_tokens(self, params: dict[str, Any], labels: np.ndarray, **options: float) -> np.ndarray:
        config = self._run.config
        return sample_tokens(
            self._run.model,
            params,
            labels,
            self._run.mesh,
            seed=config.seed,
            order=config.permutation.scan_order,
            batch_size=self._grid_images or _REPORT_BATCH,
            on_batch=lambda _: self._preemption.check(),
            **(dataclasses.asdict(config.sample) | options),
        )

    def _sample(self, params: dict[str, Any], labels: np.ndarray) -> np.ndarray:
        return self._run.tokenizer.decode(self._sample_tokens(params, labels))

    def score(self, params: dict[str, Any]) -> dict[str, float]:
        """Scores samples, as many of each class: with the run's guidance (guided) and with none (unguided)."""
        labels, scores = np.arange(self._run.config.eval.score_images) % self._run.model.num_classes, {}
        for guidance, options in (("guided", {}), ("unguided", {"guidance_scale": 1.0})):
            tokens = self._sample_tokens(params, labels, **options)
            images = decoded(self._run.tokenizer, tokens, lambda _: self._preemption.check())
            found = self._run.scorer.score(images, labels)
            scores |= {f"{name}_{guidance}": value for name, value in found.items()}
        return scores

    def sample_grid(self, params: dict[str, Any]) -> np.ndarray | None:
        """A grid with one class a row, of up to ten classes spread over all, or None where there are no images."""
        if self._run.tokenizer is None or not self._grid_images:
            return None
        per_class = self._run.config.eval.samples_per_class
        labels = self._grid_classes.repeat(per_class)
        return image_grid(self._sample(params, labels), columns=per_class)

    def report(self, step: int, params: dict[str, Any]) -> None:
        """Scores samples of the digits, as many of each class, and says how they compare; once a step."""
        if step in self._reported:
            return
        labels = np.arange(self._run.config.eval.report_samples) % self._run.model.num_classes
        scores = digits_report(self._sample(params, labels), labels)
        self._metrics.write(step, {f"report/{name}": value for name, value in scores.items()})
        last = {name: value for entry in read_metrics(self._run.folder) for name, value in entry.items()}
        losses = {name: last[f"heldout/{name}"] for name in ("target_loss", "random_loss")}
        (self._run.folder / "report.json").write_text(json.dumps({"step": step} | losses | scores, indent=2) + "\n")
        print(
            f"held-out loss, target order: {losses['target_loss']:.4f} nats a token (random order: "
            f"{losses['random_loss']:.4f})\n"
            f"recognised as their class by an SVM trained on the real training digits: "
            f"{scores['svm_accuracy_samples']:.1%} of {len(labels)} samples, "
            f"{scores['svm_accuracy_heldout']:.1%} of the real held-out digits\n"
            f"Frechet distance of pixel statistics to the held-out digits: {scores['frechet_samples']:.1f} for the "
            f"samples, {scores['frechet_train']:.1f} for the real training digits"
        )
