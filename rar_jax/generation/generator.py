"""A trained model that generates images: the class behind `rar_jax.generate`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from rar_jax.checkpoints.weights import load_weights
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
      config: the config of the run that trained it; `config.sample` has the default sampling options.
      step: the checkpoint's step.
      identity: 12 hexadecimal digits that identify the checkpoint or file (`Weights.identity`).
      sampler: the network and its parameters, on the devices.
      tokenizer: decodes tokens to images.
      class_names: names of the classes in the order of the labels, or None if they are not known.
    """

    config: Config
    step: int
    identity: str
    sampler: Sampler
    tokenizer: Tokenizer
    class_names: tuple[str, ...] | None

    def labels(self, classes: Sequence[int | str]) -> np.ndarray:
        """Returns the labels, int32 [N], of classes that are given by name or by index.

        Raises:
          UserError: no class is given, an index is not in 0..C-1, or a name matches no class or several.
        """
        return check_labels(find_classes(classes, self.class_names), self.sampler.model.config.num_classes)

    def options(self, **given: Any) -> Options:
        """Returns the config's sampling options with some of them replaced.

        Raises:
          UserError: an option is unknown or out of range.
        """
        default = sample_options(self.config)
        names = [field.name for field in dataclasses.fields(default)]
        for name in given:
            if name not in names:
                raise UserError(f"there is no option {name!r}: the options are {', '.join(names)}")
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
        """Samples one image for each class given.

        Args:
          classes: N classes, by index or by name.
          seed: seed of all draws.
          batch_size: images sampled at once; the decode loop is compiled once for each batch size.
          on_batch: called with n after each batch of n images.
          options: fields of `sampling.options.Options`; the config's values are the defaults.

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
    mesh = make_mesh((jax.local_device_count(), 1), jax.local_devices())
    # bfloat16 is faster on accelerators; on a CPU its matrix products are many times slower than float32's.
    dtype = "float32" if jax.default_backend() == "cpu" else None
    weights = load_weights(checkpoint, "rar", step, replicated(mesh), dtype)
    config = weights.config
    if tokenizer is None:
        images = load_tokenizer(config)
    else:
        images, config = tokenizer_for(config, tokenizer)
    if images is None:
        raise UserError(f"{checkpoint} comes without a tokenizer: name one with --tokenizer=WEIGHTS")
    sampler = Sampler(weights.model, weights.params, mesh)
    return Generator(config, weights.step, weights.identity, sampler, images, class_names(weights.config))
