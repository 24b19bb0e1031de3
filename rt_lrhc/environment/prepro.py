"""The user's functions between agent and interface."""

from collections.abc import Callable
from typing import Any

from rt_lrhc.errors import InterfaceError, RealTimeError


def prepared(name: str, function: Callable[[Any], Any] | None, value: Any) -> Any:
    """Return what the user's `function` makes of `value`, or `value` itself where there is none.

    Raises:
        InterfaceError: If it raises; names it.
    """
    if function is None:
        return value
    try:
        return function(value)
    except RealTimeError:
        raise
    except Exception as error:
        raise InterfaceError(f"{name} raised {type(error).__name__}: {error}") from error
