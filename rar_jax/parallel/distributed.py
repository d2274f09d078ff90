"""Several processes that train together: how they find each other, agree, and end."""

import contextlib
import glob
import importlib.util
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from rar_jax.errors import UserError

# A process that sends no sign of life for so long is dead, and the others end. JAX's own default is 100.
_HEARTBEAT_SECONDS = 30
# Of an error that the others are told.
_LONGEST_MESSAGE = 1000


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Finds the other processes, before anything else asks JAX for devices; does nothing where there are none.

    Of several only the first logs what is not a warning.

    Without arguments the environment says who they are: that of Slurm's srun, of Open MPI 4's mpirun, or of a Cloud TPU
    (also on GKE), as `jax.distributed.initialize` reads it. There JAX takes one GPU a process.

    Args:
      coordinator_address: host:port that process 0 listens on and all reach.
      num_processes: of them; 1 also keeps JAX from looking at the environment.
      process_id: of this one, from 0.

    Raises:
      UserError: the arguments do not go together, or the others were not found.
    """
    if num_processes == 1 and process_id in (None, 0):
        return
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if not _in_a_cluster():
            return
    elif missing:
        raise UserError(f"{missing[0]} is missing: --coordinator_address, --num_processes and --process_id go together")
    elif not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} must be from 0 to below --num_processes={num_processes}")
    elif not coordinator_address.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator_address={coordinator_address} must be host:port")
    else:
        # Else Slurm's environment, where there is one, would choose a GPU.
        given["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except RuntimeError as error:
        told = {name: value for name, value in given.items() if value is not None}
        raise UserError(
            f"the processes did not find each other ({told or 'as the environment says'}): is each of them started, "
            f"and the first one's address and port reachable and free? {error}"
        ) from None
    if not is_first():
        logging.getLogger("rar_jax").setLevel(logging.WARNING)


def _in_a_cluster() -> bool:
    """Whether the environment is one that `jax.distributed.initialize` understands, with several processes."""
    if "SLURM_STEP_NODELIST" in os.environ:
        return int(os.environ.get("SLURM_NTASKS", 1)) > 1
    if "OMPI_MCA_orte_hnp_uri" in os.environ:
        return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Within it, one process of several that fails is gone at once.

    At its exit JAX would wait for the others, which wait for its part of a computation. So they are told, at the latest
    when its heartbeats are missed.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except SystemExit as error:
        _leave(error.code)
    except Exception as error:
        traceback.print_exc()
        who = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"error: {who} ends: {error}\nIf another one ended before, its log says why.", file=sys.stderr)
        _leave(1)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it, each process does its own part: where one raises a `UserError` or an `OSError`, all raise.

    Without it the others would wait for that one. The part must not need the others, or all of them must need each
    other alike.

    Raises:
      UserError: another process failed; says which and why.
    """
    if jax.process_count() == 1:
        yield
        return
    failed = None
    try:
        yield
    except (ValueError, OSError) as error:
        failed = error
    message = np.zeros(_LONGEST_MESSAGE, np.uint8)
    if failed is not None:
        text = (str(failed) or type(failed).__name__).encode()[:_LONGEST_MESSAGE]
        message[: len(text)] = np.frombuffer(text, np.uint8)
    messages = multihost_utils.process_allgather(message)
    if failed is not None:
        raise failed
    for process, theirs in enumerate(messages):
        if theirs.any():
            raise UserError(f"process {process}: {bytes(theirs[theirs > 0]).decode(errors='replace')}")


def from_first(value: Any) -> Any:
    """The first process's value, a JSON one, in all: what each reads itself of a shared folder may be out of date."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    message = np.zeros(length, np.uint8)
    if is_first():
        message[:] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(message))))


def is_first() -> bool:
    """Whether this process writes the files that there are one of, and speaks for all."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
