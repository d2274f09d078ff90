"""Keeps track of a set of token records while it is written: the finished shards, and what was left out of them."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from rar_jax.data.records import (
    DESCRIPTION,
    Description,
    ShardWriter,
    check_local,
    read_description,
    shard_name,
    write_description,
)
from rar_jax.errors import UserError
from rar_jax.files import hold_to_plan, printable, write_atomically
from rar_jax.run_folder import lock

REJECTED = "rejected.txt"
# Holds the plan and the reports while shards are missing. Removed when the set is complete.
_MAKING = "making"
_PLAN = "plan.json"


class ShardedOutput:
    """A folder that several processes may fill with token records, each with its own shards. The work can resume.

    A finished shard has its final name and a report of what it holds and what was left out. The report is written
    first, so that a shard with its final name always has a report.

    Attributes:
      made: the description of the set if it was already complete, else None.
    """

    def __init__(self, folder: epath.PathLike, plan: Mapping[str, Any]):
        """Starts a set, or resumes one that was started with the same plan.

        Args:
          folder: folder of the records. It is made if it does not exist.
          plan: everything that decides which records a shard holds; JSON values.

        Raises:
          UserError: the folder has a set with another plan, holds other files, or is on a bucket.
        """
        check_local(folder)
        self._folder = epath.Path(folder)
        self._making = self._folder / _MAKING
        # A round trip through JSON, so that it compares equal to a plan that is read from a file.
        self._plan = plan = json.loads(json.dumps(plan))
        self.made = self._made()
        plan_file = self._making / _PLAN
        if self.made is not None:
            earlier = self.made.plan
        elif plan_file.exists():
            earlier = json.loads(plan_file.read_text())
        else:
            if self._folder.exists() and any(path.name != _MAKING for path in self._folder.iterdir()):
                raise UserError(f"--output={folder} holds other files: choose another folder")
            self._making.mkdir(parents=True, exist_ok=True)
            write_atomically(plan_file, json.dumps(plan, indent=2))
            earlier = plan
        hold_to_plan("output", folder, earlier, plan)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes out, for work that none shares.

        If the body raises before a shard is finished, other settings can be tried in the same folder.

        Raises:
          UserError: another process works in the folder.
        """
        with lock(self._making, "process", "writes records"):
            try:
                yield
            except BaseException:
                if not any(self._making.glob("tokens-*")):
                    self._remove_unfinished()
                raise

    def _remove_unfinished(self) -> None:
        # Processes that finish together may all do this, and on NFS a lock that is still held cannot be removed.
        with contextlib.suppress(OSError):
            self._making.rmtree()
        for leftover in self._folder.glob("tokens-*.partial"):
            leftover.unlink(missing_ok=True)

    def _made(self) -> Description | None:
        return read_description(self._folder) if (self._folder / DESCRIPTION).exists() else None

    def report(self, shard: int) -> dict[str, Any] | None:
        """Returns the report that `finish` wrote for a shard, or None if the shard is not finished."""
        file = self._report_file(shard)
        if not file.exists():
            return None
        report = json.loads(file.read_text())
        return report if not report["num_records"] or (self._folder / shard_name(shard)).exists() else None

    def open(self, shard: int, description: Description) -> ShardWriter:
        """Opens a writer for one shard."""
        return ShardWriter(self._folder / shard_name(shard), description)

    def finish(self, shard: int, writer: ShardWriter, rejected: Sequence[tuple[str, str]], **more: Any) -> None:
        """Puts a shard and its report in place.

        Args:
          shard: its number.
          writer: its writer.
          rejected: the name of each item that was left out, and the reason.
          more: further fields for the report; JSON values.
        """
        report = {"num_records": writer.num_records, "rejected": list(rejected)} | more
        write_atomically(self._report_file(shard), json.dumps(report))
        if writer.num_records:
            writer.close()

    def complete(self, num_shards: int, description: Description) -> Description | None:
        """Writes the description of the set if all its shards are finished. The process that finishes last does this.

        Args:
          num_shards: number of shards in the whole set.
          description: describes the records, without their shards.

        Returns:
          The description that was written, or None if other processes are still at work.

        Raises:
          UserError: the shards hold too few records for one image.
        """
        try:
            reports = [self.report(shard) for shard in range(num_shards)]
        except FileNotFoundError:  # Another process has just completed the set.
            reports = [None]
        if None in reports:
            return self._made()
        shards = {shard_name(i): report["num_records"] for i, report in enumerate(reports) if report["num_records"]}
        rejected = [f"{printable(name)}\t{reason}\n" for report in reports for name, reason in report["rejected"]]
        if rejected:
            write_atomically(self._folder / REJECTED, "".join(rejected))
        made = description.completed(shards, self._plan)
        if not made.num_images:
            raise UserError(
                f"{made.source} has {sum(shards.values())} usable records, too few for an image of "
                f"{made.crops_per_image} crops"
                + (f": see {self._folder / REJECTED}" if rejected else "")
                + "; choose another --output, or remove this one, once there are more"
            )
        write_description(self._folder, made)
        self._remove_unfinished()
        return made

    def _report_file(self, shard: int) -> epath.Path:
        return self._making / f"{shard_name(shard)}.json"
