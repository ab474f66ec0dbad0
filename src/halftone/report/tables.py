"""HTML pieces. Everything that comes from a file goes through :func:`escaped`; what is markup is a :class:`Markup`."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Markup(str):
    """A string that is HTML already."""


def escaped(value: Any) -> Markup:
    """Return ``value`` as HTML text; markup is left as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape("" if value is None else str(value)))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """Return an element; ``class_`` stands for ``class``, underscores in other names for dashes.

    >>> tag("b", "a < b", class_="x")
    '<b class="x">a &lt; b</b>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>" + "".join(escaped(part) for part in content) + f"</{name}>")


def join(parts: Sequence[Any], between: str = "") -> Markup:
    """Return the parts one after the other."""
    return Markup(between.join(escaped(part) for part in parts))


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, and the number by which it is sorted."""

    shown: Any
    order: float | None = None


@dataclass(frozen=True)
class Column:
    """A table column; numeric ones are aligned right."""

    title: str
    numeric: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], sortable: bool = False, name: str = "") -> Markup:
    """Return a table whose first cell of each row is the row's heading.

    Args:
        rows: cells in the columns' order: plain values or :class:`Cell`.
        sortable: its headings become buttons (by the page's script).
        name: a further CSS class.
    """
    heads = [tag("th", c.title, class_="n" if c.numeric else None, scope="col") for c in columns]
    body = []
    for row in rows:
        cells = []
        for place, (column, cell) in enumerate(zip(columns, row, strict=True)):
            value = cell if isinstance(cell, Cell) else Cell(cell)
            order = None if value.order is None or math.isnan(value.order) else f"{value.order:.9g}"
            kind, scope = ("th", "row") if place == 0 else ("td", None)
            shown = tag("span", "–", class_="none") if value.shown is None or value.shown == "" else value.shown
            cells.append(tag(kind, shown, class_="n" if column.numeric else None, scope=scope, data_order=order))
        body.append(tag("tr", *cells))
    kinds = " ".join(part for part in ("sortable" if sortable else "", name) if part)
    whole = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_=kinds or None)
    return tag("div", whole, class_="scroll")


def figures(value: float | None, digits: int = 3) -> str | None:
    """Return a number with so many significant digits, without an exponent where that is readable."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa} · 10{power}".replace("-", "−")
    whole = math.floor(math.log10(abs(value))) + 1
    return f"{value:.{max(0, digits - whole)}f}".replace("-", "−")


def megabytes(size: float | None) -> str | None:
    """Return bytes as kB, MB or GB (powers of 1000), three digits."""
    if size is None:
        return None
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{figures(size / power)} {unit}"
    return f"{size:.0f} B"


def interval(record: dict[str, Any], low: float | None, high: float | None) -> Markup | None:
    """Return ``low to high`` with the confidence that ``record`` names, 95 % by default."""
    if low is None or high is None or low == high:
        return None
    share = record.get("confidence", 0.95)
    percent = f"{100 * share:.0f} %" if isinstance(share, float) else ""
    return tag("span", f"{figures(low)} to {figures(high)}", class_="interval", title=f"{percent} interval")
