"""What is looked at along the way: metrics, held-out losses, sample grids and scores, the report of the digits."""

import collections
import dataclasses
import functools
import json
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rar_jax.config import SCORE, sample_options
from rar_jax.data.loader import eval_batches
from rar_jax.data.tokenizers import decoded
from rar_jax.evaluation.digits import digits_report
from rar_jax.files import write_atomically
from rar_jax.images.files import image_grid, write_png
from rar_jax.orders import randomness
from rar_jax.parallel.distributed import from_first, is_first
from rar_jax.parallel.mesh import host_rows, put_batch
from rar_jax.parallel.partition import on_mesh
from rar_jax.sampling.sampler import Sampler, sample_tokens, spread_classes
from rar_jax.training.metrics import MetricsLog, read_metrics
from rar_jax.training.preemption import Preemption
from rar_jax.training.run import Run
from rar_jax.training.step import eval_step

_log = logging.getLogger(__name__)

_REPORT_BATCH = 128
# Of samples that are scored, which are many: a batch of no more than a grid would leave accelerators idle.
_SCORE_BATCH = 256
# Logged with a step that was looked at, whether or not there are held-out images.
_LOOKED = "eval/done"


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
        self._grid_classes = spread_classes(run.program.model.config.num_classes)
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
        labels = np.arange(self._run.config.eval.score_images) % self._run.program.model.config.num_classes
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
        labels = np.arange(self._run.config.eval.report_samples) % self._run.program.model.config.num_classes
        images = self._sample(params, labels)
        if images is None:
            return
        scores = digits_report(images, labels)
        self._metrics.write(step, {f"report/{name}": value for name, value in scores.items()})
        losses = {name: self.evaluations[step][f"heldout/{name}"] for name in ("target_loss", "random_loss")}
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
