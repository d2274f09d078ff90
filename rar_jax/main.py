"""Trains: python -m rar_jax.main --config=configs/digits.py --workdir=FOLDER [--config.FIELD=VALUE ...]."""

import os
import sys

from absl import flags
from etils import epath
from ml_collections import config_flags

from rar_jax.commands import cli
from rar_jax.commands.compilation_cache import keep_compiled_programs
from rar_jax.config import from_config_dict
from rar_jax.errors import UserError
from rar_jax.parallel import distributed
from rar_jax.training import loop
from rar_jax.training.preemption import NonFiniteError, Preemption
from rar_jax.training.run import prepare

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; a run found there goes on. By default runs/NAME.")
_ALLOW = flags.DEFINE_multi_string(
    "allow_config_change", [], "A field that may differ from the run so far although it changes what is trained."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of the first of several processes; by default the environment says it."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many train together.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0)


def main(argv):
    del argv
    keep_compiled_programs()
    with cli.user_errors():
        if _CONFIG.value is None:
            raise UserError("name an experiment with --config=configs/NAME.py")
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        if not epath.Path(file).exists():
            raise UserError(f"--config={file}: there is no such file")
        config = from_config_dict(_CONFIG.value)
    if config.train.deterministic:
        # Before there is a backend.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    with cli.user_errors():
        distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with distributed.ending_at_once(), Preemption() as preemption:
        with cli.user_errors():
            run = prepare(config, epath.Path(_WORKDIR.value or f"runs/{config.name}"), _ALLOW.value)
        with cli.user_errors():
            try:
                complete = loop.train(run, preemption)
            except (NonFiniteError, OSError) as error:
                cli.fail(error, cli.FAILURE)
    if not complete:
        sys.exit(cli.PREEMPTED)


if __name__ == "__main__":
    cli.run(main)
