import collections
import concurrent.futures
import dataclasses
import errno
import io
import json
import os
import resource
import threading
import time
from unittest import mock

import numpy as np
import pytest
from array_record.python import array_record_module
from etils import epath

from rar_jax.data import records as records_module
from rar_jax.data.records import Description, SyntheticRecords, TokenRecords, write_records
from rar_jax.errors import UserError

DESCRIBED = Description(
    grid_side=3, codebook_size=1024, class_names=("cat", "dog", "newt"), tokenizer="a tokenizer", source="a test"
)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(1024, size=(25, 9)), rng.integers(3, size=25)
    tokens[0, 0] = 1023
    return tokens, labels


@pytest.fixture
def folder(tmp_path, images):
    write_records(tmp_path, zip(*images, strict=True), DESCRIBED, shard_size=10)
    return tmp_path


def test_round_trip_in_any_order(folder, images):
    records = TokenRecords(folder)
    assert records.num_images == records.num_records == 25
    assert records.description.class_names == ("cat", "dog", "newt")
    assert list(records.description.shards.values()) == [10, 10, 5]
    indices = np.array([24, 0, 9, 10, 19, 20, 0, 3])
    batch = records.read(indices)
    assert batch["tokens"].dtype == batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["tokens"], images[0][indices])
    np.testing.assert_array_equal(batch["label"], images[1][indices])


def test_a_full_disk_leaves_no_part_of_a_shard(tmp_path, images):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError) as failed:
            write_records(tmp_path, zip(*images, strict=True), DESCRIBED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG and failed.value.filename == str(tmp_path / "tokens-00000.array_record")
    assert [*tmp_path.iterdir()] == []


class SlowReader(array_record_module.ArrayRecordReader):
    """Lets other threads run between seeking and reading."""

    def seek(self, place):
        super().seek(place)
        time.sleep(1e-6)


def test_several_threads_can_read_at_once(folder, images, monkeypatch):
    monkeypatch.setattr(array_record_module, "ArrayRecordReader", SlowReader)
    records = TokenRecords(folder)

    def read(seed):
        for _ in range(20):
            indices = np.random.default_rng(seed).integers(25, size=16)
            np.testing.assert_array_equal(records.read(indices)["tokens"], images[0][indices])

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        # Fetching the results raises the errors of the threads.
        list(threads.map(read, range(4)))


@pytest.mark.parametrize(("tokens", "label"), [([1024] * 9, 0), ([-1] * 9, 0), ([0] * 9, 3), ([0] * 9, -1)])
def test_codes_and_labels_out_of_range_are_not_written(tmp_path, tokens, label):
    with pytest.raises(UserError, match=r"is not in 0\.\."):
        write_records(tmp_path, [(np.array(tokens), label)], DESCRIBED)
    with pytest.raises(UserError, match=r"no dataset\.json"):
        TokenRecords(tmp_path)


def test_a_record_holds_the_crops_of_an_image(tmp_path):
    crops = np.random.default_rng(0).integers(1024, size=(7, 3, 9))
    described = dataclasses.replace(DESCRIBED, crops_per_image=3)
    described = write_records(tmp_path, [(crop, 1) for crop in crops], described)
    assert (described.num_images, described.crops_per_record) == (7, 3)
    records = TokenRecords(tmp_path)
    assert (records.num_images, records.num_records, records.crops_per_record) == (7, 7, 3)
    np.testing.assert_array_equal(
        records.read(np.array([6, 2]), np.array([0, 2]))["tokens"], [crops[6, 0], crops[2, 2]]
    )
    assert (tmp_path / "tokens-00000.array_record").stat().st_size >= 7 * (4 + 3 * 9 * 2)
    # Little-endian int32 label, then the crops as uint16.
    expected = np.int32(1).astype("<i4").tobytes() + crops[0].astype("<u2").tobytes()
    assert expected in (tmp_path / "tokens-00000.array_record").read_bytes()


def test_separate_crops_are_a_record_each(tmp_path, images):
    described = dataclasses.replace(DESCRIBED, crops_per_image=10, crops_together=False)
    described = write_records(tmp_path, zip(*images, strict=True), described)
    records = TokenRecords(tmp_path)
    assert (described.num_images, records.num_records, records.crops_per_record) == (2, 25, 1)


def test_codes_that_do_not_fit_are_not_written(tmp_path):
    with pytest.raises(UserError, match="codebook of 65537 codes does not fit"):
        write_records(tmp_path, [(np.zeros(9, int), 0)], dataclasses.replace(DESCRIBED, codebook_size=65_537))
    with pytest.raises(UserError, match=r"shape \(1, 1\) must be of shape \(1, 9\)"):
        write_records(tmp_path, [(np.zeros(1, int), 0)], DESCRIBED)


def test_the_error_names_the_shard_of_a_damaged_record(folder, images):
    path = folder / "tokens-00001.array_record"
    data = bytearray(path.read_bytes())
    needle = images[0][13].astype("<u2").tobytes()
    data[data.index(needle)] ^= 1
    path.write_bytes(data)
    records = TokenRecords(folder)
    np.testing.assert_array_equal(records.read(np.array([3]))["tokens"], images[0][[3]])
    with pytest.raises(UserError, match=r"record 3 of shard .*tokens-00001.*cannot be read"):
        records.read(np.arange(25))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 1023}, r"record 0 of shard .*tokens-00000\S* has code 1023, which is not in 0\.\.1022"),
        (
            {"class_names": ["cat"]},
            r"record 0 of shard .*tokens-00001\S* has label 2, which is not in 0\.\.0, the range that dataset",
        ),
    ],
)
def test_a_record_out_of_range_is_refused(tmp_path, changes, message):
    """Another program may have written the records, or a user may have edited `dataset.json`."""
    tokens, labels = np.zeros((25, 9), int), np.zeros(25, int)
    tokens[0, 4], labels[10] = 1023, 2
    write_records(tmp_path, zip(tokens, labels, strict=True), DESCRIBED, shard_size=10)
    fields = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(fields | changes))
    records = TokenRecords(tmp_path)
    np.testing.assert_array_equal(records.read(np.array([24, 1, 9]))["label"], [0, 0, 0])
    with pytest.raises(UserError, match=message):
        records.read(np.array([24, 10, 0, 9]))


