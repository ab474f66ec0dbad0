"""Markdown that the pages of all studies share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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
