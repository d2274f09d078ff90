import json

import numpy as np
import pytest

from rar_jax.data.jsonl import import_jsonl
from rar_jax.data.records import TokenRecords
from rar_jax.errors import UserError

OPTIONS = {"grid_side": 3, "codebook_size": 24, "class_names": ("cat", "dog", "newt")}


@pytest.fixture
def lines():
    rng = np.random.default_rng(0)
    return [{"class_id": int(rng.integers(3)), "tokens": rng.integers(24, size=9).tolist()} for _ in range(25)]


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def everything(folder):
    records = TokenRecords(folder)
    return records.read(np.arange(records.num_records))


def test_lines_become_records(tmp_path, lines):
    made = import_jsonl(write(tmp_path / "t.jsonl", lines), tmp_path / "out", shard_size=10, **OPTIONS)
    assert list(made.shards.values()) == [10, 10, 5] and made.num_images == 25
    batch = everything(tmp_path / "out")
    np.testing.assert_array_equal(batch["tokens"], [line["tokens"] for line in lines])
    np.testing.assert_array_equal(batch["label"], [line["class_id"] for line in lines])
    assert TokenRecords(tmp_path / "out").description == made
    assert not (tmp_path / "out" / "making").exists() and not (tmp_path / "out" / "rejected.txt").exists()


def test_an_image_of_ten_crops_is_ten_lines(tmp_path, lines):
    made = import_jsonl(write(tmp_path / "t.jsonl", lines), tmp_path / "out", crops_per_image=10, **OPTIONS)
    assert (made.num_images, made.crops_per_image, made.crops_together) == (2, 10, False)
    assert made.tokenizer == "unknown"


BAD = [
    ({"class_id": 0, "tokens": [0] * 8}, r"codes of shape \(1, 8\) must be of shape \(1, 9\)"),
    ({"class_id": 0, "tokens": [0] * 8 + [24]}, r"code 24 is not in 0\.\.23"),
    ({"class_id": 0, "tokens": [0] * 8 + [-1]}, r"code -1 is not in 0\.\.23"),
    ({"class_id": 3, "tokens": [0] * 9}, r"label 3 is not in 0\.\.2"),
    ({"class_id": "cat", "tokens": [0] * 9}, "\"class_id\" 'cat' must be an integer"),
    ({"class_id": 0, "tokens": [0.5] * 9}, '"tokens" must be a list of integers'),
    ({"class_id": 0, "tokens": [[1], 2]}, '"tokens" must be a list of integers'),
    ({"class_id": 0, "tokens": [0] * 8 + [True]}, '"tokens" must be a list of integers'),
    ({"class_id": 0, "tokens": [False] * 9}, '"tokens" must be a list of integers'),
    ({"class_id": True, "tokens": [0] * 9}, '"class_id" True must be an integer'),
    ({"class_id": 0, "tokens": [2**70] * 9}, '"tokens" must be a list of integers'),
    ({"class_id": 0}, 'must have "class_id" and "tokens"'),
    ("[1, 2]", 'must have "class_id" and "tokens"'),
    ('{"class_id": 0, "tok', "it is not JSON"),
    ("", "it is not JSON"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_the_error_names_a_malformed_line(tmp_path, lines, line, message):
    path = write(tmp_path / "t.jsonl", [*lines[:12], line, *lines[12:]])
    with pytest.raises(UserError, match=rf"t\.jsonl, line 13: .*{message}"):
        import_jsonl(path, tmp_path / "out", shard_size=10, **OPTIONS)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_malformed_lines_can_be_left_out(tmp_path, lines):
    path = write(tmp_path / "t.jsonl", [*lines[:12], *(line for line, _ in BAD), *lines[12:]])
    import_jsonl(path, tmp_path / "out", shard_size=10, skip_bad=True, **OPTIONS)
    np.testing.assert_array_equal(everything(tmp_path / "out")["tokens"], [line["tokens"] for line in lines])
    rejected = (tmp_path / "out" / "rejected.txt").read_text().splitlines()
    assert len(rejected) == len(BAD)
    assert rejected[1] == f"{path}, line 14\tcode 24 is not in 0..23"


def test_a_last_line_that_is_cut_off_is_not_lost_silently(tmp_path, lines):
    path = write(tmp_path / "t.jsonl", lines)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="line 25: it is not JSON"):
        import_jsonl(path, tmp_path / "out", **OPTIONS)


def test_it_resumes_at_the_first_unfinished_shard(tmp_path, lines):
    path = write(tmp_path / "t.jsonl", lines)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] + b"?" * 10)
    with pytest.raises(UserError, match="line 25"):
        import_jsonl(path, tmp_path / "out", shard_size=10, **OPTIONS)
    first = tmp_path / "out" / "tokens-00000.array_record"
    before = first.stat()
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"was started with shard_size=10, not 11: use the same settings"):
        import_jsonl(path, tmp_path / "out", shard_size=11, **OPTIONS)
    import_jsonl(path, tmp_path / "out", shard_size=10, **OPTIONS)
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    np.testing.assert_array_equal(everything(tmp_path / "out")["tokens"], [line["tokens"] for line in lines])
    written = tmp_path / "out" / "dataset.json"
    before = (written.stat().st_ino, written.stat().st_mtime_ns)
    assert import_jsonl(path, tmp_path / "out", shard_size=10, **OPTIONS).num_images == 25
    assert (written.stat().st_ino, written.stat().st_mtime_ns) == before
    with pytest.raises(UserError, match=r"was started with crops_per_image=1, not 5"):
        import_jsonl(path, tmp_path / "out", shard_size=10, crops_per_image=5, **OPTIONS)
    with pytest.raises(UserError, match=r"was started with classes="):
        import_jsonl(path, tmp_path / "out", shard_size=10, **OPTIONS | {"class_names": ("cat", "dog", "eft")})


