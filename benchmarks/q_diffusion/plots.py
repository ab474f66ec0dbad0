"""Pictures of the study, as SVG. Each carries the digest of the numbers it shows, so that a test can tell a stale one."""

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402 - the backend comes first
from matplotlib.figure import Figure  # noqa: E402

from benchmarks.q_diffusion.details import movement  # noqa: E402
from benchmarks.q_diffusion.plan import CALIBRATIONS, METHODS  # noqa: E402
from benchmarks.q_diffusion.results import Section, pick  # noqa: E402
from benchmarks.q_diffusion.tables import NAMES, main_rows  # noqa: E402

_COLOURS = {"q-diffusion": "#1b6ca8", "gptq": "#d9822b", "rtn": "#8a8a8a", "linear": "#8a8a8a"}
_STYLES = {"8": ":", "5": "--", "4": "-"}
# Text stays text, and ids do not depend on the run: equal numbers give equal files on one version of matplotlib.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "halftone", "font.size": 9}


def digest(numbers: Any) -> str:
    """Return the mark of the numbers that a picture shows."""
    return "data-" + hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


def pictures(sections: dict[str, Section]) -> dict[str, tuple[str, Callable[[], str]]]:
    """Return, by file name, the digest of each picture that can be drawn and a function that draws it."""
    makers = {
        "headline": ("headline", _headline_data, _headline),
        "trajectory": ("trajectory", _trail_data, _trail),
        "timesteps": ("timesteps", _timesteps_data, _bars),
        "ablation": ("ablation", _ablation_data, _bars),
        "shortcuts": ("ranges", _shortcut_data, _bands),
        "ranges": ("ranges", _range_data, _bands),
    }
    found = {}
    for name, (section, collect, draw) in makers.items():
        numbers = collect(sections.get(section, {}))
        if numbers:
            mark = digest(numbers)
            found[f"q-diffusion-{name}.svg"] = (
                mark,
                lambda draw=draw, numbers=numbers, mark=mark: _svg(draw, numbers, mark),
            )
    return found


def _svg(draw: Callable[[Any], Figure], numbers: Any, mark: str) -> str:
    with matplotlib.rc_context(_SVG):
        figure = draw(numbers)
        out = io.StringIO()
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Description": mark})
        plt.close(figure)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _psnr(row: Any) -> list[float] | None:
    found = row.paired["psnr"] if row is not None and row.paired else None
    if found is None or isinstance(found["value"], str):
        return None
    return [round(found[key], 4) for key in ("value", "low", "high")]


def _headline_data(section: Section) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in main_rows(section):
        value = _psnr(row)
        if value:
            found.setdefault(row.labels["bits"], {})[row.labels["method"]] = value
    return found


def _headline(data: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3))
    for shift, method in enumerate(METHODS):
        places = [(x, data[bits][method]) for x, bits in enumerate(data) if method in data[bits]]
        if not places:
            continue
        values = [value for _, (value, _, _) in places]
        spread = [[v - low for _, (v, low, _) in places], [high - v for _, (v, _, high) in places]]
        at = [x + (1 - shift) * 0.25 for x, _ in places]
        axes.bar(at, values, 0.23, yerr=spread, color=_COLOURS[method], label=NAMES[method], capsize=2)
    axes.set_xticks(range(len(data)), [bits.upper() for bits in data])
    axes.set_ylabel("PSNR to the float model, dB")
    axes.legend(frameon=False)
    return figure


def _trail_data(section: Section) -> dict[str, Any]:
    keep = ("timesteps", "x_mse", "eps_mse")
    return {name: {**row.labels, **{key: row.metrics["trail"][key] for key in keep}} for name, row in section.items()}


def _trail(data: dict[str, Any]) -> Figure:
    figure, both = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True)
    for axes, key, title in zip(both, ("x_mse", "eps_mse"), ("x_t", "the denoiser's output"), strict=True):
        for line in data.values():
            label = f"{NAMES.get(line['method'], line['method'])}, {line['bits']} bits"
            calls = range(len(line[key]))
            # All start from equal noise: an error of zero has no place on a logarithmic axis.
            errors = [value or float("nan") for value in line[key]]
            axes.plot(calls, errors, _STYLES.get(line["bits"], "-"), color=_COLOURS[line["method"]], label=label)
        axes.set_yscale("log")
        axes.set_xlabel("denoiser call (0 = pure noise)")
        axes.set_title(f"MSE of {title} against the float model")
    both[0].legend(frameon=False)
    return figure


