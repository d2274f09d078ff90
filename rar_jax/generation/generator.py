"""A trained model that generates images: the class behind `rar_jax.generate`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from rar_jax.checkpoints.weights import fingerprint, load_weights
from rar_jax.config import Config, sample_options
from rar_jax.data.class_names import class_names, find_classes
from rar_jax.data.tokenizers import Tokenizer, decoded, load_tokenizer, tokenizer_for
from rar_jax.errors import UserError
from rar_jax.parallel.mesh import make_mesh, replicated
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import Sampler, check_labels, sample_tokens


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained model, ready to sample.

    Attributes:
      config: of the run that trained it; `config.sample` has the options used when none are given.
      step: of the checkpoint.
      sampler: the network, on the devices that it runs on.
      tokenizer: what turns its codes into images.
      class_names: in the order of the labels, or None where they are not known.
      identity: digest of the checkpoint or file.
    """

    config: Config
    step: int
    sampler: Sampler
    tokenizer: Tokenizer
    class_names: tuple[str, ...] | None
    identity: str = ""

    def labels(self, classes: Sequence[int | str]) -> np.ndarray:
        """Classes by name or by index as labels, int32 [N].

        Raises:
          UserError: there are none, one is not in 0..C-1, or a name is of no class or of several.
        """
        return check_labels(find_classes(classes, self.class_names), self.sampler.model.config.num_classes)

    def options(self, **given: Any) -> Options:
        """The config's options with changes.

        Raises:
          UserError: one is unknown or out of range.
        """
        default = sample_options(self.config)
        names = [field.name for field in dataclasses.fields(default)]
        for name in given:
            if name not in names:
                raise UserError(f"there is no option {name!r}: there are {', '.join(names)}")
        return dataclasses.replace(default, **given)

    def generate(
        self,
        classes: Sequence[int | str],
        *,
        seed: int = 0,
        batch_size: int = 256,
        on_batch: Callable[[int], None] = lambda images: None,
        **options: Any,
    ) -> np.ndarray:
        """Samples one image a class given.

        Args:
          classes: N classes, by index or by name.
          seed: of all draws.
          batch_size: images decoded at once; the decode loop is compiled once for each.
          on_batch: told the number of images after each batch.
          options: fields of `sampling.options.Options`; those not given are the config's.

        Returns:
          uint8 [N, H, W, 3].

        Raises:
          UserError: a class or an option is out of range.
        """
        tokens = sample_tokens(
            self.sampler,
            self.labels(classes),
            self.options(**options),
            seed=seed,
            batch_size=batch_size,
            on_batch=on_batch,
        )
        return np.concatenate(list(decoded(self.tokenizer, tokens)))


def load_generator(checkpoint: epath.PathLike, step: int | None = None, tokenizer: str | None = None) -> Generator:
    """Loads a trained model.

    Args:
      checkpoint: a run's folder, one of its steps', a converted folder, or a published .bin, .pth or .safetensors file.
      step: of the checkpoint; by default the newest, or where that is damaged the one before it, with a warning.
      tokenizer: what turns its codes into images: digits, or the weights of a VQGAN, named in the same way; by default
        the run's `config.data.tokenizer`.

    Raises:
      UserError: there is no such checkpoint, it cannot be read, or there is no tokenizer for its codes.
    """
    mesh = make_mesh((jax.local_device_count(), 1), jax.local_devices())
    # bfloat16 pays on accelerators; on a CPU its products are many times slower than float32's.
    dtype = "float32" if jax.default_backend() == "cpu" else None
    weights = load_weights(checkpoint, "rar", step, replicated(mesh), dtype)
    config = weights.config
    if tokenizer is None:
        images = load_tokenizer(config)
    else:
        images, config = tokenizer_for(config, tokenizer)
    if images is None:
        raise UserError(f"{checkpoint} comes without a tokenizer for its codes: name one with --tokenizer=WEIGHTS")
    sampler = Sampler(weights.model, weights.params, mesh)
    return Generator(config, weights.step, sampler, images, class_names(weights.config), fingerprint(weights.params))
