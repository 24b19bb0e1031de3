"""Every error that this package raises on purpose, in one tree."""

import difflib


class RealTimeError(Exception):
    """Base of all errors of rt_lrhc."""


class ConfigurationError(RealTimeError, ValueError):
    """A configuration, an argument or a user's class is not what was expected."""


class InterfaceError(RealTimeError):
    """A callback of the user's interface raised, or returned something unusable."""


class InterfaceTimeout(InterfaceError, TimeoutError):
    """A callback of the user's interface did not return in time."""


class InterfaceLost(InterfaceError):
    """The process that hosts the user's interface has ended."""


class EnvironmentStateError(RealTimeError):
    """A call that the environment's state does not allow: `step` after the end, anything after `close`."""


class RenderError(RealTimeError):
    """A picture or a window cannot be made here."""


class SharedMemoryError(RealTimeError):
    """A segment cannot be created, attached or trusted."""


class LayoutError(SharedMemoryError):
    """Two peers do not agree on the layout of a segment."""


class NamespaceBusy(SharedMemoryError):
    """Another live server or client holds the namespace."""


class ClusterError(RealTimeError):
    """The control cluster cannot do what it was asked."""


class ControllerError(ClusterError):
    """A controller cannot be found or built, or breaks its contract."""


class ClusterTimeout(ClusterError, TimeoutError):
    """The cluster did not answer within a limit."""


class ClusterLost(ClusterError):
    """The server of an attached cluster is gone."""


def unknown_key(what: str, key: object, known: list[str]) -> str:
    """Return the message for an unknown name, with the closest known one."""
    close = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {key!r}; {hint}Known: {', '.join(known)}"
