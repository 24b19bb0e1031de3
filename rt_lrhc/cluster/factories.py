"""Where controllers come from: the name of a factory, which travels to the server, and what is found there."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rt_lrhc.cluster.controller import ControllerSpec, RHController
from rt_lrhc.cluster.protocol import TEXT_LIMIT
from rt_lrhc.errors import ControllerError

Factory = Callable[..., RHController]

_MODULE_NAME = "rt_lrhc_user_module"
_EXPECTED = "expected 'package.module:factory', 'path.py:factory' or a top-level function"


@dataclass(frozen=True)
class FactoryName:
    """Names a factory so that another process finds it.

    Attributes:
        module: Name of the module, or absolute path of the file where `is_file`.
        attribute: Name of the factory there, with dots where it is nested in a class.
        is_file: Whether it is a file, run there under a name of its own, which is not `__main__`.
    """

    module: str
    attribute: str
    is_file: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"

    @classmethod
    def of(cls, factory: str | Factory) -> "FactoryName":
        """Return the name of a factory.

        Raises:
            ControllerError: If another process could not find it by any name; it says what to do.
        """
        return _of_text(factory) if isinstance(factory, str) else _of_callable(factory)

    def resolve(self) -> Factory:
        """Import the module and return the factory. Done once, in the server.

        Raises:
            ControllerError: If there is none, or importing the module raises.
        """
        try:
            module = _run_file(Path(self.module)) if self.is_file else importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name is not None and self.module.startswith(error.name):
                raise ControllerError(
                    f"controller factory {str(self)!r}: there is no module {error.name!r} on the path that was handed "
                    f"over ({', '.join(sys.path[:4])}, ...); {_EXPECTED}"
                ) from error
            raise ControllerError(
                _failure(f"controller factory {str(self)!r}: importing its module raised")
            ) from error
        except (Exception, SystemExit) as error:
            raise ControllerError(
                _failure(f"controller factory {str(self)!r}: importing its module raised")
            ) from error
        factory: Any = module
        for part in self.attribute.split("."):
            factory = getattr(factory, part, None)
        if not callable(factory):
            known = sorted(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
            found = "nothing" if factory is None else f"a {type(factory).__name__}"
            raise ControllerError(
                f"controller factory {str(self)!r}: expected a callable {self.attribute!r} in {self.module}, found "
                f"{found}; callables there: {', '.join(known) or 'none'}"
            )
        return factory  # type: ignore[no-any-return]


def build(name: FactoryName, factory: Factory, num_robots: int, kwargs: Mapping[str, Any]) -> RHController:
    """Build the controllers of `num_robots` robots and check what came.

    Raises:
        ControllerError: If the factory raises, or returns something else than an `RHController` with a spec.
    """
    try:
        controller = factory(num_robots=num_robots, **kwargs)
    except (Exception, SystemExit) as error:
        what = f"controller factory {str(name)!r} raised while it built controllers for {num_robots} robots"
        raise ControllerError(_failure(what)) from error
    if not isinstance(controller, RHController):
        raise ControllerError(
            f"controller factory {str(name)!r} must return an RHController, got {type(controller).__name__}"
        )
    if not isinstance(getattr(controller, "spec", None), ControllerSpec):
        raise ControllerError(
            f"controller factory {str(name)!r}: {type(controller).__name__}.spec must be a ControllerSpec, got "
            f"{getattr(controller, 'spec', None)!r}"
        )
    return controller


def _of_text(text: str) -> FactoryName:
    module, colon, attribute = text.rpartition(":")
    if not colon or not module or not all(part.isidentifier() for part in attribute.split(".")):
        raise ControllerError(f"controller factory {text!r}: {_EXPECTED}")
    if not module.endswith(".py"):
        return FactoryName(module, attribute, is_file=False)
    path = Path(module).expanduser().absolute()
    if not path.is_file():
        raise ControllerError(f"controller factory {text!r}: there is no file {path}")
    return FactoryName(str(path), attribute, is_file=True)


def _of_callable(factory: Factory) -> FactoryName:
    name = getattr(factory, "__qualname__", None)
    module_name = getattr(factory, "__module__", None)
    if not callable(factory) or not isinstance(name, str) or not isinstance(module_name, str):
        raise ControllerError(
            f"controller factory {factory!r}: {_EXPECTED}; pass arguments by controller_kwargs, not by partial()"
        )
    if "<" in name:
        raise ControllerError(
            f"controller factory {name!r} is a lambda or a function inside another one, which another process cannot "
            f"find: make it a top-level function of a module and pass that, with values in controller_kwargs"
        )
    module = sys.modules.get(module_name)
    if module_name != "__main__":
        return FactoryName(module_name, name, is_file=False)
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.name is not None:
        # `python -m package.module`; of a package it is package.__main__, which imports as itself.
        return FactoryName(spec.name, name, is_file=False)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ControllerError(
            f"controller factory {name!r} is defined in a notebook or at a prompt, which another process cannot "
            "import: move it to a module and pass 'module:factory'"
        )
    return FactoryName(str(Path(file).absolute()), name, is_file=True)


def _run_file(path: Path) -> ModuleType:
    """Run a file as a module. Its folder goes to the end of the path, so that it finds its neighbours."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    spec.loader.exec_module(module)
    return module


def _failure(what: str) -> str:
    return f"{what}\n{traceback.format_exc()[-TEXT_LIMIT:]}"
