import errno
import json
import os
import resource
import threading

import pytest
from etils import epath

from rar_jax.errors import UserError
from rar_jax.files import (
    JsonLinesFile,
    begin_or_resume,
    cache_folder,
    create_atomically,
    file_size,
    hold_to_plan,
    read_json_lines,
    replacing,
    warn_of_write_errors,
    write_atomically,
    written_aside,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.json"
    write_atomically(file, "old")
    with pytest.raises(OSError, match="disk is full"), replacing(file) as stream:
        stream.write(b"half")
        raise OSError("disk is full")
    assert file.read_text() == "old" and names(tmp_path) == ["a.json"]


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path):
    file = epath.Path(tmp_path / "a")
    file.write_text("old")
    with written_aside(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old" and partial.parent == file.parent
    assert file.read_text() == "new" and names(tmp_path) == ["a"]


def test_the_first_of_several_writers_wins(tmp_path, monkeypatch):
    file = tmp_path / "a"
    create_atomically(file, "first")
    create_atomically(file, "second")
    assert file.read_text() == "first"

    # The same if both find no file before they write.
    monkeypatch.setattr(type(epath.Path(file)), "exists", lambda path: False)
    create_atomically(file, "third")
    assert file.read_text() == "first" and names(tmp_path) == ["a"]


def test_where_there_are_no_hard_links_the_file_is_moved(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError("no links")

    monkeypatch.setattr(os, "link", link)
    create_atomically(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and names(tmp_path) == ["a"]


def test_a_last_line_cut_short_is_left_out(tmp_path):
    file = tmp_path / "lines.jsonl"
    assert read_json_lines(file) == []
    (tmp_path / "file").write_text("")
    assert read_json_lines(tmp_path / "file" / "lines.jsonl") == []
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_json_lines(file) == [{"step": 1}, {"step": 2}]


def test_a_damaged_line_before_others_is_reported(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl, line 2 is damaged: repair or remove the line"):
        read_json_lines(file)


def test_a_file_that_cannot_be_seen_is_not_empty(tmp_path, monkeypatch):
    file = tmp_path / "lines.jsonl"
    file.write_text('{"step": 1}\n')

    def gone(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("os.stat", gone)
    monkeypatch.setattr("pathlib.Path.stat", gone)
    assert read_json_lines(file) == [{"step": 1}]


def test_the_size_of_a_file_of_an_unknown_owner(tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    (tmp_path / "file").write_text("abc")
    assert file_size(tmp_path / "file") == 3
    with pytest.raises(FileNotFoundError):
        file_size(tmp_path / "none")


def test_lines_are_in_the_file_as_soon_as_they_are_added(tmp_path):
    file = epath.Path(tmp_path / "lines.jsonl")
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    lines = JsonLinesFile(file, [{"step": 1}])
    lines.add({"step": 2.5})
    assert read_json_lines(file) == [{"step": 1}, {"step": 2.5}]
    lines.close()


def test_on_a_bucket_a_thread_writes_the_whole_file(tmp_path, monkeypatch):
    """Lines that arrive during a write share the next one, and those of a failed write are written with the next."""
    began, go_on, written, fails = threading.Event(), threading.Event(), [], []

    def write(path, text):
        if text:
            began.set()
            assert go_on.wait(10)
            if fails:
                raise LookupError("bucket is gone")
        written.append(text)

    monkeypatch.setattr("rar_jax.files.write_atomically", write)
    lines = JsonLinesFile(epath.Path("gs://bucket/lines.jsonl"), [])
    lines.add({"step": 1})
    assert began.wait(10)
    lines.add({"step": 2})
    lines.add({"step": 3})
    go_on.set()
    lines.flush()
    assert [len(text.splitlines()) for text in written] == [0, 1, 3]
    fails.append(True)
    lines.add({"step": 4})
    with pytest.raises(LookupError, match="bucket is gone"):
        lines.flush()
    fails.clear()
    lines.add({"step": 5})
    lines.flush()
    assert [len(text.splitlines()) for text in written] == [0, 1, 3, 5]
    fails.append(True)
    lines.add({"step": 6})
    with pytest.raises(LookupError, match="bucket is gone"):
        lines.close()


def test_an_error_of_another_kind_is_one_of_writing_on_a_bucket_only(tmp_path, caplog):
    with warn_of_write_errors("gs://bucket/run"):
        raise LookupError("503")
    assert caplog.messages == ["gs://bucket/run: 503; training is not affected"]
    with pytest.raises(LookupError), warn_of_write_errors(tmp_path):
        raise LookupError("503")


def test_lines_that_do_not_fit_the_disk_are_written_later(tmp_path, caplog):
    lines, limits = JsonLinesFile(epath.Path(tmp_path / "lines.jsonl"), []), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for step in range(100):
            with warn_of_write_errors(tmp_path):
                lines.add({"step": step, "text": 300 * "x"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caplog.messages) == 97 and all(
        "File too large; training is not affected" in text for text in caplog.messages
    )
    lines.add({"step": 100})
    assert [line["step"] for line in read_json_lines(tmp_path / "lines.jsonl")] == [*range(101)]
    lines.close()


def test_a_plan_that_differs_names_every_field():
    hold_to_plan("out", "folder", {"seed": 0}, {"seed": 0})
    message = r"--out=folder was started with seed=0, not 1, more=None, not 'npz', gone=2, not None: use the same"
    with pytest.raises(UserError, match=message):
        hold_to_plan("out", "folder", {"seed": 0, "gone": 2}, {"seed": 1, "more": "npz"})


def test_work_begins_in_an_empty_folder_and_resumes_with_its_plan(tmp_path):
    folder = epath.Path(tmp_path / "new" / "folder")
    begin_or_resume("out", folder, "plan.json", {"seed": 0})
    assert json.loads((folder / "plan.json").read_text()) == {"seed": 0}
    begin_or_resume("out", folder, "plan.json", {"seed": 0})
    with pytest.raises(UserError, match="was started with seed=0, not 1"):
        begin_or_resume("out", folder, "plan.json", {"seed": 1})
    with pytest.raises(UserError, match="holds other files: choose another folder"):
        begin_or_resume("out", folder, "other.json", {"seed": 0})
    assert names(folder) == ["plan.json"]


@pytest.mark.parametrize(("variable", "expected"), [("/cache", "/cache/rar_jax/a"), ("", "/home/me/.cache/rar_jax/a")])
def test_the_cache_is_where_xdg_says(monkeypatch, variable, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache_folder("a")) == expected
