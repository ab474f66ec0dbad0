"""Checks of numbers in ``__post_init__``: a value out of range is refused where it is written, not where it does harm."""

import math
from typing import Any

from halftone.foundation.errors import ConfigError


def at_least(owner: Any, low: float, *fields: str) -> None:
    """Raise a ConfigError that names the field unless each of ``fields`` is a finite number, ``low`` or more."""
    between(owner, low, math.inf, *fields)


def between(owner: Any, low: float, high: float, *fields: str) -> None:
    """Raise a ConfigError that names the field unless each of ``fields`` is a finite number in ``[low, high]``."""
    words = f"{low:g} or more" if math.isinf(high) else f"a number from {low:g} to {high:g}"
    for field in fields:
        for value in _values(owner, field):
            _refuse_unless(low <= value <= high and math.isfinite(value), field, words, value)


def positive(owner: Any, *fields: str, high: float = math.inf) -> None:
    """Raise a ConfigError that names the field unless each of ``fields`` is a finite number above 0, at most ``high``."""
    words = "a number above 0" + ("" if math.isinf(high) else f", at most {high:g}")
    for field in fields:
        for value in _values(owner, field):
            _refuse_unless(0 < value <= high and math.isfinite(value), field, words, value)


def _values(owner: Any, field: str) -> tuple[float, ...]:
    """Return the number of a field, or the numbers of one that holds several."""
    value = getattr(owner, field)
    return value if isinstance(value, tuple) else (value,)


def _refuse_unless(right: bool, field: str, words: str, value: float) -> None:
    if not right:
        raise ConfigError(field, words, f"{value:g}", "Leave the key out for its default.")
