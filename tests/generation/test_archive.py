import errno
import os
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT

from rar_jax.evaluation.image_sets import NpzImages, take
from rar_jax.generation.archive import write_npz

SHAPE = (10, 4, 6, 3)
LABELS = np.arange(10) % 7


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=SHAPE, dtype=np.uint8)


def test_the_archive_equals_the_one_that_numpy_writes(images, tmp_path):
    write_npz(tmp_path / "a.npz", SHAPE, np.split(images, [4, 8]), LABELS)
    np.savez(tmp_path / "numpy.npz", arr_0=images, arr_1=LABELS.astype(np.int64))
    with np.load(tmp_path / "a.npz") as ours, np.load(tmp_path / "numpy.npz") as theirs:
        assert ours.files == theirs.files == ["arr_0", "arr_1"]
        for name in ours.files:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])
    with zipfile.ZipFile(tmp_path / "a.npz") as ours, zipfile.ZipFile(tmp_path / "numpy.npz") as theirs:
        assert ours.testzip() is None
        for mine, other in zip(ours.infolist(), theirs.infolist(), strict=True):
            assert (mine.filename, mine.CRC, mine.file_size) == (other.filename, other.CRC, other.file_size)
            assert mine.compress_type == zipfile.ZIP_STORED
            # The headers are as long as NumPy's.
            assert mine.header_offset == other.header_offset
    np.testing.assert_array_equal(take(NpzImages(tmp_path / "a.npz"), [9, 0, 3, 3]), images[[9, 0, 3, 3]])
    assert set(os.listdir(tmp_path)) == {"a.npz", "numpy.npz"}


def test_the_bytes_depend_on_the_images_alone(images, tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", SHAPE, np.split(images, [4, 8]), LABELS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    old = os.umask(0o077)
    write_npz(tmp_path / "b.npz", SHAPE, [images], LABELS.astype(np.int32))
    os.umask(old)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:9], "have 9 of 10 images"),
        (lambda images: images[:, :3], r"a batch is uint8 \(10, 3, 6, 3\)"),
        (lambda images: images.astype(np.int32), "a batch is int32"),
    ],
)
def test_batches_of_a_wrong_shape_leave_no_file(images, tmp_path, change, message):
    with pytest.raises(RuntimeError, match=message):
        write_npz(tmp_path / "a.npz", SHAPE, [change(images)], LABELS)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("limit", [10, 500, 720 + 300, 720 + 450])
def test_a_full_disk_is_reported_and_leaves_no_file(images, tmp_path, limit):
    """The disk is full in the header, in the images, in the labels, or in the directory at the end."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError) as failed:
            write_npz(tmp_path / "a.npz", SHAPE, [images], LABELS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG and not [*tmp_path.iterdir()]


STREAM = """
import resource, sys
import numpy as np
from rar_jax.evaluation.image_sets import NpzImages, take
from rar_jax.generation.archive import write_npz
path, count = sys.argv[1], int(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batch = np.zeros((250, 256, 256, 3), np.uint8)
write_npz(path, (count, 256, 256, 3), (batch for _ in range(count // 250)), np.arange(count) // 22)
take(NpzImages(path), [count - 1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("count", [750, pytest.param(22_000, marks=pytest.mark.long)])
def test_images_are_streamed(tmp_path, count):
    """The memory is that of one batch, 49 MB, also for archives larger than 4 GiB."""
    path = tmp_path / "big.npz"
    streamed = subprocess.run(
        [sys.executable, "-c", STREAM, path, str(count)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert int(streamed.stdout) < 100_000
    with zipfile.ZipFile(path) as file:
        assert file.getinfo("arr_1.npy").header_offset > count * 256 * 256 * 3
        assert file.testzip() is None
        with file.open("arr_0.npy") as array:
            assert np.lib.format.read_magic(array) == (1, 0)
            assert np.lib.format.read_array_header_1_0(array) == ((count, 256, 256, 3), False, np.uint8)
    with np.load(path) as file:
        np.testing.assert_array_equal(file["arr_1"], np.arange(count) // 22)
