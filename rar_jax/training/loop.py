"""The training loop: batches in, steps, and what is looked at along the way."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from rar_jax.checkpoints.store import CheckpointStore
from rar_jax.config import Config, check_same_run, make_model, mesh_shape
from rar_jax.data.datasets import Datasets, open_datasets
from rar_jax.data.loader import DeviceBatches, eval_batches, train_iterator
from rar_jax.data.tokenizers import Tokenizer, load_tokenizer
from rar_jax.evaluation.digits import digits_report
from rar_jax.images.files import image_grid, write_png
from rar_jax.images.plots import plot_curves, plot_scan_orders
from rar_jax.models.rar import RAR
from rar_jax.orders import randomness, scan_order
from rar_jax.parallel.mesh import batch_sharding, make_mesh, put_batch, replicated
from rar_jax.parallel.partition import shardings
from rar_jax.progress import Progress
from rar_jax.run_folder import CONFIG_FILE, check_folder, read_config, write_config
from rar_jax.sampling.sampler import sample_tokens, spread_classes
from rar_jax.training.metrics import MetricsLog, read_metrics
from rar_jax.training.optimizer import adamw, learning_rate_schedule
from rar_jax.training.state import TrainState, init_state
from rar_jax.training.step import Recipe, eval_step, train_step

_log = logging.getLogger(__name__)

_REPORT_BATCH = 128


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
    # The newest checkpoint's state and position in the data, or None in a new run.
    restored: tuple[TrainState, dict[str, Any]] | None


def prepare(config: Config, folder: epath.PathLike) -> Run:
    """Sets a run up: devices, data, and the newest checkpoint where there is one.

    Raises:
      ValueError: the config does not fit the devices or the data, or the checkpoint cannot be read.
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
    store = CheckpointStore(folder, keep=config.checkpoint.keep)
    restored = None
    if store.steps:
        if (folder / CONFIG_FILE).exists():
            check_same_run(config, read_config(folder))
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, state_shardings
        )
        restored = store.restore(store.steps[-1], like)
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
    )


