"""Runs commands for tests: in a process of their own, or quickly in this one."""

import contextlib
import copy
import io
import os
import runpy
import subprocess
import sys
from unittest import mock

from absl import flags
from conftest import ROOT

from rar_jax.commands import cli


def python(*arguments):
    """Runs Python in the root of the repository, with programs that are compiled fast and not optimised."""
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def run(*arguments):
    """Runs a module, as `python -m` does."""
    return python("-m", *arguments)


@contextlib.contextmanager
def own_flags():
    """Forgets at the end the flags that were defined meanwhile: several commands have flags of one name."""
    saved = {}
    for name, value in flags.FLAGS.__dict__.items():
        inner = {key: copy.copy(each) for key, each in value.items()} if isinstance(value, dict) else copy.copy(value)
        saved[name] = inner
    try:
        yield
    finally:
        flags.FLAGS.__dict__.clear()
        flags.FLAGS.__dict__.update(saved)


def call(command, *arguments):
    """Runs a command in this process: what it returned to the shell, and what it printed on stdout and stderr."""
    code = 0
    with (
        own_flags(),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
        mock.patch.object(cli, "keep_compiled_programs"),
    ):
        try:
            main = runpy.run_module(f"rar_jax.commands.{command}")["main"]
            with cli.user_errors():
                main(cli._parse_flags([command, *map(str, arguments)]))
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), errors.getvalue()


def refusal(command, *arguments):
    """The one line by which a command refuses its flags, with exit code 2 and nothing done."""
    code, out, errors = call(command, *arguments)
    assert code == 2 and out == "", errors
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: ")
    return line
