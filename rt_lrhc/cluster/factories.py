"""Where controllers come from: the name of a factory, which travels to the server, and what is found there."""

from collections.abc import Callable, Mapping
from typing import Any

from rt_lrhc.cluster.controller import ControllerSpec, RHController
from rt_lrhc.errors import ControllerError
from rt_lrhc.processes import ImportableName, Wording, with_traceback

Factory = Callable[..., RHController]

_WORDING = Wording("controller factory", "function", "factory", "controller_kwargs", ControllerError)


class FactoryName(ImportableName):
    """Names a factory of controllers so that another process finds it."""

    @classmethod
    def of(cls, factory: str | Factory) -> "FactoryName":
        """Return the name of a factory.

        Raises:
            ControllerError: If another process could not find it by any name; it says what to do.
        """
        name = cls.of_thing(factory, _WORDING)
        assert isinstance(name, cls)
        return name

    def resolve(self) -> Factory:
        """Import the module and return the factory. Done once, in the server.

        Raises:
            ControllerError: If there is none, or importing the module raises.
        """
        factory: Factory = self.find(_WORDING)
        return factory


def build(name: FactoryName, factory: Factory, num_robots: int, kwargs: Mapping[str, Any]) -> RHController:
    """Build the controllers of `num_robots` robots and check what came.

    Raises:
        ControllerError: If the factory raises, or returns something else than an `RHController` with a spec.
    """
    try:
        controller = factory(num_robots=num_robots, **kwargs)
    except (Exception, SystemExit) as error:
        what = f"controller factory {str(name)!r} raised while it built controllers for {num_robots} robots"
        raise ControllerError(with_traceback(what)) from error
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