def train(run: Run) -> None:
    """Trains to the last step, from the newest checkpoint or from the start."""
    config, folder = run.config, run.folder
    step_fn = jax.jit(
        functools.partial(train_step, model=run.model, optimizer=run.optimizer, recipe=run.recipe),
        in_shardings=(run.shardings, batch_sharding(run.mesh)),
        out_shardings=(run.shardings, replicated(run.mesh)),
        donate_argnums=0,
    )
    host_batches = train_iterator(
        run.datasets.train,
        config.train.batch_size,
        config.total_steps,
        config.seed,
        jax.process_index(),
        jax.process_count(),
    )
    if run.restored is None:
        state = jax.jit(run.init, out_shardings=run.shardings)()
    else:
        state, data_state = run.restored
        host_batches.set_state(data_state)
        run.restored = None  # The first step donates the state.
    batches = DeviceBatches(host_batches, functools.partial(put_batch, mesh=run.mesh))
    step = int(state.step)
    write_config(folder, config)
    metrics = MetricsLog(folder, step)
    observer = Observer(run, metrics)
    if step == 0:
        _log.info("Parameters:\n%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
        plot_scan_orders(folder / "figures" / "scan_orders.png", run.model.grid_side)
    _log.info(
        "%s: steps %d to %d (%d an epoch) on %d devices %s",
        *(config.name, step, config.last_step, config.steps_per_epoch, run.mesh.size, dict(run.mesh.shape)),
    )
    progress = Progress("train", config.last_step, done=step)
    pending, note = [], ""
    while step < config.last_step:
        state, values = step_fn(state, next(batches))
        step += 1
        pending.append(values)
        last = step == config.last_step
        saving = step % config.checkpoint.every == 0 or last
        # Also where a restart would begin anew, so that it logs the same means.
        if step % config.train.log_every == 0 or saving:
            logged = observer.log_training(step, pending)
            pending, note = [], f"loss {logged['train/loss']:.3f}"
        progress.update(note=note)
        if step % config.eval.every == 0 or last:
            observer.evaluate(step, state.sampling_params)
            observer.sample_grid(step, state.sampling_params)
        if saving:
            run.store.save(state, batches.get_state())
    progress.close()
    run.store.close()
    if config.eval.report_samples:
        observer.report(step, state.sampling_params)
    metrics.close()
    plot_curves(folder / "figures" / "curves.png", read_metrics(folder), config.anneal_steps)
    _log.info("Done: %s", folder)


class Observer:
    """What is looked at along the way: metrics, held-out losses, sample grids, the report of the digits."""

    def __init__(self, run: Run, metrics: MetricsLog):
        self._run = run
        self._metrics = metrics
        self._grid_classes = spread_classes(run.model.num_classes)
        # Also the batch of the report, so that the decode loop is compiled once.
        self._grid_images = len(self._grid_classes) * run.config.eval.samples_per_class
        self._eval_step = jax.jit(functools.partial(eval_step, model=run.model, recipe=run.recipe))

    def log_training(self, step: int, values: list[dict[str, jax.Array]]) -> dict[str, float]:
        """Writes the means over the steps since the last time, and the schedules at this one's update."""
        run = self._run
        means = jax.tree.map(lambda *xs: float(np.mean(xs)), *jax.device_get(values))
        logged = {f"train/{name}": value for name, value in means.items()} | {
            "train/epoch": step / run.config.steps_per_epoch,
            "train/learning_rate": float(run.learning_rate(step - 1)),
            "train/r": float(randomness(jnp.int32(step - 1), *run.config.anneal_steps)),
        }
        self._metrics.write(step, logged)
        return logged

    def evaluate(self, step: int, params: dict[str, Any]) -> None:
        """Writes the losses of held-out images, and of as many training ones, in the target and in random order."""
        run, logged = self._run, {}
        heldout = run.datasets.heldout
        if heldout is None:
            return
        count = min(run.config.eval.num_images or heldout.num_images, heldout.num_images)
        for split, records in (("train", run.datasets.train), ("heldout", heldout)):
            sums = None
            for batch in eval_batches(
                records, run.config.train.batch_size, count, jax.process_index(), jax.process_count()
            ):
                new = self._eval_step(params, put_batch(batch, run.mesh))
                sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
            sums = jax.device_get(sums)
            images = sums.pop("count")
            logged |= {f"{split}/{name}": float(value / images) for name, value in sums.items()}
        self._metrics.write(step, logged)
        _log.info(
            "step %d: held-out loss %.4f in the target order, %.4f in random order",
            *(step, logged["heldout/target_loss"], logged["heldout/random_loss"]),
        )

    def _sample(self, params: dict[str, Any], labels: np.ndarray) -> np.ndarray:
        config = self._run.config
        tokens = sample_tokens(
            self._run.model,
            params,
            labels,
            self._run.mesh,
            seed=config.seed,
            order=config.permutation.scan_order,
            batch_size=self._grid_images or _REPORT_BATCH,
            **dataclasses.asdict(config.sample),
        )
        return self._run.tokenizer.decode(tokens)

    def sample_grid(self, step: int, params: dict[str, Any]) -> None:
        """Writes a grid with one class a row, of up to ten classes spread over all."""
        if self._run.tokenizer is None or not self._grid_images:
            return
        per_class = self._run.config.eval.samples_per_class
        labels = self._grid_classes.repeat(per_class)
        grid = image_grid(self._sample(params, labels), columns=per_class)
        write_png(self._run.folder / "samples" / f"step_{step:08d}.png", grid)
        self._metrics.write_image(step, "samples", grid)

    def report(self, step: int, params: dict[str, Any]) -> None:
        """Scores samples of the digits, as many of each class, and says how they compare."""
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
