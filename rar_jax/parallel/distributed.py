"""Connects the processes of a distributed run, exchanges messages between them, and ends them together."""

import contextlib
import glob
import importlib.util
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from rar_jax.errors import UserError

# A process that sends no heartbeat for this long counts as dead, and the others end. JAX's default is 100.
_HEARTBEAT_SECONDS = 30
# Bytes of a message that one process sends to the others.
_LONGEST_MESSAGE = 1000
# First character of the message about a failure. It says whether a user can mend the failure.
_MENDABLE, _DEFECT = "u", "d"


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects this process with the others; does nothing if it is alone. JAX must not have been used before.

    Only the first process logs messages below the level of a warning.

    Without arguments the processes are found by the environment of Slurm's srun, of Open MPI 4's mpirun, or of a Cloud
    TPU (also on GKE), as `jax.distributed.initialize` reads it. JAX then uses one GPU per process.

    Args:
      coordinator_address: host:port that process 0 listens on and all processes reach.
      num_processes: number of processes; with 1 the environment is ignored.
      process_id: number of this process, from 0.

    Raises:
      UserError: only some of the arguments are given or one is out of range, or the other processes were not found.
    """
    if num_processes == 1 and process_id in (None, 0):
        return
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if not _in_a_cluster():
            return
    elif missing:
        raise UserError(
            f"{missing[0]} is missing: --coordinator_address, --num_processes and --process_id must be given together"
        )
    elif not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} must be from 0 to below --num_processes={num_processes}")
    elif not re.fullmatch(r".+:\d+", coordinator_address):
        raise UserError(f"--coordinator_address={coordinator_address} must be host:port")
    else:
        # Otherwise JAX would take the choice of GPUs from Slurm's environment.
        given["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    # JAX raises all of these: a process is missing, nothing describes the others, a cloud's server does not answer.
    except (RuntimeError, ValueError, OSError) as error:
        used = {name: value for name, value in given.items() if value is not None}
        alone = "" if used else ", or train in this process alone with --num_processes=1"
        raise UserError(
            f"the processes did not find each other ({used or 'settings from the environment'}): check that all "
            f"are started, and that the address of the first one is reachable and its port free{alone}. {error}"
        ) from None
    if not is_first():
        logging.getLogger("rar_jax").setLevel(logging.WARNING)


def _in_a_cluster() -> bool:
    """Returns whether the environment describes several processes, as `jax.distributed.initialize` reads it."""
    if "SLURM_STEP_NODELIST" in os.environ:
        return int(os.environ.get("SLURM_NTASKS", 1)) > 1
    if "OMPI_MCA_orte_hnp_uri" in os.environ:
        return int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Ends this process at once if the body fails and there are several processes.

    At a regular exit, JAX would wait for the other processes, which wait for this process's part of a computation. The
    other processes notice the end at the latest when this process sends no more heartbeats.
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
        print(f"error: {who} ends: {error}\nIf another process ended earlier, its log says why.", file=sys.stderr)
        _leave(1)


def _leave(code: int) -> NoReturn:
    """Ends this process without JAX's regular shutdown."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Makes all processes fail if the body fails in one of them, so that the others do not wait for it.

    The body must communicate with no other process, or make the same calls in all of them.

    Raises:
      Exception: the body's own exception, in the processes where it failed.
      UserError: another process failed with a `UserError` or an `OSError`; the message names the process.
      RuntimeError: another process failed with any other exception; the message names the process.
    """
    failed, message = None, ""
    try:
        yield
    except Exception as error:
        failed = error
        mendable = isinstance(error, (UserError, OSError))
        text = str(error) if mendable else f"{type(error).__name__}: {error}"
        message = (_MENDABLE if mendable else _DEFECT) + (text or type(error).__name__)
    messages = from_all(message)
    if failed is not None:
        raise failed
    for process, text in enumerate(messages):
        if text:
            kind = UserError if text[0] == _MENDABLE else RuntimeError
            raise kind(f"process {process}: {text[1:]}")


def from_all(text: str) -> list[str]:
    """Returns every process's text, cut to 1000 bytes, in the order of the processes. All processes must call this."""
    if jax.process_count() == 1:
        return [text]
    message = np.zeros(_LONGEST_MESSAGE, np.uint8)
    # File names can contain bytes that are not valid text.
    data = text.encode(errors="backslashreplace")[:_LONGEST_MESSAGE]
    message[: len(data)] = np.frombuffer(data, np.uint8)
    return [bytes(each[each > 0]).decode(errors="replace") for each in multihost_utils.process_allgather(message)]


def check_equal(what: str, value: str) -> None:
    """Checks that a short text, such as the digest of a file, is the same in all processes, which must all call this.

    Raises:
      UserError: it is not.
    """
    if len(set(from_all(value))) > 1:
        raise UserError(f"{what} is not the same on all hosts: give each host the same")


def from_first(value: Any) -> Any:
    """Returns the first process's JSON value in all processes.

    Decisions that depend on a shared folder need this, because other processes may see an outdated state of the folder.
    """
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    message = np.zeros(length, np.uint8)
    if is_first():
        message[:] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(message))))


def is_first() -> bool:
    """Returns whether this is process 0, which writes the shared files and logs for all processes."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process has called this with the same name.

    Args:
      what: name of this point in the program.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
