"""Markdown tables, for the README and the docs."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return a Markdown table, columns aligned in the source too; columns of numbers are aligned right.

    >>> print(table([{"name": "float", "fd": 1.5}, {"name": "W4A8", "fd": None}], {"name": "model", "fd": "FD"}))
    | model |  FD |
    | ----- | --: |
    | float | 1.5 |
    | W4A8  |     |

    Args:
        rows: an absent or None cell is left empty. Floats are written with four significant digits; give a string for
            another number of digits.
        columns: titles by the rows' keys, in order.
    """
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    titles = [_cell(title) for title in columns.values()]
    right = [_numeric(row.get(key) for row in rows) for key in columns]
    widths = [max(3, *(len(line[place]) for line in [titles, *cells])) for place in range(len(titles))]
    rule = ["-" * (width - 1) + ":" if flag else "-" * width for width, flag in zip(widths, right, strict=True)]
    return "\n".join(
        [_line(titles, widths, right), _line(rule, widths, right)] + [_line(c, widths, right) for c in cells]
    )


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (c.rjust(w) if flag else c.ljust(w) for c, w, flag in zip(cells, widths, right, strict=True))
    return "| " + " | ".join(padded) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    # A bar would open a new cell, and a line break would end the table.
    return " ".join(text.replace("|", "\\|").split())


def _numeric(values: Any) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)
