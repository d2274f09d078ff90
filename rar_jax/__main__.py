"""Runs a command: python -m rar_jax COMMAND [flags]. Without a command it lists them."""

import ast
import difflib
import importlib
import pathlib
import sys

# Each command is a file in rar_jax/commands/, and the first line of its docstring says what it does.
COMMANDS = (
    "train",
    "train_tokenizer",
    "sample",
    "animate",
    "edit",
    "likelihood",
    "serve",
    "check_images",
    "split_images",
    "plan",
    "write_glyphs",
    "tokenize",
    "reconstruct",
    "show_records",
    "evaluate",
    "nearest",
    "evaluate_tokenizer",
    "evaluate_orders",
    "tune",
    "study",
    "curves",
    "page",
    "convert",
    "benchmark",
    "aot",
)
_USER_MISTAKE = 2


def _meaning(command: str) -> str:
    """Returns the first line of a command's docstring, without importing the command and with it JAX."""
    file = pathlib.Path(__file__).parent / "commands" / f"{command}.py"
    return ast.get_docstring(ast.parse(file.read_text())).splitlines()[0]


def main() -> None:
    """Runs the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print("usage: python -m rar_jax COMMAND [flags]; --help after a command lists its flags\n")
        for command in COMMANDS:
            print(f"  {command:<20}{_meaning(command)}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS) or COMMANDS
        print(f"error: there is no command {name!r}; nearest: {', '.join(near)}", file=sys.stderr)
        sys.exit(_USER_MISTAKE)
    del sys.argv[1]
    # Imports JAX, which the list of commands does not need.
    from rar_jax.commands import cli

    command = importlib.import_module(f"rar_jax.commands.{name}")
    if name == "benchmark":
        # It chooses a benchmark, which has its own flags.
        command.main()
    else:
        cli.run(command.main)


if __name__ == "__main__":
    main()
