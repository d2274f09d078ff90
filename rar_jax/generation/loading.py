"""Loads a trained model and its tokenizer as a generator of images."""

import jax
from etils import epath

from rar_jax.checkpoints.weights import Weights, load_weights, split_step
from rar_jax.data.class_names import class_names
from rar_jax.data.digits import DigitsTokenizer
from rar_jax.data.tokenizers import load_tokenizer, tokenizer_for
from rar_jax.errors import UserError
from rar_jax.generation.generator import Generator
from rar_jax.orders import randomness
from rar_jax.parallel.mesh import local_mesh, replicated
from rar_jax.run_folder import read_config
from rar_jax.sampling.sampler import Sampler
from rar_jax.training.metrics import points, read_metrics


def load(checkpoint: epath.PathLike, step: int | None = None, tokenizer: str | None = None) -> Generator:
    """Loads a trained model and its tokenizer.

    Args:
      checkpoint: a run's folder, the folder of one of its steps, a converted folder, or a published .bin, .pth or
        .safetensors file.
      step: the checkpoint's step; by default the newest undamaged one. Skipped damaged ones cause a warning.
      tokenizer: `digits`, or the weights of a VQGAN, named like the checkpoint; by default the run's
        `config.data.tokenizer`.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or there is no tokenizer for it.
    """
    _check_tokenizer(checkpoint, tokenizer)
    mesh = local_mesh()
    # bfloat16 is faster on accelerators; on a CPU its matrix products are many times slower than float32's.
    dtype = "float32" if jax.default_backend() == "cpu" else None
    weights = load_weights(checkpoint, "rar", step, replicated(mesh), dtype)
    config = weights.config
    if tokenizer is None:
        images = load_tokenizer(config)
    else:
        images, config = tokenizer_for(config, tokenizer)
    sampler = Sampler(weights.model, weights.params, mesh)
    return Generator(
        config, weights.step, weights.identity, sampler, images, class_names(weights.config),
        _final_randomness(weights), _random_loss(split_step(checkpoint)[0], weights.step),
    )  # fmt: skip


def _check_tokenizer(checkpoint: epath.PathLike, tokenizer: str | None) -> None:
    """Raises a `UserError` if no tokenizer is named or the named one does not exist, before any weights are read."""
    folder, _ = split_step(checkpoint)
    if tokenizer is not None:
        if not _exists(tokenizer):
            raise UserError(f"--tokenizer={tokenizer}: there is no such file or folder")
    elif folder.exists():
        own = read_config(folder).data.tokenizer if folder.is_dir() else "none"
        if own == "none":
            raise UserError(f"{checkpoint} comes without a tokenizer: name one with --tokenizer=WEIGHTS")
        if not _exists(own):
            raise UserError(
                f"{checkpoint} was trained with config.data.tokenizer={own}, which is not there: name it with "
                "--tokenizer=WEIGHTS"
            )


def _exists(tokenizer: str) -> bool:
    return tokenizer == DigitsTokenizer.fingerprint or epath.Path(tokenizer).exists()


def _final_randomness(weights: Weights) -> float:
    """Returns r after the checkpoint's last update. Published weights, which have step 0, were annealed to 0."""
    window = weights.config.permutation
    start, end = weights.config.anneal_steps
    if not weights.step:
        return 0.0
    if weights.step <= start:
        # Until then r was 1, also if the window ends with the run.
        return 1.0
    return float(randomness(weights.step, start, end, window.final_randomness, window.shape))


def _random_loss(folder: epath.Path, step: int) -> float | None:
    """Returns the held-out loss in random order that a run logged last up to a step."""
    losses = [loss for logged, loss in points(read_metrics(folder), "heldout/random_loss") if logged <= step]
    return losses[-1] if losses else None