def test_bad_lines_can_be_left_out_when_the_import_resumes(tmp_path, lines):
    path = write(tmp_path / "t.jsonl", [*lines[:12], "?", *lines[12:]])
    with pytest.raises(UserError, match="line 13: it is not JSON; --skip_bad leaves such lines out"):
        import_jsonl(path, tmp_path / "out", shard_size=10, **OPTIONS)
    assert import_jsonl(path, tmp_path / "out", shard_size=10, skip_bad=True, **OPTIONS).num_images == 25


def test_an_overlong_line_counts_as_one_line(tmp_path, lines):
    long = " " * 2**20 + json.dumps(lines[0])
    path = write(tmp_path / "t.jsonl", [lines[0], long, lines[1], "?"])
    import_jsonl(path, tmp_path / "out", skip_bad=True, **OPTIONS)
    assert everything(tmp_path / "out")["tokens"].tolist() == [lines[0]["tokens"], lines[1]["tokens"]]
    rejected = (tmp_path / "out" / "rejected.txt").read_text().splitlines()
    assert [line.split("\t")[0].rsplit(" ", 1)[1] for line in rejected] == ["2", "4"]


def test_unusable_files_and_folders_are_refused(tmp_path, lines):
    with pytest.raises(UserError, match="there is no such file"):
        import_jsonl(tmp_path / "t.jsonl", tmp_path / "out", **OPTIONS)
    with pytest.raises(UserError, match=r"empty\.jsonl has no lines"):
        import_jsonl(write(tmp_path / "empty.jsonl", []), tmp_path / "out", **OPTIONS)
    with pytest.raises(UserError, match="has 25 usable records, too few for an image of 30 crops"):
        import_jsonl(write(tmp_path / "t.jsonl", lines), tmp_path / "few", crops_per_image=30, **OPTIONS)
    with pytest.raises(UserError, match=r"has 0 usable records, .*see .*rejected\.txt"):
        import_jsonl(write(tmp_path / "bad.jsonl", ["?"]), tmp_path / "bad", skip_bad=True, **OPTIONS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        import_jsonl(write(tmp_path / "t.jsonl", lines), tmp_path / "mine", **OPTIONS)
