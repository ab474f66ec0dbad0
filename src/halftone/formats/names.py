"""From a format's name (``uint4``) to the format."""

from functools import cache

from halftone.formats.contract import AbstractFormat
from halftone.foundation.errors import ConfigError
from halftone.foundation.registry import find, names

_KINDS = "halftone.formats.kinds"


@cache
def parse(name: str) -> AbstractFormat:
    """Return the format called ``name``; every file of ``formats/kinds`` (and every plug-in) is asked in turn.

    Raises:
        ConfigError: no kind of format knows the name.
    """
    for kind in names(_KINDS):
        found: AbstractFormat | None = find(_KINDS, kind).parse(name)  # type: ignore[attr-defined]
        if found is not None:
            return found
    raise ConfigError(f"format '{name}'", "a name such as uint4 or int8", fix=f"Kinds: {', '.join(names(_KINDS))}.")
