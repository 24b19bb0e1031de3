"""How values travel between the environment and the interface's process: JSON, and the raw bytes of arrays beside it.

Nothing is pickled. What comes back equals what was sent, types included: None, bool, int, float, str, numpy scalars and
arrays of numbers, booleans and text, and lists, tuples and dictionaries (whose keys are text) of these. Towards the
interface, where its class itself is named by the sender, importable classes and functions and frozen dataclasses
travel as well.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from rt_lrhc import errors
from rt_lrhc.errors import ConfigurationError, InterfaceError, RealTimeError
from rt_lrhc.processes import TEXT_LIMIT, ImportableName, Wording

_ALIGNMENT = 8
_HEAD = struct.Struct("=Q")
_ARRAY_KINDS = "biufcSU"
_PLAIN = (float, int, str, bool, type(None))
_KNOWN = "numbers, text, arrays, and lists, tuples and dictionaries of these"
_WORDING = Wording("value", "class or function", "name", "keyword arguments")


def pack(value: Any, what: str, error: type[RealTimeError] = InterfaceError, *, names: bool = False) -> bytes:
    """Return `value` as bytes.

    Args:
        value: What to send.
        what: Its name in errors, e.g. `"info"`; empty for a dictionary whose keys name what is in it.
        error: Class of the errors.
        names: Whether importable classes, functions and dataclasses may travel, by their names.

    Raises:
        RealTimeError: If something in `value` cannot travel; it names the key. Of class `error`.
    """
    packer = _Packer(error, names)
    text = json.dumps(packer.prepare(value, what)).encode()
    padding = -(_HEAD.size + len(text)) % _ALIGNMENT
    return b"".join((_HEAD.pack(len(text)), text, b" " * padding, *packer.chunks))


def unpack(data: bytearray, *, names: bool = False) -> Any:
    """Return the value of `pack`; arrays are views of `data`, which is the caller's from now on.

    Args:
        data: What `pack` returned.
        names: Whether names are imported; never with what the interface's process sent.
    """
    (length,) = _HEAD.unpack_from(data)
    begin = _HEAD.size + length + -(_HEAD.size + length) % _ALIGNMENT

    def restore(entry: dict[str, Any]) -> Any:
        if "$array" in entry:
            dtype, shape, offset = entry["$array"]
            return np.ndarray(shape, dtype, data, begin + offset)
        if "$scalar" in entry:
            return restore({"$array": entry["$scalar"]})[()]
        if "$tuple" in entry:
            return tuple(entry["$tuple"])
        if names and "$name" in entry:
            return ImportableName(*entry["$name"]).find(_WORDING)
        if names and "$record" in entry:
            kind, values = entry["$record"]
            return kind(**values)
        return entry

    return json.loads(data[_HEAD.size : _HEAD.size + length], object_hook=restore)


class _Packer:
    """Turns a value into what JSON knows, and collects the bytes of its arrays."""

    def __init__(self, error: type[RealTimeError], names: bool) -> None:
        self.chunks: list[bytes] = []
        self._error = error
        self._names = names
        self._size = 0

    def prepare(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is dict:
            return {
                self._key(key, path): self.prepare(item, f"{path}[{key!r}]" if path else str(key))
                for key, item in value.items()
            }
        if kind is list:
            return [self.prepare(item, f"{path}[{k}]") for k, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self.prepare(item, f"{path}[{k}]") for k, item in enumerate(value)]}
        if isinstance(value, np.ndarray):
            return {"$array": self._add(value, path)}
        if isinstance(value, np.generic):
            return {"$scalar": self._add(np.asarray(value), path)}
        if self._names and is_dataclass(value) and not isinstance(value, type):
            values = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
            return {"$record": [self._name(kind, path), self.prepare(values, path)]}
        if self._names and callable(value):
            return self._name(value, path)
        raise self._error(f"{path} cannot travel to another process: it is a {kind.__name__}; {_KNOWN} can")

    def _key(self, key: Any, path: str) -> str:
        if type(key) is not str or key.startswith("$"):
            raise self._error(
                f"{path} has the key {key!r}, and only text that does not begin with '$' can travel to another process"
            )
        return key

    def _name(self, thing: Callable[..., Any], path: str) -> dict[str, Any]:
        try:
            name = ImportableName.of_thing(thing, _WORDING)
        except ConfigurationError as error:
            raise self._error(f"{path}: {error}") from None
        return {"$name": [name.module, name.attribute, name.is_file]}

    def _add(self, array: np.ndarray[Any, Any], path: str) -> list[Any]:
        if array.dtype.kind not in _ARRAY_KINDS:
            raise self._error(
                f"{path} cannot travel to another process: it is an array of {array.dtype}; {_KNOWN} can"
            )
        data = array.tobytes()
        offset = self._size
        padding = -len(data) % _ALIGNMENT
        self.chunks += (data, bytes(padding))
        self._size += len(data) + padding
        return [array.dtype.str, list(array.shape), offset]


def pack_error(error: BaseException, trace: str) -> dict[str, str]:
    """Return what travels of an exception: the name of its type, its text and its traceback."""
    return {"type": type(error).__name__, "text": str(error), "traceback": trace[-TEXT_LIMIT:]}


def unpack_error(entry: dict[str, str]) -> RealTimeError:
    """Return the exception to raise for one of another process: one of ours as itself, any other as InterfaceError."""
    kind = getattr(errors, entry["type"], None)
    error: RealTimeError
    if isinstance(kind, type) and issubclass(kind, RealTimeError):
        error = kind(entry["text"])
    else:
        error = InterfaceError(f"the interface's process raised {entry['type']}: {entry['text']}")
    error.add_note(f"In the interface's process:\n{entry['traceback'].rstrip()}")
    return error


def space_to_json(space: spaces.Space[Any], what: str) -> dict[str, Any]:
    """Return what travels of a space.

    Raises:
        ConfigurationError: If it is of a kind that cannot travel; names `what`.
    """
    if isinstance(space, spaces.Tuple):
        return {
            "kind": "Tuple",
            "parts": [space_to_json(part, f"{what}[{k}]") for k, part in enumerate(space.spaces)],
        }
    if isinstance(space, spaces.Box):
        return {"kind": "Box", "low": space.low, "high": space.high, "dtype": space.dtype.str}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": space.dtype.str}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": [int(n) for n in space.shape]}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec, "start": space.start, "dtype": space.dtype.str}
    raise ConfigurationError(
        f'{what} is a {type(space).__name__}, which cannot travel to another process: with runner="process", use '
        "Box, Discrete, MultiBinary or MultiDiscrete"
    )


def space_from_json(entry: dict[str, Any]) -> spaces.Space[Any]:
    """Return the space that `space_to_json` described."""
    arguments = {key: value for key, value in entry.items() if key not in ("kind", "parts")}
    if "dtype" in arguments:
        arguments["dtype"] = np.dtype(arguments["dtype"]).type
    if entry["kind"] == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in entry["parts"]])
    space: spaces.Space[Any] = getattr(spaces, entry["kind"])(**arguments)
    return space
