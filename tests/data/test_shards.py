import errno
import os

import numpy as np
import pytest

from rar_jax.data.records import Description, TokenRecords
from rar_jax.data.shards import ShardedOutput
from rar_jax.errors import UserError

DESCRIBED = Description(
    grid_side=2, codebook_size=5, class_names=("a", "b"), tokenizer="t", source="images", crops_per_image=1
)
PLAN = {"source": "images", "shard_size": 2}


def write(folder, shard, labels, rejected=()):
    writer = folder.open(shard, DESCRIBED)
    for label in labels:
        writer.write(label, np.full((1, 4), label, np.int32))
    folder.finish(shard, writer, rejected)


def labels_in(path):
    records = TokenRecords(path)
    return records.read(np.arange(records.num_records))["label"].tolist()


def test_processes_fill_a_folder_and_the_last_one_completes_it(tmp_path):
    first, second = ShardedOutput(tmp_path / "out", PLAN), ShardedOutput(tmp_path / "out", PLAN)
    assert first.made is None and first.report(0) is None
    write(first, 0, [0, 1])
    assert first.complete(2, DESCRIBED) is None
    write(second, 1, [1])
    made = second.complete(2, DESCRIBED)
    assert made.num_images == 3
    # Whoever asks later gets the complete set.
    assert first.complete(2, DESCRIBED) == made == ShardedOutput(tmp_path / "out", PLAN).made
    assert labels_in(tmp_path / "out") == [0, 1, 1]
    assert not (tmp_path / "out" / "making").exists()


def test_a_stopped_set_keeps_its_finished_shards_only(tmp_path):
    folder = ShardedOutput(tmp_path / "out", PLAN)
    write(folder, 0, [0, 1])
    folder.open(1, DESCRIBED).write(1, np.ones((1, 4), np.int32))
    resumed = ShardedOutput(tmp_path / "out", PLAN)
    assert resumed.report(0)["num_records"] == 2 and resumed.report(1) is None
    write(resumed, 1, [0])
    assert resumed.complete(2, DESCRIBED).num_images == 3
    assert labels_in(tmp_path / "out") == [0, 1, 0]


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_can_be_tried_until_a_shard_is_finished(tmp_path, finished):
    folder = ShardedOutput(tmp_path / "out", PLAN)
    with pytest.raises(UserError, match="a bad line"), folder.alone():
        if finished:
            write(folder, 0, [0, 1])
        folder.open(1, DESCRIBED).write(1, np.ones((1, 4), np.int32))
        with pytest.raises(UserError, match=rf"process .+:{os.getpid()} writes records there"), folder.alone():
            pass
        raise UserError("a bad line")
    if finished:
        with pytest.raises(UserError, match="was started with shard_size=2, not 3"):
            ShardedOutput(tmp_path / "out", PLAN | {"shard_size": 3})
        assert folder.report(0)["num_records"] == 2
    else:
        assert [*(tmp_path / "out").iterdir()] == []
        assert ShardedOutput(tmp_path / "out", PLAN | {"shard_size": 3}).made is None


def test_a_mistake_is_reported_although_nfs_keeps_the_lock(tmp_path, monkeypatch):
    def rmtree(path, missing_ok=False):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    folder = ShardedOutput(tmp_path / "out", PLAN)
    monkeypatch.setattr(type(folder._making), "rmtree", rmtree)
    with pytest.raises(UserError, match="a bad line"), folder.alone():
        raise UserError("a bad line")


def test_a_report_without_its_shard_is_not_a_finished_shard(tmp_path):
    """A kill between the report and the shard's final name."""
    folder = ShardedOutput(tmp_path / "out", PLAN)
    write(folder, 0, [0, 1])
    (shard,) = (tmp_path / "out").glob("tokens-*")
    shard.unlink()
    assert folder.report(0) is None


def test_what_was_left_out_is_listed(tmp_path):
    """A shard of rejected images alone has no file, and a name of any bytes stays on its line."""
    folder = ShardedOutput(tmp_path / "out", PLAN)
    write(folder, 0, [0], [("a\tb\nc.png", "is empty")])
    write(folder, 1, [], [("d\udcff.png", "is cut short")])
    made = folder.complete(2, DESCRIBED)
    assert made.num_images == 1 and len(list((tmp_path / "out").glob("tokens-*"))) == 1
    lines = (tmp_path / "out" / "rejected.txt").read_text().splitlines()
    assert lines == ["a\\tb\\nc.png\tis empty", "d\\udcff.png\tis cut short"]


def test_a_set_without_an_image_is_refused(tmp_path):
    folder = ShardedOutput(tmp_path / "out", PLAN)
    write(folder, 0, [], [("a.png", "is empty")])
    with pytest.raises(UserError, match=r"0 usable records, .*: see .*rejected\.txt; choose another --output"):
        folder.complete(1, DESCRIBED)


def test_another_plan_and_other_files_are_refused(tmp_path):
    ShardedOutput(tmp_path / "out", PLAN)
    with pytest.raises(UserError, match=r"--output=.*out was started with shard_size=2, not 3"):
        ShardedOutput(tmp_path / "out", PLAN | {"shard_size": 3})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        ShardedOutput(tmp_path / "mine", PLAN)
