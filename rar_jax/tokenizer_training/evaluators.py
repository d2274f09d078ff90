"""Evaluates a tokenizer during training: the reconstructions of held-out images."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rar_jax.data.image_loader import Pictures, heldout_batches
from rar_jax.evaluation.features import Extractor, extract_all
from rar_jax.evaluation.reconstruction import WINDOW, PairScores
from rar_jax.evaluation.statistics import Moments, frechet
from rar_jax.images.files import image_grid
from rar_jax.models.vqgan import VQGAN
from rar_jax.parallel.distributed import from_first, is_first
from rar_jax.parallel.mesh import batch_sharding, fetch, host_rows, put_batch, replicated
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.training.evaluators.evaluator import Measure, Result, Schedule
from rar_jax.training.preemption import Preemption

_log = logging.getLogger(__name__)

PSNR = Measure("heldout/psnr", "PSNR of held-out images (dB)", "", True)
SSIM = Measure("heldout/ssim", "SSIM of held-out images", "", True)
USE = Measure("heldout/codebook_use", "Share of the codes that held-out images use", "", True)
PERPLEXITY = Measure("heldout/codebook_perplexity", "Perplexity of the codes of held-out images", "", True)
RFID = Measure("heldout/rfid", "rFID of held-out images", "", False)


class Reconstructions:
    """Compares held-out images with their reconstructions, and draws a grid of them."""

    name = "reconstructions"

    def __init__(
        self, config: TokenizerConfig, model: VQGAN, mesh: Mesh, heldout: Pictures, extractor: Extractor | None
    ):
        """Prepares the evaluation without compiling. With an extractor of Inception features, it also measures rFID."""
        self.schedule = Schedule(config.eval.every, config.last_step)
        self._count = min(config.eval.num_images or len(heldout), len(heldout))
        self._side, self._batch_size = config.data.image_size, config.train.batch_size
        self._shown = min(config.eval.grid_images, self._count)
        self._mesh, self._heldout = mesh, heldout
        # Features of one image have no covariance.
        self._extractor = extractor if self._count > 1 else None
        with_ssim = (SSIM,) if self._side >= WINDOW else ()
        self.measures = (PSNR, *with_ssim, USE, PERPLEXITY, *((RFID,) if self._extractor else ()))

        def reconstruct(params, images):
            codes = model.apply({"params": params}, images.astype(jnp.float32) / 255, method="encode")
            return codes, model.apply({"params": params}, codes, method="decode_pixels")

        self._codebook_size = model.config.codebook_size
        # Every process gets all images, and the first one compares them.
        self._reconstruct = jax.jit(
            reconstruct,
            in_shardings=(replicated(mesh), batch_sharding(mesh)),
            out_shardings=replicated(mesh),
        )

    def run(self, step: int, params: dict[str, Any], measured: Mapping[str, float], preemption: Preemption) -> Result:
        """Evaluates a step; see `Evaluator.run`. The first process compares the images."""
        scores, moments, shown = PairScores(self._codebook_size), (Moments(), Moments()), []
        for images, codes, again in self._reconstructed(params, preemption):
            if not is_first():
                continue
            scores.add(images, codes, again)
            shown += list(zip(images, again, strict=True))[: self._shown - len(shown)]
            if self._extractor is not None:
                for each, batch in zip(moments, (images, again), strict=True):
                    for _, features in extract_all(self._extractor, [batch]):
                        each.add(features.pool)
        values, pictures = {}, {}
        if is_first():
            found = scores.means()
            if self._extractor is not None:
                found["rfid"] = frechet(moments[1].gaussian(), moments[0].gaussian())
            values = {measure.name: found[measure.name.removeprefix("heldout/")] for measure in self.measures}
            rows = np.concatenate([np.stack(each) for each in zip(*shown, strict=True)])
            pictures = {"reconstructions": image_grid(rows, columns=self._shown)}
        values = from_first(values)
        _log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return Result(values, pictures)

    def _reconstructed(
        self, params: dict[str, Any], preemption: Preemption
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields batches of images, their codes and their reconstructions."""
        rows = host_rows(self._mesh, self._batch_size)
        left = self._count
        for batch in heldout_batches(self._heldout, self._side, self._batch_size, self._count, rows):
            preemption.check()
            images = put_batch(batch, self._mesh)["image"]
            codes, again = jax.device_get(self._reconstruct(params, images))
            yield fetch(images)[:left], codes[:left], again[:left]
            left -= len(codes)
