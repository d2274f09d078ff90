"""Trains a model, or resumes a run that was stopped.

    python -m rar_jax.main --config=configs/digits.py --workdir=FOLDER [--config.FIELD=VALUE ...]

The exit code is 75 if the run was preempted and saved: the same command resumes it.
"""

from ml_collections import config_flags

from rar_jax.commands import training
from rar_jax.config import from_config_dict
from rar_jax.errors import UserError
from rar_jax.training.run import prepare

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the experiment, such as configs/rar_b.py.")
_TRAIN = training.define_run()


def main(argv):
    del argv
    if _CONFIG.value is None:
        raise UserError("name an experiment with --config=configs/NAME.py")
    _TRAIN(from_config_dict(_CONFIG.value), prepare)
