import os
import zipfile

import numpy as np
import pytest

from rar_jax.images.npz import ImageArchive

SHAPE = (4, 6, 3)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(10, *SHAPE), dtype=np.uint8)


def write(path, images, whole=4):
    """Goes on where the archive is, to the end."""
    archive = ImageArchive(path, SHAPE, np.arange(len(images)) % 7)
    archive.open(whole)
    for start in range(len(archive), len(images), whole):
        archive.append(images[start : start + whole])
    archive.finish()
    return archive


def test_it_is_what_numpy_would_have_written(images, tmp_path):
    archive = write(tmp_path / "a.npz", images)
    np.savez(tmp_path / "numpy.npz", arr_0=images, arr_1=np.arange(10, dtype=np.int64) % 7)
    with np.load(tmp_path / "a.npz") as ours, np.load(tmp_path / "numpy.npz") as theirs:
        assert ours.files == theirs.files == ["arr_0", "arr_1"]
        for name in ours.files:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])
    with zipfile.ZipFile(tmp_path / "a.npz") as ours, zipfile.ZipFile(tmp_path / "numpy.npz") as theirs:
        assert ours.testzip() is None
        for mine, other in zip(ours.infolist(), theirs.infolist(), strict=True):
            assert (mine.filename, mine.CRC, mine.file_size) == (other.filename, other.CRC, other.file_size)
            # The bytes of an array begin behind a header as long as numpy's.
            assert mine.header_offset == other.header_offset
    np.testing.assert_array_equal(archive.read([9, 0, 3]), images[[9, 0, 3]])
    assert set(os.listdir(tmp_path)) == {"a.npz", "numpy.npz"}


def test_cut_anywhere_it_goes_on_to_the_same_bytes(images, tmp_path):
    write(tmp_path / "whole.npz", images)
    whole = (tmp_path / "whole.npz").read_bytes()
    header = whole.index(images.tobytes())
    image = images[0].nbytes
    for length in (0, 1, header - 1, header, header + 1, header + 4 * image, header + 7 * image + 5, len(whole) - 1):
        cut = tmp_path / "cut.npz.partial"
        cut.write_bytes(whole[:length])
        archive = ImageArchive(tmp_path / "cut.npz", SHAPE, np.arange(10) % 7)
        assert len(archive) == min(10, max(0, length - header) // image)
        assert write(tmp_path / "cut.npz", images).path.read_bytes() == whole
        assert not cut.exists() and len(archive) == 10
        (tmp_path / "cut.npz").unlink()


def test_only_whole_batches_are_kept(images, tmp_path):
    archive = ImageArchive(tmp_path / "a.npz", SHAPE, np.zeros(10))
    archive.open(4)
    archive.append(images[:7])
    archive.close()
    assert len(archive) == 7
    archive.open(4)
    assert len(archive) == 4


def test_another_file_is_not_touched(images, tmp_path):
    other = tmp_path / "a.npz.partial"
    other.write_bytes(bytes(5000))
    with pytest.raises(ValueError, match=r"a\.npz\.partial is not of images \(10, 4, 6, 3\): remove it"):
        ImageArchive(tmp_path / "a.npz", SHAPE, np.zeros(10)).open(4)
    assert other.read_bytes() == bytes(5000)


@pytest.mark.parametrize("checked", [False, pytest.param(True, marks=pytest.mark.long)])
def test_more_than_4_gib(tmp_path, monkeypatch, checked):
    """Its images are a hole in the file, 22,000 black ones, of which half a minute of reading makes the checksum."""
    if not checked:
        monkeypatch.setattr(ImageArchive, "_blocks", lambda self, count: ())
    labels = np.arange(22_000) // 22
    archive = ImageArchive(tmp_path / "big.npz", (256, 256, 3), labels)
    archive.open(256)
    archive.close()
    partial = tmp_path / "big.npz.partial"
    os.truncate(partial, partial.stat().st_size + len(labels) * 256 * 256 * 3)
    archive.open(256)
    assert len(archive) == len(labels)
    archive._file.seek(0, os.SEEK_END)
    archive.finish()
    with zipfile.ZipFile(tmp_path / "big.npz") as file:
        assert not checked or file.testzip() is None
        first, second = file.infolist()
        assert first.file_size > 2**32 and second.header_offset > 2**32
        with file.open(first) as array:
            assert np.lib.format.read_magic(array) == (1, 0)
            assert np.lib.format.read_array_header_1_0(array) == ((22_000, 256, 256, 3), False, np.uint8)
    with np.load(tmp_path / "big.npz") as file:
        np.testing.assert_array_equal(file["arr_1"], labels)
