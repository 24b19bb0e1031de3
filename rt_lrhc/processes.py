"""What starting another interpreter takes: names of classes and functions that it finds, and how a process ended."""

import importlib
import importlib.util
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rt_lrhc.errors import ConfigurationError, RealTimeError

TEXT_LIMIT = 16 * 1024
"""Longest traceback in a message, characters; of a longer one the end is kept."""

_MODULE_NAME = "rt_lrhc_user_module"


@dataclass(frozen=True)
class Wording:
    """How errors about a name speak.

    Attributes:
        what: What is named, e.g. `"controller factory"`.
        kind: What it is in Python, e.g. `"function"`.
        noun: What stands for its name in advice, e.g. `"factory"`.
        arguments: Where its arguments are given, e.g. `"controller_kwargs"`.
        error: The class of the errors.
    """

    what: str
    kind: str
    noun: str
    arguments: str
    error: type[RealTimeError] = ConfigurationError

    @property
    def expected(self) -> str:
        """What would do."""
        return f"expected 'package.module:{self.noun}', 'path.py:{self.noun}' or a top-level {self.kind}"


@dataclass(frozen=True)
class ImportableName:
    """Names a class or a function so that another process finds it.

    Attributes:
        module: Name of the module, or absolute path of the file where `is_file`.
        attribute: Its name there, with dots where it is nested in a class.
        is_file: Whether it is a file, run there under a name of its own, which is not `__main__`.
    """

    module: str
    attribute: str
    is_file: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"

    @classmethod
    def of_thing(cls, thing: "str | Callable[..., Any]", wording: Wording) -> "ImportableName":
        """Return the name of a class or function, or of what a text names.

        Raises:
            RealTimeError: If another process could not find it by any name; it says what to do. Of `wording.error`.
        """
        return cls(*(_of_text(thing, wording) if isinstance(thing, str) else _of_callable(thing, wording)))

    def find(self, wording: Wording) -> Any:
        """Import the module and return what is named.

        Raises:
            RealTimeError: If there is none, or importing the module raises. Of `wording.error`.
        """
        named = f"{wording.what} {str(self)!r}"
        try:
            module = _run_file(Path(self.module)) if self.is_file else importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name is not None and self.module.startswith(error.name):
                raise wording.error(
                    f"{named}: there is no module {error.name!r} on the path that was handed over "
                    f"({', '.join(sys.path[:4])}, ...); {wording.expected}"
                ) from error
            raise wording.error(with_traceback(f"{named}: importing its module raised")) from error
        except (Exception, SystemExit) as error:
            raise wording.error(with_traceback(f"{named}: importing its module raised")) from error
        thing: Any = module
        for part in self.attribute.split("."):
            thing = getattr(thing, part, None)
        if not callable(thing):
            known = sorted(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
            found = "nothing" if thing is None else f"a {type(thing).__name__}"
            raise wording.error(
                f"{named}: expected a callable {self.attribute!r} in {self.module}, found {found}; callables there: "
                f"{', '.join(known) or 'none'}"
            )
        return thing


def _of_text(text: str, wording: Wording) -> tuple[str, str, bool]:
    module, colon, attribute = text.rpartition(":")
    if not colon or not module or not all(part.isidentifier() for part in attribute.split(".")):
        raise wording.error(f"{wording.what} {text!r}: {wording.expected}")
    if not module.endswith(".py"):
        return module, attribute, False
    path = Path(module).expanduser().absolute()
    if not path.is_file():
        raise wording.error(f"{wording.what} {text!r}: there is no file {path}")
    return str(path), attribute, True


def _of_callable(thing: Callable[..., Any], wording: Wording) -> tuple[str, str, bool]:
    name = getattr(thing, "__qualname__", None)
    module_name = getattr(thing, "__module__", None)
    if not callable(thing) or not isinstance(name, str) or not isinstance(module_name, str):
        raise wording.error(
            f"{wording.what} {thing!r}: {wording.expected}; pass arguments by {wording.arguments}, not by partial()"
        )
    if "<" in name:
        raise wording.error(
            f"{wording.what} {name!r} is a lambda or is defined inside a function, where another process cannot find "
            f"it: make it a top-level {wording.kind} of a module and pass that, with values in {wording.arguments}"
        )
    module = sys.modules.get(module_name)
    if module_name != "__main__":
        return module_name, name, False
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.name is not None:
        # `python -m package.module`; of a package it is package.__main__, which imports as itself.
        return spec.name, name, False
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise wording.error(
            f"{wording.what} {name!r} is defined in a notebook or at a prompt, which another process cannot import: "
            f"move it to a module and pass 'module:{wording.noun}'"
        )
    return str(Path(file).absolute()), name, True


def _run_file(path: Path) -> ModuleType:
    """Run a file as a module, once. Its folder goes to the end of the path, so that it finds its neighbours."""
    known = sys.modules.get(_MODULE_NAME)
    if known is not None and known.__file__ == str(path):
        return known
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    spec.loader.exec_module(module)
    return module


def with_traceback(what: str) -> str:
    """Return `what` and the traceback of the exception that is being handled, the end of it where it is long."""
    return f"{what}\n{traceback.format_exc()[-TEXT_LIMIT:]}"


def describe_exit(code: int) -> str:
    """Say in words how a process ended.

    Args:
        code: Exit status, or minus the signal that killed it.
    """
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
