"""All commands: the list of commands, error messages, signals and exit codes."""

import ast
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from running import python, refusal, run

from rar_jax.__main__ import COMMANDS

# Files in rar_jax/commands/ that commands share.
SHARED = {"__init__", "cli", "shared_flags", "training"}


def test_without_a_command_all_are_listed_and_jax_is_not_imported():
    listed = python("-c", "import sys, rar_jax.__main__ as m; m.main(); assert not {'jax', 'absl'} & set(sys.modules)")
    assert listed.returncode == 0, listed.stderr
    files = {path.stem: path for path in (ROOT / "rar_jax" / "commands").glob("*.py") if path.stem not in SHARED}
    assert set(COMMANDS) == set(files)
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines()[2:]]
    assert [name for name, _ in lines] == list(COMMANDS)
    for name, meaning in lines:
        assert meaning == ast.get_docstring(ast.parse(files[name].read_text())).splitlines()[0]


def test_an_unknown_command_is_one_line_with_the_nearest_names():
    unknown = run("rar_jax", "evalute")
    assert unknown.returncode == 2 and unknown.stdout == ""
    assert unknown.stderr == "error: there is no command 'evalute'; nearest: evaluate, evaluate_orders\n"


def test_help_lists_the_flags_of_the_command_and_not_others():
    """This includes flags that several commands share, and `rar_jax.main`, the other name of train."""
    shown = run("rar_jax", "animate", "--help").stdout
    assert shown.startswith("Draws samples as they appear") and "--format" in shown and "--top_p" in shown
    assert "--npz" not in shown
    assert "--allow_config_change" in run("rar_jax.main", "--help").stdout


def outcome(body):
    """Runs a command whose main function has this body."""
    return python("-c", f"from rar_jax.commands import cli\n\ndef main(argv):\n    {body}\n\ncli.run(main)\n")


def test_only_what_a_user_can_mend_becomes_one_line():
    mended = outcome("from rar_jax.errors import UserError; raise UserError('set this to that')")
    assert (mended.returncode, mended.stderr) == (2, "error: set this to that\n")
    missing = outcome("open('nothing/here')")
    assert missing.returncode == 2 and len(missing.stderr.splitlines()) == 1 and "nothing/here" in missing.stderr
    full = outcome("import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/a')")
    again = "once there is room, start the same command again"
    assert (full.returncode, full.stderr) == (1, f"error: [Errno 28] No space left on device: 'runs/a'; {again}\n")
    defect = outcome("raise ValueError('shapes differ')")
    assert defect.returncode == 1
    assert "Traceback" in defect.stderr and defect.stderr.rstrip().endswith("ValueError: shapes differ")
    assert "in main" in defect.stderr and "error:" not in defect.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nwidth = = 3\n", "line 2: SyntaxError: invalid syntax"),
        ("import math\n\nsize = maths.pi\n", "line 3: NameError: name 'maths' is not defined"),
        ("def get_config():\n    return int('many')\n", "line 2: ValueError: invalid literal for int() with base 10"),
        ("def get_config():\n    open('nothing')\n", "line 2: FileNotFoundError: [Errno 2] No such file"),
        ("def get_config():\n    raise KeyError\n", "line 2: KeyError"),
        ("from rar_jax.config import Config\nc = Config()\nc.x = 1\n", "line 3: FrozenInstanceError: cannot assign"),
    ],
)
def test_a_broken_config_file_shows_its_line(text, message, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(text)
    assert refusal("train", f"--config={file}", "--config.train.epochs=3").startswith(f"error: {file}, {message}")


def test_a_broken_config_file_is_one_line_of_the_command(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return nothing\n")
    result = run("rar_jax.main", "--config", str(tmp_path / "broken.py"))
    message = f"error: {tmp_path / 'broken.py'}, line 2: NameError: name 'nothing' is not defined\n"
    assert (result.returncode, result.stderr, result.stdout) == (2, message, "")


def begin(program):
    """Starts a Python program and waits for its first line."""
    command = [sys.executable, "-c", f"import threading, time\nfrom rar_jax.commands import cli\n{program}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_one_line(number):
    main = """
def main(argv):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep({seconds})
cli.run(main)
"""
    process = begin(main.format(seconds=0))
    process.send_signal(number)
    assert process.wait(timeout=30) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert process.stderr.read() == f"error: stopped by {number.name}\n"
    # A second signal ends the command at once, even while it cleans up.
    process = begin(main.format(seconds=60))
    process.send_signal(number)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_shuts_down_is_silent(number):
    """Python waits for the threads of a command that has ended."""
    main = """
def wait():
    threading.main_thread().join()
    print("begun", flush=True)
    time.sleep(60)
cli.run(lambda argv: threading.Thread(target=wait).start())
"""
    process = begin(main)
    process.send_signal(number)
    assert process.wait(timeout=30) == -number and process.stderr.read() == ""
