"""Strict construction of frozen dataclasses from plain data, the way back, and ``path.to.key=value`` overrides.

Plain data is what YAML and JSON give: dict, list, str, int, float, bool, None. Nothing is guessed: an unknown key, a
missing key or a value of another type is a ``ConfigError`` that names the place by the same dotted path that
``override`` takes.
"""

import copy
import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import numpy as np
import yaml

from halftone.foundation.errors import ConfigError, HalftoneError, suggest

T = TypeVar("T")

# YAML 1.1, which PyYAML follows, reads 1e-3 (no dot) as a string: everybody writes it, so it counts as a float here.
_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
# JSON has no infinities: `plain` writes YAML's names for them and `build` reads them back.
_NOT_FINITE = {".inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}

# Metadata of a field that ``plain`` leaves out while it has its default: one that came later, so that what was written before it
# and what is written without it are the same bytes.
UNSAID_BY_DEFAULT = types.MappingProxyType({"unsaid by default": True})


def build(cls: type[T], data: Any, where: str = "") -> T:
    """Return an instance of the dataclass ``cls`` made from ``data``.

    Understood field types: bool, int, float, str, None, Path, Any, Literal, nested dataclasses, unions of these,
    ``tuple[X, ...]``, ``tuple[A, B]``, ``list[X]`` and ``dict[str, X]`` (``dict[int, X]`` too). An int serves as a
    float; a bool is never a number. Parts of ``data`` that are already built are taken as they are.

    Args:
        cls: the dataclass.
        data: a mapping from field names to plain data.
        where: what ``data`` is, for messages: ``recipe`` gives ``recipe.steps.2.lr``.

    Raises:
        ConfigError: unknown key (with a suggestion), missing key, or a value of the wrong type. A ``ValueError`` or
            ``TypeError`` from ``__post_init__`` becomes one too; one that names a field (``lr``, ``range.power``) there is
            about ``where.lr``.
    """
    built = _dataclass(cls, data, where)
    return typing.cast(T, built)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON-safe data: the inverse of ``build``.

    Dataclasses become dicts of their fields (those with the metadata ``UNSAID_BY_DEFAULT`` only where they differ from their
    default), tuples lists, paths and keys strings, NumPy scalars Python ones, and infinities and NaN the strings ``.inf``,
    ``-.inf`` and ``.nan``.

    Raises:
        TypeError: the value holds something that is not data, a tensor for example.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if _is_said(field, value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is not plain data: {value!r:.80}")


def _is_said(field: dataclasses.Field, owner: Any) -> bool:
    unsaid = field.metadata.get("unsaid by default", False) and getattr(owner, field.name) == field.default
    return field.init and not unsaid


def override(data: Any, assignments: list[str], new_keys: bool = False) -> Any:
    """Return a deep copy of ``data`` with every ``path.to.key=value`` of ``assignments`` applied, in order.

    The value is parsed as YAML. A list entry is addressed by its number (negative from the end). A key that itself
    holds dots is matched whole.

    Args:
        data: nested dicts and lists, such as ``plain`` returns.
        assignments: for instance ``["steps.1.iterations=200", "policy.weights=int4"]``.
        new_keys: whether the last key of a path may be new to its dict; ``build`` then judges whether it is known.
            Needed where ``data`` states only what differs from the defaults.

    Raises:
        ConfigError: no ``=``, a value that is not YAML, or a path that leads nowhere (with a suggestion).
    """
    data = copy.deepcopy(data)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals or not path:
            raise ConfigError(f"--set {assignment}", "path.to.key=value", "no '='" if not equals else "no path")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {path}", "a YAML value", _shown(text), "Quote it.") from error
        _assign(data, path, value, new_keys)
    return data


def assigned(data: Any, changes: Mapping[str, Any], new_keys: bool = True) -> Any:
    """Return a deep copy of ``data`` with the value at every dotted path of ``changes`` replaced, in order.

    Like ``override``, with values that are data already.
    """
    data = copy.deepcopy(data)
    for path, value in changes.items():
        _assign(data, path, copy.deepcopy(value), new_keys)
    return data


def _assign(data: Any, path: str, value: Any, new_keys: bool) -> None:
    """Set the place that ``path`` names inside ``data`` to ``value``."""
    rest, done = path.split("."), ""
    node = data
    while True:
        key, rest, exists = _step(node, rest, done, path)
        if not exists and (rest or not new_keys):
            fix = suggest(str(key), map(str, node))
            raise ConfigError(f"--set {path}", "a known key", f"'{_join(done, key)}'", fix)
        if not rest:
            node[key] = value
            return
        node, done = node[key], _join(done, key)


def _step(node: Any, rest: list[str], done: str, path: str) -> tuple[Any, list[str], bool]:
    """Return the key of ``node`` that ``rest`` begins with, what remains of ``rest``, and whether the key exists."""
    if isinstance(node, dict):
        names = {str(key): key for key in node}
        for length in range(len(rest), 0, -1):
            joined = ".".join(rest[:length])
            if joined in names:
                return names[joined], rest[length:], True
        return rest[0], rest[1:], False
    if isinstance(node, list):
        if re.fullmatch(r"-?\d+", rest[0]) and -len(node) <= int(rest[0]) < len(node):
            return int(rest[0]), rest[1:], True
        fix = f"They are {done}.0 to {done}.{len(node) - 1}." if node else f"'{done}' is empty: replace it as a whole."
        raise ConfigError(
            f"--set {path}", f"the number of one of the {len(node)} entries of '{done}'", f"'{rest[0]}'", fix
        )
    fix = f"Set '{done}' itself."
    raise ConfigError(f"--set {path}", f"'{done}' to be a mapping or a list", _shown(node), fix)


def _dataclass(cls: type, data: Any, where: str) -> Any:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(where or cls.__name__, f"a mapping ({cls.__name__})", _shown(data))
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in data:
        if key not in fields:
            raise ConfigError(_join(where, key), "a known key", f"'{key}'", suggest(str(key), fields))
    missing = [field.name for field in fields.values() if field.name not in data and _required(field)]
    if missing:
        keys = ", ".join(f"'{name}'" for name in missing)
        raise ConfigError(where or cls.__name__, f"{keys} ({cls.__name__} needs it)", "no such key", "Add it.")
    hints = _hints(cls)
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in data.items()}
    try:
        return cls(**values)
    except HalftoneError as error:
        if where and isinstance(error, ConfigError) and error.where.partition(".")[0] in fields:
            raise ConfigError(_join(where, error.where), error.expected, error.got, error.fix) from error
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the annotation ``kind`` wants it, or raise ``ConfigError`` at ``where``."""
    origin = typing.get_origin(kind)
    if kind is Any or kind is object:
        return value
    if origin is Union or origin is types.UnionType:
        return _union(kind, value, where)
    if origin is Literal:
        return _literal(kind, value, where)
    container = origin or kind
    if container in (tuple, list, Sequence):
        return _sequence(kind, value, where)
    if container in (dict, Mapping):
        return _mapping(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value, where)
    return _scalar(kind, value, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is None or kind is types.NoneType:
        if value is None:
            return None
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and value.lower() in _NOT_FINITE:
            return _NOT_FINITE[value.lower()]
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif not isinstance(kind, type):
        raise TypeError(f"{where}: build() does not understand the annotation {kind!r}")
    elif isinstance(value, kind):
        return value
    raise ConfigError(where, _named(kind), _shown(value))


def _literal(kind: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(kind)
    # The types are compared as well because True == 1.
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return value
    words = [choice for choice in choices if isinstance(choice, str)]
    fix = suggest(value, words) if isinstance(value, str) and words else f"Choose {_named(kind)}."
    if isinstance(value, bool):
        fix = "YAML reads a bare on, off, yes or no as true or false: quote it. " + fix
    raise ConfigError(where, _named(kind), _shown(value), fix)


def _union(kind: Any, value: Any, where: str) -> Any:
    members = typing.get_args(kind)
    # A member that the value already belongs to wins over one that it must be turned into: 3 in float | int stays int.
    # The one exception: 1e-3 in float | str is the float that YAML failed to see.
    unread_float = float in members and isinstance(value, str) and _EXPONENT.fullmatch(value)
    if type(value) in members and not unread_float:
        return value
    fitting = [member for member in members if _same_shape(member, value)]
    if len(fitting) == 1:
        return _convert(fitting[0], value, where)  # its own message is the most precise one
    for member in sorted(fitting, key=lambda member: member is str):  # str takes any string, so it comes last
        try:
            return _convert(member, value, where)
        except ConfigError:
            continue
    raise ConfigError(where, _named(kind), _shown(value))


def _same_shape(kind: Any, value: Any) -> bool:
    """Whether ``kind`` is written the way ``value`` is: as a mapping, as a list, or as a scalar."""
    container = typing.get_origin(kind) or kind
    if isinstance(value, Mapping):
        return container in (dict, Mapping) or dataclasses.is_dataclass(kind)
    if isinstance(value, list | tuple):
        return container in (tuple, list, Sequence)
    if dataclasses.is_dataclass(kind):
        return isinstance(value, typing.cast(type, kind))
    return container not in (dict, Mapping, tuple, list, Sequence) and (kind is types.NoneType) == (value is None)


def _sequence(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(where, _named(kind), _shown(value))
    arguments, container = typing.get_args(kind), typing.get_origin(kind) or kind
    if container is not tuple:
        entry = arguments[0] if arguments else Any
        return [_convert(entry, part, _join(where, i)) for i, part in enumerate(value)]
    if not arguments:
        return tuple(value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ConfigError(where, f"{len(arguments)} entries ({_named(kind)})", f"{len(value)}: {_shown(value)}")
    pairs = enumerate(zip(arguments, value, strict=True))
    return tuple(_convert(entry, part, _join(where, i)) for i, (entry, part) in pairs)


def _mapping(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(where, _named(kind), _shown(value))
    key_kind, entry_kind = typing.get_args(kind) or (Any, Any)
    return {_key(key_kind, key, where): _convert(entry_kind, entry, _join(where, key)) for key, entry in value.items()}


def _key(kind: Any, key: Any, where: str) -> Any:
    # JSON turns int keys into strings, so they are read back here.
    if kind is int and isinstance(key, str) and re.fullmatch(r"-?\d+", key):
        return int(key)
    return _convert(kind, key, f"{_join(where, key)} (the key itself)")


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _named(kind: Any) -> str:
    """Name a type the way a reader of YAML would."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Union or origin is types.UnionType:
        return " or ".join(_named(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if kind is types.NoneType:
        return "null"
    container = origin or kind
    if container in (tuple, list, Sequence):
        entries = [_named(entry) for entry in arguments if entry is not Ellipsis]
        return f"a list of {', '.join(entries)}" if entries else "a list"
    if container in (dict, Mapping):
        return f"a mapping to {_named(arguments[1])}" if arguments else "a mapping"
    if dataclasses.is_dataclass(kind):
        return f"a mapping ({getattr(kind, '__name__', kind)})"
    return "a path" if kind is Path else getattr(kind, "__name__", str(kind))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
