"""What the commands that train have in common: the flags of a run, and running it."""

import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from etils import epath

from rar_jax.commands import cli
from rar_jax.parallel import distributed
from rar_jax.training import loop
from rar_jax.training.base_run import BaseRun
from rar_jax.training.preemption import Preemption

# absl then counts these flags as flags of the command, whose --help shows them.
flags.disclaim_key_flags()


def define_run() -> Callable[[Any, Callable[..., BaseRun]], None]:
    """Defines the flags of a run, and returns a function that trains.

    The function takes a config, and the function that sets up a run (`training.run.prepare` or one like it). It ends
    the process with exit code 75 if the run was preempted and saved, and 1 if training cannot continue.
    """
    workdir = flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run. A run that is found there is resumed. Default: runs/NAME, the config's name.",
    )
    allow = flags.DEFINE_multi_string(
        "allow_config_change",
        [],
        "Config field that may differ from the stored config although it changes what is trained, such as "
        "optimizer.learning_rate. May be repeated.",
    )
    coordinator = flags.DEFINE_string(
        "coordinator_address",
        None,
        "Address host:port of the first process. Default: taken from the cluster's environment.",
    )
    processes = flags.DEFINE_integer(
        "num_processes",
        None,
        "Number of processes that train together. Default: taken from the cluster's environment.",
        1,
    )
    process = flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0. Default: taken from the cluster's environment.", 0
    )

    def train(config: Any, prepare: Callable[..., BaseRun]) -> None:
        cli.keep_compiled_programs()
        cli.set_deterministic(config.train.deterministic)
        distributed.initialize(coordinator.value, processes.value, process.value)
        # The errors of users are reported in the inner context, so that one of several processes then ends at once.
        with distributed.ending_at_once(), Preemption() as preemption, cli.user_errors():
            run = prepare(config, epath.Path(workdir.value or f"runs/{config.name}"), allow.value)
            try:
                complete = loop.train(run, preemption)
            except (loop.NonFiniteError, loop.NotSavedError) as error:
                cli.fail(error, cli.FAILURE)
        if not complete:
            sys.exit(cli.PREEMPTED)

    return train
