"""Scores of a trained cell: losses of images that nothing was tuned on, and samples compared with them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rar_jax.checkpoints.store import CheckpointStore
from rar_jax.config import Config, sample_options
from rar_jax.data.datasets import Datasets
from rar_jax.data.loader import eval_batches
from rar_jax.evaluation.digits import svm_accuracy
from rar_jax.evaluation.neighbours import distance_to_nearest, precision_recall
from rar_jax.evaluation.statistics import frechet_distance
from rar_jax.models.rar import RAR
from rar_jax.parallel.mesh import make_mesh, replicated
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import Sampler, interleaved_labels, sample_tokens
from rar_jax.studies.plan import CURVES, RANDOM, Cell, Study
from rar_jax.training.metrics import points, read_metrics

_BATCH_SIZE = 250
# Added to the seed of the samples that guidance is tuned with, so that the scored samples are new ones.
_TUNING_SEED = 1_000_000


@dataclasses.dataclass(frozen=True)
class Images:
    """Images as codes: tokens int32 [N, T] in grid order, and labels int32 [N]."""

    tokens: np.ndarray
    labels: np.ndarray


def heldout_images(datasets: Datasets, config: Config) -> tuple[Images, Images]:
    """Returns the validation images, which training evaluates, and the others, the test images."""
    heldout = datasets.heldout
    # The evaluations of a run take the first images of the same order.
    batch = next(eval_batches(heldout, heldout.num_records, 0))
    count = config.eval.num_images
    return tuple(Images(batch["tokens"][part], batch["label"][part]) for part in (slice(count), slice(count, None)))


def read_curves(folder: epath.PathLike) -> dict[str, list[tuple[int, float]]]:
    """Returns those of `plan.CURVES` that a run has measured: name -> (step, value) pairs."""
    lines = read_metrics(folder)
    curves = {name: points(lines, name) for name in CURVES}
    return {name: curve for name, curve in curves.items() if curve}


class CellScorer:
    """Scores a cell whose training is complete."""

    def __init__(self, study: Study, cell: Cell, datasets: Datasets, check: Callable[[], None]):
        """Reads the images that the cell is scored with.

        Args:
          study, cell: the cell.
          datasets: its data.
          check: called between batches; may raise `Preempted`.
        """
        self._study, self._cell, self._check = study, cell, check
        self._model = RAR(cell.config.model, jnp.dtype(cell.config.train.dtype))
        self._mesh = make_mesh((1,), jax.devices()[:1])
        self._validation, self._test = heldout_images(datasets, cell.config)
        self._training = datasets.train.read(np.arange(datasets.train.num_records))["tokens"]

    def score(self, folder: epath.PathLike) -> dict[str, float]:
        """Returns the scores of the run in a folder: name in `plan.scores_of` -> value.

        Losses are those of the test images, in nats per token, after the last step and after the step with the
        smallest validation loss. Samples are drawn from the last step.
        """
        losses = dict(read_curves(folder)["heldout/target_loss"])
        best, end = min(losses, key=losses.__getitem__), max(losses)
        values = {"validation_best": losses[best], "validation_end": losses[end], "best_step": best}
        if self._study.choosing:
            return values
        store = CheckpointStore(folder)
        for moment, step in (("best", best), ("end", end)):
            sampler = Sampler(
                self._model, store.restore_sampling_params(step, replicated(self._mesh), "float32"), self._mesh
            )
            values |= {f"{name}_{moment}": loss for name, loss in self._losses(sampler).items()}
        store.close()
        for place, order in enumerate(self._cell.row.orders):
            prefix = f"{order}_" if place else ""
            values |= {prefix + name: value for name, value in self._sample_scores(sampler, order).items()}
        return values

    def _losses(self, sampler: Sampler) -> dict[str, float]:
        tokens = self._test.tokens
        target = np.broadcast_to(sample_options(self._cell.config).positions(self._model.config), tokens.shape)
        # The same orders in every cell.
        random = np.random.default_rng(0).permuted(
            np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1)), axis=1
        )
        losses = {}
        for name, orders in (("loss", target), ("random_loss", random)):
            losses[name] = -float(np.mean(sampler.log_likelihoods(self._test.labels, tokens, orders)))
        return losses

    def _sample_scores(self, sampler: Sampler, order: str) -> dict[str, float]:
        """Tunes guidance on the validation images, and scores samples with and without it on the test images."""
        options = sample_options(self._cell.config)
        if order == RANDOM:
            options = dataclasses.replace(options, scan_order=RANDOM)
        study, seed = self._study, self._cell.seed
        scores = {}
        for scale in study.guidance_scales:
            guided = dataclasses.replace(options, guidance_scale=scale)
            samples = self._samples(sampler, guided, study.tuning_samples, seed + _TUNING_SEED)
            scores[scale] = frechet_distance(samples.tokens, self._validation.tokens)
        best = min(scores, key=scores.__getitem__)
        values = {"guidance_scale": best}
        for suffix, scale in (("", 1.0), ("_guided", best)):
            guided = dataclasses.replace(options, guidance_scale=scale)
            samples = self._samples(sampler, guided, study.samples, seed)
            values |= {name + suffix: value for name, value in self._quality(samples).items()}
        return values

    def _samples(self, sampler: Sampler, options: Options, count: int, seed: int) -> Images:
        labels = interleaved_labels(count, self._model.config.num_classes)
        tokens = sample_tokens(
            sampler, labels, options, seed=seed, batch_size=_BATCH_SIZE, on_batch=lambda _: self._check()
        )
        return Images(tokens, labels)

    def _quality(self, samples: Images) -> dict[str, float]:
        real = self._test.tokens
        precision, recall = precision_recall(real.astype(np.float32), samples.tokens.astype(np.float32))
        near, usual = (distance_to_nearest(tokens, self._training).mean() for tokens in (samples.tokens, real))
        return {
            "frechet": frechet_distance(samples.tokens, real),
            "precision": precision,
            "recall": recall,
            "accuracy": svm_accuracy(samples.tokens, samples.labels),
            # 1 if samples are as far from the training images as new images are; copies are at 0.
            "nearest": float(near / usual),
        }