def test_a_negative_label_is_refused(folder):
    """Another program may write a label that the format does not allow."""
    writer = array_record_module.ArrayRecordWriter(str(folder / "tokens-00002.array_record"), "group_size:1")
    for label in (0, 1, 2, -1, 0):
        writer.write(np.int32(label).astype("<i4").tobytes() + bytes(9 * 2))
    writer.close()
    with pytest.raises(UserError, match=r"record 3 of shard .*tokens-00002\S* has label -1, which is not in 0\.\.2"):
        TokenRecords(folder).read(np.arange(25))


@pytest.mark.parametrize("fits", [True, False])
def test_reading_ahead_reads_files_that_fit_half_of_the_memory(folder, images, monkeypatch, fits):
    """A mock replaces the thread. The test calls the function that the thread would run."""
    records, read = TokenRecords(folder), collections.Counter()
    sizes = {path: path.stat().length for path in epath.Path(folder).glob("*.array_record")}
    memory = {"SC_PAGE_SIZE": 2, "SC_PHYS_PAGES": sum(sizes.values()) - (not fits)}

    class File(io.FileIO):
        def read(self, size):
            data = super().read(size)
            read[self.name] += len(data)
            return data

    thread = mock.Mock()
    monkeypatch.setattr(threading, "Thread", thread)
    monkeypatch.setattr(os, "sysconf", memory.get)
    monkeypatch.setattr(type(epath.Path()), "open", lambda path, mode: File(path))
    monkeypatch.setattr(records_module, "_SEQUENTIAL_READ", 50_000)
    records.read_ahead()
    assert not read and thread.call_count == fits
    if fits:
        thread.return_value.start.assert_called_once()
        thread.call_args.kwargs["target"]()
        assert read == sizes
    np.testing.assert_array_equal(records.read(np.arange(25))["tokens"], images[0])


def test_no_images(tmp_path):
    with pytest.raises(UserError, match="no images in a test"):
        write_records(tmp_path, [], DESCRIBED)


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"no token records in .*no dataset\.json"):
        TokenRecords(tmp_path)


def test_garbled_description(folder):
    (folder / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json does not describe"):
        TokenRecords(folder)


def test_a_description_that_does_not_match_its_shards(folder):
    fields = json.loads((folder / "dataset.json").read_text())
    for changes in (
        {"num_images": 26},
        {"num_images": 0},
        {"shards": {}},
        {"crops_per_image": 2, "crops_together": False},
    ):
        (folder / "dataset.json").write_text(json.dumps(fields | changes))
        with pytest.raises(UserError, match=r"dataset\.json says \d+ images"):
            TokenRecords(folder)


def test_missing_shard(folder):
    (folder / "tokens-00001.array_record").unlink()
    with pytest.raises(UserError, match=r"shard .*tokens-00001"):
        TokenRecords(folder)


def test_truncated_shard(folder):
    path = folder / "tokens-00001.array_record"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"shard .*tokens-00001"):
        TokenRecords(folder)


def test_shard_with_fewer_records_than_described(folder):
    description = json.loads((folder / "dataset.json").read_text())
    description["shards"]["tokens-00002.array_record"] = 6
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"holds 5 records, but dataset\.json says 6"):
        TokenRecords(folder)


def test_a_synthetic_image_depends_on_its_number_alone():
    records = SyntheticRecords(1_281_167, 0, 256, 1024, 1000)
    batch = records.read(np.array([5, 1_000_000]))
    assert batch["tokens"].shape == (2, 256) and batch["tokens"].max() < 1024
    np.testing.assert_array_equal(records.read(np.array([1_000_000]))["tokens"][0], batch["tokens"][1])
    heldout = SyntheticRecords(1_281_167, 1, 256, 1024, 1000).read(np.array([5]))
    assert (heldout["tokens"][0] != batch["tokens"][0]).any()


def test_records_on_a_bucket_are_refused_and_the_error_says_how_to_mount_it():
    message = r"gs://bucket/tokens: .* gcsfuse --implicit-dirs bucket /mnt/bucket, and use /mnt/bucket/tokens$"
    with pytest.raises(UserError, match=message):
        TokenRecords("gs://bucket/tokens")
