"""Runs commands for tests, in a new process or, faster, in this one."""

import contextlib
import dataclasses
import io
import os
import runpy
import subprocess
import sys
from unittest import mock

import jax
from absl import flags
from conftest import ROOT

from rar_jax.checkpoints.store import save_params
from rar_jax.commands import cli
from rar_jax.config import without_data
from rar_jax.run_folder import write_config
from rar_jax.studies.plan import Row, Study
from rar_jax.training.program import make_program


def python(*arguments):
    """Runs Python in the root of the repository, with fast compilation and no optimisation."""
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def run(*arguments):
    """Runs a module, as `python -m` does."""
    return python("-m", *arguments)


@contextlib.contextmanager
def own_flags():
    """Removes the flags that the body defines, because several commands define flags of the same name."""
    saved = {}
    for name, value in flags.FLAGS.__dict__.items():
        if isinstance(value, dict):
            # Lists of flags by module are copied; flags by name are not.
            value = {key: list(each) if isinstance(each, list) else each for key, each in value.items()}
        saved[name] = value
    try:
        yield
    finally:
        flags.FLAGS.__dict__.clear()
        flags.FLAGS.__dict__.update(saved)


def call(command, *arguments):
    """Runs a command in this process and returns the same kind of result as `run`."""
    code, argv = 0, [command, *map(str, arguments)]
    with (
        own_flags(),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
        # ml_collections reads overrides of a config from here.
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
    """Runs a command that refuses its flags with exit code 2, and returns its error line."""
    result = call(command, *arguments)
    assert result.returncode == 2 and result.stdout == "", result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def config_file(name):
    """Returns what a config file returns, such as "digits" or "tokenizers/f16"."""
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()


def config_without_data(name, **sections):
    """Returns the config of a file with changed fields, for programs that read no data."""
    fields = config_file(name)
    for section, values in sections.items():
        fields[section].update(values)
    return without_data(fields)


def write_run(folder, config, steps=(1,)):
    """Writes the folder of a run that saved other random weights at each of some steps."""
    for step in steps:
        init = make_program(dataclasses.replace(config, seed=step)).init
        save_params(folder, step, jax.jit(init)().params)
    write_config(folder, config)


def tiny_study(**fields):
    """Returns a study of two windows on the digits with a tiny network, which trains for two epochs of 11 steps."""
    base = config_file("digits_long")
    base.model.update(width=16, depth=1, num_heads=2, mlp_width=32)
    base.train.update(batch_size=128, epochs=2, log_every=11)
    base.optimizer.update(learning_rate=2e-3, warmup_epochs=1)
    base.eval.every = 11
    rows = [
        Row(f"0-{end}", {"permutation.anneal_start_epoch": 0, "permutation.anneal_end_epoch": end}) for end in (0, 1)
    ]
    settings = {"title": "tiny", "seeds": 1, "samples": 20, "tuning_samples": 20, "guidance_scales": (1.5, 2.0)}
    return Study(base, rows, **settings | fields)
