"""Trains: python -m rar_jax.main --config=configs/digits.py --workdir=FOLDER [--config.FIELD=VALUE ...]."""

from absl import flags
from etils import epath
from ml_collections import config_flags

from rar_jax import cli
from rar_jax.config import from_config_dict
from rar_jax.training import loop

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; a run found there goes on. By default runs/NAME.")


def main(argv):
    del argv
    with cli.user_errors():
        if _CONFIG.value is None:
            raise ValueError("name an experiment with --config=configs/NAME.py")
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        if not epath.Path(file).exists():
            raise ValueError(f"--config={file}: there is no such file")
        config = from_config_dict(_CONFIG.value)
        run = loop.prepare(config, epath.Path(_WORKDIR.value or f"runs/{config.name}"))
    loop.train(run)


if __name__ == "__main__":
    cli.run(main)
