"""Token records in the making: which shards are finished, and what was left out of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from rar_jax.data.records import DESCRIPTION, Description, ShardWriter, shard_name, write_description
from rar_jax.files import write_atomically

REJECTED = "rejected.txt"
# What is known while shards are missing; removed when the set is complete.
_MAKING = "making"
_PLAN = "plan.json"


class ShardedOutput:
    """A folder of token records that several processes may fill, each its own shards, and that may be gone on with.

    A finished shard has its name and a report of what is in it and what was left out. The report is written first, so
    that a shard in place always has one.
    """

    def __init__(self, folder: epath.PathLike, plan: Mapping[str, Any]):
        """Begins, or goes on with what is there.

        Args:
          folder: made if need be.
          plan: all that decides what goes into which shard; JSON values.

        Raises:
          ValueError: the folder has a finished data set, or was begun with another plan, or holds other things.
        """
        self._folder = epath.Path(folder)
        self._making = self._folder / _MAKING
        plan_file = self._making / _PLAN
        if (self._folder / DESCRIPTION).exists():
            raise ValueError(f"--output={folder} has a complete data set: remove it or choose another folder")
        if self._folder.exists() and not self._making.exists() and any(self._folder.iterdir()):
            raise ValueError(f"--output={folder} holds other things: choose another folder")
        if plan_file.exists():
            begun = json.loads(plan_file.read_text())
            # As it would be read back.
            plan = json.loads(json.dumps(plan))
            if different := [name for name in plan | begun if plan.get(name) != begun.get(name)]:
                raise ValueError(
                    f"--output={folder} was begun with "
                    + ", ".join(f"{name}={begun.get(name)!r}, not {plan.get(name)!r}" for name in different)
                    + ": go on as it was begun, or choose another folder"
                )
        else:
            self._making.mkdir(parents=True, exist_ok=True)
            write_atomically(plan_file, json.dumps(plan, indent=2))

    def report(self, shard: int) -> dict[str, Any] | None:
        """What `finish` was told of a shard, or None if it is not finished."""
        file = self._report_file(shard)
        if not file.exists():
            return None
        report = json.loads(file.read_text())
        return report if not report["num_records"] or (self._folder / shard_name(shard)).exists() else None

    def open(self, shard: int, **options: Any) -> ShardWriter:
        """A writer of one shard; `options` are its."""
        return ShardWriter(self._folder / shard_name(shard), **options)

    def finish(self, shard: int, writer: ShardWriter, rejected: Sequence[tuple[str, str]], **more: Any) -> None:
        """Puts a shard in place.

        Args:
          shard: its number.
          writer: of it.
          rejected: names of what was left out, and why.
          more: to be found in its report; JSON values.
        """
        report = {"num_records": writer.num_records, "rejected": list(rejected)} | more
        write_atomically(self._report_file(shard), json.dumps(report))
        if writer.num_records:
            writer.close()
        else:
            writer.discard()

    def complete(self, num_shards: int, **description: Any) -> Description | None:
        """Describes the set if all its shards are there; whichever process is the last does it.

        Args:
          num_shards: of the whole set.
          description: the fields of `Description` but num_images and shards.

        Returns:
          The description, or None while other processes are at work.

        Raises:
          ValueError: there are no records to describe.
        """
        reports = [self.report(shard) for shard in range(num_shards)]
        if None in reports:
            return None
        shards = {shard_name(i): report["num_records"] for i, report in enumerate(reports) if report["num_records"]}
        rejected = [f"{name}\t{reason}\n" for report in reports for name, reason in report["rejected"]]
        if rejected:
            write_atomically(self._folder / REJECTED, "".join(rejected))
        per_image = 1 if description["crops_together"] else description["crops_per_image"]
        num_images = sum(shards.values()) // per_image
        if not num_images:
            raise ValueError(f"no image of {description['source']} could be used: see {self._folder / REJECTED}")
        made = Description(num_images=num_images, shards=shards, **description)
        write_description(self._folder, made)
        self._making.rmtree(missing_ok=True)
        for leftover in self._folder.glob("*.partial"):
            leftover.unlink(missing_ok=True)
        return made

    def _report_file(self, shard: int) -> epath.Path:
        return self._making / f"{shard_name(shard)}.json"
