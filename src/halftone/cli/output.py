"""What a command prints: its result on stdout, everything else on stderr."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halftone.foundation.progress import Progress

_KILO = 1000.0


@contextlib.contextmanager
def working() -> Iterator["Progress"]:
    """Yield where to show progress, and send what libraries print meanwhile to stderr: stdout is for the result."""
    from halftone.foundation.progress import Progress

    with contextlib.redirect_stdout(sys.stderr), Progress() as progress:
        yield progress


def emit(result: Mapping[str, Any], as_json: bool, human: Callable[[], str]) -> None:
    """Print ``result``: as one JSON object, or as the text that ``human`` makes of it."""
    from halftone.foundation.build import plain

    print(json.dumps(plain(result), indent=2, ensure_ascii=False) if as_json else human(), flush=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """Return aligned text columns; those numbered in ``right`` are aligned to the right.

    >>> print(table(["name", "ms"], [["float32", 12.0], ["torch", 3.5]], right=[1]))
    name       ms
    float32  12.0
    torch     3.5
    """
    cells = [[str(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]

    def line(row: list[str]) -> str:
        padded = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in cells)


def size(count: float) -> str:
    """Return a number of bytes for readers.

    >>> size(512), size(3_140_000), size(24e9)
    ('512 B', '3.14 MB', '24 GB')
    """
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < _KILO:
            break
        count, unit = count / _KILO, larger
    return f"{count:.3g} {unit}"
