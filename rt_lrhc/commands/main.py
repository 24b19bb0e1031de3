"""`rt-lrhc COMMAND …`: finds the command and runs it.

A command is a module of this folder. The first line of its docstring is its help, its frozen dataclass `Options` is its
command line, and `run(options)` does the work and returns the exit code. Nothing of a command is imported before it is
called for, and a command imports what is heavy only in `run`: help must not take as long as importing torch.
"""

import ast
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import rt_lrhc
from rt_lrhc import commands
from rt_lrhc.errors import RealTimeError

USAGE_ERROR = 2
"""Exit code: the command line cannot be understood."""

INTERRUPTED = 130
"""Exit code: stopped by Ctrl-C, as a shell reports it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes the process's.

    Returns:
        The exit code: the command's own, 1 after an error of rt_lrhc, 2 if the command line cannot be understood, 130
        after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] == "--version":
        print(f"rt-lrhc {rt_lrhc.__version__}")
        return 0
    if arguments[0] not in command_names():
        print(_unknown(arguments[0]), file=sys.stderr)
        return USAGE_ERROR
    try:
        return _run(arguments[0], arguments[1:])
    except RealTimeError as error:
        print(f"rt-lrhc {arguments[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rt-lrhc {arguments[0]}: interrupted", file=sys.stderr)
        return INTERRUPTED


def command_names() -> list[str]:
    """Return the names of all commands, sorted."""
    names = (module.name for module in pkgutil.iter_modules(commands.__path__))
    return sorted(name for name in names if name != "main" and not name.startswith("_"))


def _run(name: str, arguments: Sequence[str]) -> int:
    import tyro  # 50 ms that `rt-lrhc --help` does not need

    command = importlib.import_module(f"rt_lrhc.commands.{name}")
    options = tyro.cli(
        command.Options,
        prog=f"rt-lrhc {name}",
        description=command.__doc__,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    code: int = command.run(options)
    return code


def _summary(name: str) -> str:
    """Return the first line of a command's docstring without importing the command."""
    spec = find_spec(f"rt_lrhc.commands.{name}")
    if spec is None or spec.origin is None:
        return ""
    return _first_line(ast.get_docstring(ast.parse(Path(spec.origin).read_text())))


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _help() -> str:
    names = command_names()
    width = max(map(len, names), default=0)
    lines = [
        f"rt-lrhc {rt_lrhc.__version__}: {_first_line(rt_lrhc.__doc__)}",
        "",
        "usage: rt-lrhc COMMAND [OPTIONS]   (rt-lrhc COMMAND --help shows a command's options)",
        "",
        *(f"  {name:{width}}  {_summary(name)}" for name in names),
    ]
    return "\n".join(lines)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, command_names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"rt-lrhc: unknown command {name!r}; {hint}Known: {', '.join(command_names())}"
