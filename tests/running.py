"""Runs commands for tests: in a process of their own, or quickly in this one."""

import contextlib
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
        if isinstance(value, dict):
            # Flags by name stay what they are, lists of flags by module are copied.
            value = {key: list(each) if isinstance(each, list) else each for key, each in value.items()}
        saved[name] = value
    try:
        yield
    finally:
        flags.FLAGS.__dict__.clear()
        flags.FLAGS.__dict__.update(saved)


def call(command, *arguments):
    """Runs a command in this process, and returns what `run` returns."""
    code, argv = 0, [command, *map(str, arguments)]
    with (
        own_flags(),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
        mock.patch.object(cli, "keep_compiled_programs"),
        # ml_collections looks here for overrides of a config.
        mock.patch.object(sys, "argv", argv),
    ):
        try:
            main = runpy.run_module(f"rar_jax.commands.{command}")["main"]
            with cli.user_errors():
                main(cli._parse_flags(argv))
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())


def refusal(command, *arguments):
    """Returns the one line by which a command refuses its flags, with exit code 2."""
    result = call(command, *arguments)
    assert result.returncode == 2 and result.stdout == "", result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line
