"""Figures as inline SVG that takes its colours and its type from the page, so that one figure serves light and dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

from halftone.report.tables import Markup, escaped, figures

# Colours that stand for the page's variables until the figure has been drawn.
_INK, _SOFT, _LINE, _FLOAT, _QUANT, _PAPER = (f"#0a0b0{n}" for n in range(6))
_VARIABLES = {_INK: "ink", _SOFT: "soft", _LINE: "line", _FLOAT: "cyan", _QUANT: "magenta", _PAPER: "paper"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's type
    "text.parse_math": False,  # a dollar sign in a layer's name is a dollar sign
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SOFT,
    "axes.linewidth": 0.6,
    "axes.labelcolor": _SOFT,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Band:
    """The range of one tensor by denoiser call: extremes and inner quantiles."""

    minimum: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    maximum: Sequence[float]

    @property
    def width(self) -> float:
        """The widest of its calls; NaNs do not count."""
        spans = [b - a for a, b in zip(self.minimum, self.maximum, strict=False)]
        return max((span for span in spans if math.isfinite(span)), default=0.0)


def block_errors(before: Mapping[str, float], after: Mapping[str, float], first: str, second: str) -> Markup:
    """Draw each block's error before and after a step, in execution order from the top.

    Args:
        first, second: what the two errors are called.
    """
    names = [name for name in before if _positive(before[name]) and _positive(after.get(name, math.nan))]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(7.2, 0.75 + 0.2 * len(names))
        rows = range(len(names))
        axes.hlines(rows, [after[n] for n in names], [before[n] for n in names], color=_LINE, linewidth=3)
        axes.plot([before[n] for n in names], rows, "o", color=_PAPER, markeredgecolor=_SOFT, markersize=5, label=first)
        axes.plot([after[n] for n in names], rows, "o", color=_QUANT, markersize=5, label=second)
        axes.set_yticks(list(rows), [_shorten(name) for name in names])
        axes.set_ylim(len(names) - 0.3, -0.7)
        axes.set_xscale("log")
        _powers(axes.xaxis, [each[n] for n in names for each in (before, after)])
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.set_xlabel("error of the block's output")
        figure.legend(loc="outside upper left", ncols=2)
        return _svg(figure, f"error of {len(names)} blocks, {first} and {second}")


def trail(errors: Sequence[float], label: str) -> Markup:
    """Draw an error at each denoiser call, on a logarithmic scale."""
    shown = [e if _positive(e) else math.nan for e in errors]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(4.0, 2.2)
        axes.plot(range(1, len(shown) + 1), shown, color=_QUANT, linewidth=1.6)
        if any(_positive(e) for e in shown):
            axes.set_yscale("log")
            _powers(axes.yaxis, [e for e in shown if _positive(e)])
        axes.grid(axis="y")
        _calls(axes, len(shown))
        return _svg(figure, label)


def bands(parts: Sequence[Band], label: str) -> Markup:
    """Draw the ranges of one tensor, or of the parts that a layer reads side by side, over the denoiser calls."""
    colours = [_FLOAT, _QUANT, _INK, _SOFT]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(3.2, 1.9)
        for number, band in enumerate(parts):
            colour = colours[number % len(colours)]
            calls = range(1, len(band.minimum) + 1)
            axes.fill_between(calls, band.low, band.high, color=colour, alpha=0.28, linewidth=0)
            axes.plot(calls, band.maximum, color=colour, linewidth=1.2)
            axes.plot(calls, band.minimum, color=colour, linewidth=1.2)
        axes.axhline(0, color=_LINE, linewidth=0.6, zorder=0)
        _calls(axes, max((len(band.minimum) for band in parts), default=1))
        return _svg(figure, label)


def layer_errors(errors: Mapping[str, tuple[str, float]]) -> Markup:
    """Draw the relative weight error of each layer, a row for each role.

    Args:
        errors: role and error by path.
    """
    rows: dict[str, list[float]] = {}
    for role, error in errors.values():
        rows.setdefault(role, []).append(error)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(7.2, 0.6 + 0.22 * len(rows))
        for place, values in enumerate(rows.values()):
            axes.axhline(place, color=_LINE, linewidth=0.6, zorder=0)
            axes.plot(values, [place] * len(values), "o", color=_QUANT, alpha=0.55, markersize=5.5, markeredgewidth=0)
        axes.set_yticks(range(len(rows)), [_shorten(role) for role in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.set_xlabel("norm of the weight's error relative to the weight's")
        return _svg(figure, "relative weight error of each layer by role")


def _calls(axes: Axes, count: int) -> None:
    axes.set_xlim(1, max(count, 2))
    axes.xaxis.set_major_locator(FixedLocator(sorted({1, (count + 1) // 2, count})))
    axes.set_xlabel("denoiser call, from noise to picture")


def _powers(axis: Axis, values: Sequence[float]) -> None:
    """Write the ticks of a logarithmic axis as text: fewer than two powers of ten in sight get a 2 and a 5 between them."""
    decades = math.log10(max(values) / min(values)) if values else 0.0
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 1.5 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: str(figures(value, 1)).replace("1 · 10", "10")))
    axis.set_minor_locator(FixedLocator([]))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # No pyplot: it keeps figures and chooses backends.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _shorten(text: str, most: int = 56) -> str:
    # Beginning and end say most of a long path, and its figure must keep some room.
    return text if len(text) <= most else text[: most // 2 - 1] + "…" + text[-most // 2 :]


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _svg(figure: Figure, label: str) -> Markup:
    """Return the figure as inline SVG without sizes, namespaces, metadata and colours of its own."""
    target = io.StringIO()
    # The salt names clip paths and markers, which share one name space on the page.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    drawn = target.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"\s*<!--.*?-->", "", drawn, flags=re.DOTALL)
    box = re.search(r'viewBox="[\d. ]+"', drawn)
    start = f'<svg {box.group() if box else ""} role="img" aria-label="{escaped(label)}">'
    drawn = re.sub(r"<svg[^>]*>", lambda _: start, drawn, count=1)
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", drawn)
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, f"var(--{variable})")
    # Both spellings of the link are read inside HTML; the newer one needs no name space.
    return Markup(drawn.replace("xlink:href", "href").strip())
