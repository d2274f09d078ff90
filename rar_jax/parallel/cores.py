"""The CPU cores of this process."""

import os


def usable_cores() -> int:
    """Returns the number of cores that this process may use. Where the system does not tell (macOS), all count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
