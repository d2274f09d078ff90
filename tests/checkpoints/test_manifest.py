import threading

import pytest
from etils import epath

from rar_jax.checkpoints.manifest import DamagedError, checkpoint_identity, file_identity, verify, write_manifest


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of three files with its manifest."""
    folder = epath.Path(tmp_path / "100")
    (folder / "state" / "d").mkdir(parents=True)
    for name, text in {"state/d/0": "weights", "state/index": "index", "metadata": "step 100"}.items():
        (folder / name).write_text(text)
    write_manifest(folder)
    return folder


def test_what_was_written_is_verified(folder):
    assert verify(folder)
    # Files that came later prove nothing.
    (folder / "state" / "note").write_text("new")
    assert verify(folder)
    (folder / "manifest.json").unlink()
    assert not verify(folder)


def test_there_may_be_no_time_for_a_manifest(folder):
    (folder / "manifest.json").unlink()
    given_up = threading.Event()
    write_manifest(folder, given_up)
    assert verify(folder)
    (folder / "manifest.json").unlink()
    given_up.set()
    with pytest.raises(TimeoutError, match="no time for the checksums"):
        write_manifest(folder, given_up)
    assert not verify(folder)


def flip(path):
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def test_damage_names_the_file(folder):
    flip(folder / "state" / "d" / "0")
    with pytest.raises(DamagedError, match=r"100/state/d/0 is damaged"):
        verify(folder)
    (folder / "state" / "index").unlink()
    with pytest.raises(DamagedError, match=r"100/state/index is missing"):
        verify(folder)


def test_processes_read_a_share_each_and_all_look_for_missing_files(folder):
    flip(folder / "state" / "d" / "0")
    found = []
    for part in range(3):
        try:
            verify(folder, part, 3)
        except DamagedError:
            found.append(part)
    assert len(found) == 1
    (folder / "metadata").unlink()
    for part in range(3):
        with pytest.raises(DamagedError, match="metadata is missing"):
            verify(folder, part, 3)


@pytest.mark.parametrize("text", ["{", "7", '{"a": 1, "b"'])
def test_a_damaged_manifest_is_damage(folder, text):
    (folder / "manifest.json").write_text(text)
    for read in (verify, checkpoint_identity):
        with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
            read(folder)


def test_a_file_that_cannot_be_read_is_not_damage(folder, monkeypatch):
    def broken(path, mode):
        raise OSError("input/output error")

    monkeypatch.setattr(type(folder), "open", broken)
    with pytest.raises(OSError, match="input/output error"):
        verify(folder)


def test_an_identity_is_that_of_the_bytes(folder, tmp_path):
    identity = checkpoint_identity(folder)
    (folder / "manifest.json").unlink()
    assert checkpoint_identity(folder) == identity and len(identity) == 12
    # A renamed folder is the same checkpoint; a renamed file is not.
    folder = folder.rename(tmp_path / "200")
    assert checkpoint_identity(folder) == identity
    (folder / "metadata").rename(folder / "other")
    assert checkpoint_identity(folder) != identity


def test_the_identity_of_a_file(tmp_path):
    """The SHA-256 digest of `abc` is an example of the standard, FIPS 180-2."""
    file = epath.Path(tmp_path / "a")
    file.write_text("abc")
    assert file_identity(file) == "ba7816bf8f01"
