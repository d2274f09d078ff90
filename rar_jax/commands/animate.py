"""Draws samples as they appear, pass by pass of the network, as an animation.

    python -m rar_jax animate --checkpoint=runs/digits --classes=3,7 --format=webp

The images are those of the command sample with the same flags. They can differ by rounding, because the batch has
another size.
"""

from absl import flags

from rar_jax.commands import cli, shared_flags
from rar_jax.generate import load
from rar_jax.generation.animation import animate
from rar_jax.generation.pictures import choose_labels, samples_folder

_CHECKPOINT = shared_flags.define_checkpoint()
_TOKENIZER = shared_flags.define_model_tokenizer()
_STEP = shared_flags.define_step()
_OUT = shared_flags.define_out("animation")
_FORMAT = flags.DEFINE_enum("format", "gif", ("gif", "webp"), "Format of the animation.")
_CLASSES = shared_flags.define_classes("ten evenly spaced ones. The first four are shown")
_SEED = shared_flags.define_seed()
_OPTIONS = shared_flags.define_options()


def main(argv):
    del argv
    cli.keep_compiled_programs()
    out = shared_flags.results_folder(_CHECKPOINT.value, _OUT.value, samples_folder)
    given = _OPTIONS()
    generator = load(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
    labels, options = choose_labels(generator, _CLASSES.value), generator.options(**given)
    generator.warn_if_not_trained(options)
    path = out / f"animation.{_FORMAT.value}"
    shown = animate(generator, labels, options, path, seed=_SEED.value)
    print(f"{path}: {shown} images appear pass by pass, in the order {options.scan_order}")
