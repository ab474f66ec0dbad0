"""The rooms of methods, and what is in them."""

import pkgutil

from halftone import methods
from halftone.foundation.errors import ConfigError, suggest
from halftone.foundation.registry import find, names
from halftone.methods.contract import AbstractMethod

ROOMS = tuple(sorted(room.name for room in pkgutil.iter_modules(methods.__path__) if room.ispkg))


def method_class(described: str, where: str) -> type[AbstractMethod]:
    """Return the class of the method ``room/name``.

    Raises:
        ConfigError: at ``where``, no such room (with a suggestion); or no such method.
    """
    room, _, name = described.partition("/")
    if room not in ROOMS:
        raise ConfigError(where, "a room of methods", room, suggest(room, ROOMS))
    return find(f"halftone.methods.{room}", name, where)


def methods_by_room() -> dict[str, list[str]]:
    """Return every method's name by room, plug-ins included."""
    return {room: names(f"halftone.methods.{room}") for room in ROOMS}


def givers(word: str) -> list[str]:
    """Return the methods, ``room/name``, that give ``word`` (see :class:`AbstractMethod`); imports them all."""
    known = [f"{room}/{name}" for room, inside in methods_by_room().items() for name in inside]
    return [method for method in known if word in method_class(method, method).gives]
