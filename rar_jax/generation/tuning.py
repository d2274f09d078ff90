"""Searches for the guidance and temperature with the best score; the search can be stopped and resumed."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from rar_jax.data.tokenizers import decoded
from rar_jax.errors import UserError, naming
from rar_jax.evaluation.features import Extractor, check_scored_labels
from rar_jax.evaluation.report import score_label
from rar_jax.evaluation.sample_scores import ReferenceScorer
from rar_jax.evaluation.scoring import Reference
from rar_jax.generation.cells import measure_cells
from rar_jax.generation.generator import Generator
from rar_jax.images.plots import plot_heat_maps
from rar_jax.sampling.options import Options
from rar_jax.sampling.sampler import interleaved_labels, sample_tokens

FILE = "tuning.jsonl"
PICTURE = "tuning.png"
# Without values for an option, these multiples of the model's default are tried.
_FACTORS = (0.5, 0.75, 1, 1.25, 1.5)


class Setting(NamedTuple):
    """Sampling options that are tried together; see `sampling.options.SampleConfig`."""

    guidance_scale: float
    guidance_power: float
    temperature: float

    def flags(self) -> str:
        """Returns the setting as flags of `python -m rar_jax sample`."""
        return " ".join(f"--{name}={value:g}" for name, value in self._asdict().items())


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Values to try, which are checked before a model is loaded.

    Attributes:
      guidance_scales, guidance_powers: values; if empty, five from 0.5 to 1.5 times the model's default.
      temperatures: values; if empty, only the model's default.
    """

    guidance_scales: Sequence[float] = ()
    guidance_powers: Sequence[float] = ()
    temperatures: Sequence[float] = ()

    def __post_init__(self):
        """Raises a `UserError` that names the flag of a value out of range."""
        for name, values in dataclasses.asdict(self).items():
            for value in values:
                with naming(f"--{name}"):
                    Options(**{name.removesuffix("s"): value})

    def settings(self, options: Options) -> list[Setting]:
        """Returns every combination of the values once, around the options of a model.

        A scale of 1 is no guidance, so that it is combined with one power only.

        Raises:
          UserError: values are given for an option that the model's kind of guidance does not use.
        """
        scales = self._around("guidance_scales", options.guidance_scale, options.guidance != "none", options)
        powers = self._around("guidance_powers", options.guidance_power, options.guidance == "pow_cosine", options)
        values = scales, powers, self.temperatures or [options.temperature]
        settings = [Setting(*each) for each in itertools.product(*(sorted(set(part)) for part in values))]
        return [each for each in settings if each.guidance_scale != 1 or each.guidance_power == min(powers)]

    def _around(self, name: str, default: float, matters: bool, options: Options) -> Sequence[float]:
        """Returns the given values; without any, multiples of the default if the option matters, else the default."""
        values = getattr(self, name)
        if matters:
            return values or [default * factor for factor in _FACTORS]
        if values:
            raise UserError(
                f"--{name}={','.join(f'{value:g}' for value in values)} changes nothing with the run's "
                f"guidance={options.guidance}: remove this flag"
            )
        return [default]


class Tuning(NamedTuple):
    """The results of a search.

    Attributes:
      score: name of the score that the settings are compared by.
      larger_is_better: whether larger scores are better.
      values: the score of each setting.
    """

    score: str
    larger_is_better: bool
    values: dict[Setting, float]

    @property
    def best(self) -> Setting:
        """The setting with the best score."""
        return (max if self.larger_is_better else min)(self.values, key=self.values.get)


def tune(
    generator: Generator,
    reference: Reference,
    extractor: Extractor,
    candidates: Candidates,
    folder: epath.PathLike,
    *,
    score: str | None = None,
    num: int = 5000,
    seed: int = 0,
    batch_size: int = 256,
) -> Tuning:
    """Samples with every setting, scores the samples, and draws heat maps of the scores.

    Args:
      generator: the model. Options that are not tried are its own.
      reference: the statistics or images that samples are compared with.
      extractor: extracts the features that are compared.
      candidates: the values to try.
      folder: folder of tuning.jsonl and tuning.png. A search that was stopped there is resumed.
      score: one of the names of `sample_scores.ReferenceScorer`; by default its first, the Frechet distance.
      num: number of samples for each setting, with interleaved classes.
      seed: seed of the samples of every setting.
      batch_size: number of images decoded at once.

    Raises:
      UserError: a candidate changes nothing, the reference cannot be compared with, there is no such score, or
        `folder` has another search.
    """
    options = generator.options()
    settings = candidates.settings(options)
    scorer = ReferenceScorer(extractor, reference, generator.config.data.image_size)
    score = score or scorer.names[0]
    if score not in scorer.names:
        raise UserError(f"--score={score} must be one of {', '.join(scorer.names)} with --features={extractor.name}")
    labels = interleaved_labels(num, generator.sampler.model.config.num_classes)
    check_scored_labels(extractor, labels)
    fixed = {name: value for name, value in dataclasses.asdict(options).items() if name not in Setting._fields}
    plan = generator.origin | {"images": num, "seed": seed} | fixed
    plan |= {"reference": reference.name, "features": scorer.fingerprint}
    score_setting = functools.partial(_score_setting, generator, scorer, labels, seed, batch_size)
    found = measure_cells(epath.Path(folder) / FILE, plan, settings, num, score_setting)
    values = {setting: scores[score] for setting, scores in found.items()}
    tuning = Tuning(score, score == extractor.class_score, values)
    title = f"{score_label(score)}: {num:,} samples of {generator.config.name}, step {generator.step}, seed {seed}"
    plot_heat_maps(epath.Path(folder) / PICTURE, Setting._fields, tuning.values, tuning.best, title)
    return tuning


def _score_setting(
    generator: Generator,
    scorer: ReferenceScorer,
    labels: np.ndarray,
    seed: int,
    batch_size: int,
    setting: Setting,
    on_batch: Callable[[int], None],
) -> dict[str, float]:
    """Samples with a setting and returns the scores of the samples."""
    # The reference is prepared once, and not at all if every setting is scored already.
    scorer.prepare()
    options = generator.options(**setting._asdict())
    tokens = sample_tokens(generator.sampler, labels, options, seed=seed, batch_size=batch_size, on_batch=on_batch)
    return scorer.score(decoded(generator.tokenizer, tokens), labels)
