import errno
import json
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from rar_jax.errors import UserError
from rar_jax.run_folder import check_folder, is_locked_by, lock, read_config, run_names, this_process, write_config


def test_config_round_trip(small_config, tmp_path):
    config = small_config()
    write_config(tmp_path / "new" / "run", config)
    assert read_config(tmp_path / "new" / "run") == config


def test_a_config_of_an_older_version(small_config, tmp_path):
    """The config lacks new fields and has a field that was removed."""
    config = small_config()
    write_config(tmp_path, config)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["checkpoint"]["best_mode"] = "min"
    del fields["checkpoint"]["best_metric"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_config(tmp_path) == config


def test_no_config_and_a_garbled_one(tmp_path):
    with pytest.raises(UserError, match=r"no run in .*it has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: "):
        read_config(tmp_path)


@pytest.mark.parametrize("below", ["", "run", "a/b"])
def test_a_file_where_a_folder_should_be(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out=.*: .*file is a file, not a folder"):
        check_folder("out", tmp_path / "file" / below)
    check_folder("out", tmp_path / "not" / "there")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    # Root may write everywhere.
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("theirs"))
    (tmp_path / "theirs").mkdir()
    check_folder("out", tmp_path / "mine" / "samples")
    with pytest.raises(UserError, match=r"--out=.*samples: .*theirs cannot be written: choose another folder"):
        check_folder("out", tmp_path / "theirs" / "samples")


def test_runs_are_labelled_by_the_fields_that_differ(small_config, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, order in zip(folders, ("row_major", "spiral_in", "row_major"), strict=True):
        write_config(folder, small_config(permutation={"scan_order": order}))
    assert run_names(folders) == [
        f"{folder}: permutation.scan_order={order!r}"
        for folder, order in zip(folders, ("row_major", "spiral_in", "row_major"), strict=True)
    ]
    assert run_names([folders[0], folders[2]])[1] == f"{folders[2]}: the same config"
    with pytest.raises(UserError, match="one is named twice"):
        run_names([folders[0], folders[0]])


HOLD = """
import sys, time
from rar_jax.run_folder import lock
held = lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_until_its_process_ends_however_it_ends(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    # Attempts that fail do not wait and change nothing.
    for _ in range(3):
        with pytest.raises(
            UserError, match=f": process .+:{holder.pid} trains there; stop it, or choose another folder"
        ):
            lock(tmp_path)
        host = this_process().split(":")[0]
        assert is_locked_by(tmp_path, f"{host}:{holder.pid}") and not is_locked_by(tmp_path, this_process())
        # A process of another host can have the same id.
        assert not is_locked_by(tmp_path, f"other-{host}:{holder.pid}")
    # Another name is another lock.
    lock(tmp_path, "process_3", "samples").close()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    held = lock(tmp_path)
    assert is_locked_by(tmp_path, this_process())
    with pytest.raises(UserError, match=f"process {this_process()} trains there"):
        lock(tmp_path)
    held.close()
    lock(tmp_path).close()


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    # The first lock stays, as after a kill.
    lock(tmp_path)
    with lock(tmp_path):
        assert is_locked_by(tmp_path, this_process())
    assert "on a file system without locks: let no second process work there" in caplog.text


def test_a_lock_covers_one_folder_and_buckets_have_none(tmp_path):
    with lock(tmp_path / "new" / "run"):
        assert not is_locked_by(tmp_path, this_process())
    with lock("gs://bucket/run"), lock("gs://bucket/run"):
        assert is_locked_by("gs://bucket/run", "host:7")
