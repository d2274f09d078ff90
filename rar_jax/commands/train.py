"""Trains a model, or resumes a run that was stopped.

    python -m rar_jax.main --config=configs/digits.py --workdir=FOLDER [--config.FIELD=VALUE ...]

The exit code is 75 if the run was preempted and saved: the same command resumes it.
"""

import os
import sys

from absl import flags
from etils import epath
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.config import from_config_dict
from rar_jax.errors import UserError
from rar_jax.parallel import distributed
from rar_jax.training import loop
from rar_jax.training.preemption import Preemption
from rar_jax.training.run import prepare

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the experiment, such as configs/rar_b.py.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. A run that is found there is resumed. Default: runs/NAME, the config's name."
)
_ALLOW = flags.DEFINE_multi_string(
    "allow_config_change",
    [],
    "Config field that may differ from the stored config although it changes what is trained. May be repeated.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "Address host:port of the first process. Default: taken from the cluster's environment.",
)
_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes that train together. Default: taken from the cluster's environment.", 1
)
_PROCESS = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0. Default: taken from the cluster's environment.", 0
)


def main(argv):
    del argv
    cli.keep_compiled_programs()
    if _CONFIG.value is None:
        raise UserError("name an experiment with --config=configs/NAME.py")
    config = from_config_dict(_CONFIG.value)
    if config.train.deterministic:
        # XLA reads its flags when JAX starts its backend.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    # The errors of users are reported in the inner context, so that one of several processes then ends at once.
    with distributed.ending_at_once(), Preemption() as preemption, cli.user_errors():
        run = prepare(config, epath.Path(_WORKDIR.value or f"runs/{config.name}"), _ALLOW.value)
        try:
            complete = loop.train(run, preemption)
        except (loop.NonFiniteError, loop.NotSavedError) as error:
            cli.fail(error, cli.FAILURE)
    if not complete:
        sys.exit(cli.PREEMPTED)


if __name__ == "__main__":
    cli.run(main)
