"""Every error a user can meet, and the shape of its message: where - expected - got - how to fix.

HalftoneError
  ConfigError        unknown key, wrong type, contradictory recipe, bad option
  MatchError         a pattern or role matched nothing, or left a layer over
  FormatError        a value or shape that a number format cannot hold
  KernelError        no kernel of the wanted engine serves this layer or machine
  CalibrationError   no data, NaN or constant statistics
  ArtifactError      a saved model that is damaged, foreign, or newer than this program
  OutputError        the output cannot be written (exists, disk full, no permission)
  MissingExtra       an optional package is absent
"""

import difflib
from collections.abc import Iterable


class HalftoneError(Exception):
    """Base of all errors raised on purpose.

    Args:
        where: the recipe key, module path, file or option concerned.
        expected: what would have been right.
        got: what was found.
        fix: one thing the reader can do.
    """

    def __init__(self, where: str, expected: str = "", got: str = "", fix: str = "") -> None:
        parts = [where]
        if expected:
            parts.append(f"expected {expected}")
        if got:
            parts.append(f"got {got}")
        message = ": ".join([parts[0], ", ".join(parts[1:])]) if len(parts) > 1 else where
        super().__init__(f"{message}. {fix}" if fix else message)
        self.where, self.expected, self.got, self.fix = where, expected, got, fix


class ConfigError(HalftoneError):
    """The request itself is wrong."""


class MatchError(HalftoneError):
    """A pattern or role matched nothing, or a layer was left over."""


class FormatError(HalftoneError):
    """A number format cannot hold this value or shape."""


class KernelError(HalftoneError):
    """No kernel of the wanted engine serves this layer on this machine."""


class CalibrationError(HalftoneError):
    """The calibration data are unusable."""


class ArtifactError(HalftoneError):
    """A saved model cannot be trusted or read."""


class OutputError(HalftoneError):
    """The output cannot be written."""


class MissingExtra(HalftoneError):
    """An optional package is needed."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for the nearest of ``choices``, or the list of them when none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return "Known: " + ", ".join(known) + "." if known else "None are known here."
