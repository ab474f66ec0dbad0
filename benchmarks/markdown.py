"""Markdown that the pages of all studies share."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from halftone.foundation.files import write_atomically


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table's lines; the first column is text, the others numbers."""
    lines = [f"| {' | '.join(head)} |", "|" + "|".join([" --- "] + [" ---: "] * (len(head) - 1)) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def interval(value: Any, digits: int = 2, scale: float = 1.0) -> str:
    """Return an estimate with its interval."""
    if value is None:
        return "-"
    numbers = [value[key] for key in ("value", "low", "high")]
    if any(isinstance(number, str) for number in numbers):
        return "equal"
    middle, low, high = (f"{number * scale:.{digits}f}" for number in numbers)
    return f"{middle} [{low}, {high}]"


def bench_table(found: Mapping[str, Any], batch: str) -> list[str]:
    """Return the latency table of one run of :func:`halftone.evaluate.bench.bench`, with its baselines."""
    body = []
    for each in found["rows"]:
        faster = [each["speedup"].get(name) for name in ("bfloat16", "float32")]
        memory = f"{each['memory']['peak'] / 1e6:.0f}" if each["memory"] else "-"
        ratios = [interval(ratio) if ratio else "-" for ratio in faster]
        spread = f"{each['p10']:.1f} to {each['p90']:.1f}"
        body.append([each["name"], f"{each['median']:.2f}", spread, *ratios, memory])
    head = ["model", f"ms/call, batch {batch}", "10 % to 90 %", "× bfloat16", "× float32", "peak memory, MB"]
    return table(head, body)


def marks(name: str) -> tuple[str, str]:
    """Return what a generated block called ``name`` stands between."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def refreshed(readme: Path, name: str, block: str) -> str:
    """Put the block called ``name`` in its place in ``readme``, and return what to tell."""
    begin, end = marks(name)
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if begin not in text or end not in text:
        return f"README: left as it is, it lacks the markers {begin} and {end}"
    new = re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{block}{end}", text, flags=re.DOTALL)
    write_atomically(readme, new)
    return f"README: table of {name} replaced"