def _timesteps_data(section: Section) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in section.values():
        value = _psnr(row)
        if value:
            name = row.labels["select"] + ("" if row.labels["samples"] == "budget" else f", {row.labels['samples']}")
            found.setdefault(row.labels["bits"], {})[name] = value
    return found


def _ablation_data(section: Section) -> dict[str, Any]:
    """The full method, and with one ingredient changed."""
    full = {"calibration": CALIBRATIONS[0], "split": "auto", "reconstruction": "ada_round"}
    changes = [{}, {"calibration": "first-tenth"}, {"split": "none"}, {"reconstruction": "nearest"}]
    found: dict[str, Any] = {}
    for bits in ("w4a32", "w4a8"):
        for changed in changes:
            value = _psnr(pick(section, bits=bits, **{**full, **changed}))
            if value:
                name = ", ".join(f"{key} {level}" for key, level in changed.items()) or "full method"
                found.setdefault(bits, {})[name] = value
    return found


def _bars(data: dict[str, Any]) -> Figure:
    most = max(len(bars) for bars in data.values())
    figure, every = plt.subplots(1, len(data), figsize=(4.5 * len(data), 0.6 + 0.3 * most), squeeze=False)
    for axes, (bits, bars) in zip(every[0], data.items(), strict=True):
        values = [value for value, _, _ in bars.values()]
        spread = [[v - low for v, low, _ in bars.values()], [high - v for v, _, high in bars.values()]]
        axes.barh(list(bars), values, xerr=spread, color=_COLOURS["q-diffusion"], capsize=2)
        axes.invert_yaxis()
        axes.set_title(bits.upper())
        axes.set_xlabel("PSNR to the float model, dB")
    figure.tight_layout()
    return figure


_PANELS = 6


def _shortcut_data(section: Section) -> dict[str, Any]:
    row = section.get("float")
    if row is None:
        return {}
    found = row.metrics["ranges"]["concatenations"]
    most = sorted(found, key=lambda path: -found[path]["bimodality"])[:_PANELS]
    times = row.metrics["ranges"]["timesteps"]
    return {
        f"{path} ({found[path]['bimodality']:.1f} dB)": {"t": times, "deep part": parts[0], "skip": parts[1]}
        for path in most
        if len(parts := found[path]["parts"]) == 2
    }


def _range_data(section: Section) -> dict[str, Any]:
    """The layers whose range moves most between the calls."""
    row = section.get("float")
    if row is None:
        return {}
    layers = row.metrics["ranges"]["layers"]

    most = sorted(layers, key=lambda path: -movement(layers[path]))[:_PANELS]
    return {path: {"t": row.metrics["ranges"]["timesteps"], "input": layers[path]} for path in most}


def _bands(data: dict[str, Any]) -> Figure:
    lines = (len(data) + 2) // 3
    figure, grid = plt.subplots(lines, 3, figsize=(10, 2.4 * lines), squeeze=False)
    for axes in grid.flat[len(data) :]:
        axes.set_visible(False)
    for axes, (path, bands) in zip(grid.flat, data.items(), strict=False):
        times = bands["t"]
        for (name, band), colour in zip(
            ((k, v) for k, v in bands.items() if k != "t"), ("#1b6ca8", "#d9822b"), strict=False
        ):
            axes.fill_between(times, band["minimum"], band["maximum"], color=colour, alpha=0.2, linewidth=0)
            axes.fill_between(times, band["low"], band["high"], color=colour, alpha=0.5, linewidth=0, label=name)
        axes.set_title(path, fontsize=7)
        axes.invert_xaxis()
    grid[-1][0].set_xlabel("t (noisy to clean)")
    grid[0][0].legend(frameon=False)
    figure.tight_layout()
    return figure
