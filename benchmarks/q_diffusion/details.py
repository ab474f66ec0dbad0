"""Tables beside the figures: the error along the trajectory at a few calls, the range of every layer's input."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.q_diffusion.results import Section
from benchmarks.q_diffusion.tables import NAMES, table

_CALLS = 5


def trajectory_table(section: Section) -> list[str]:
    """Return the errors at a few calls, evenly along the trajectory, the last one among them."""
    trails = {name: row.metrics["trail"] for name, row in section.items()}
    if not trails:
        return []
    count = min(len(trail["timesteps"]) for trail in trails.values())
    # All start from equal noise: at the first call there is no error of x_t to show.
    calls = sorted({round(float(at)) for at in np.linspace(0, count - 1, _CALLS + 1)[1:]})
    times = next(iter(trails.values()))["timesteps"]
    body = []
    for name, row in section.items():
        method, bits = row.labels["method"], row.labels["bits"]
        for key, title in (("x_mse", "x_t"), ("eps_mse", "output")):
            cells = [f"{trails[name][key][call]:.2e}" for call in calls]
            body.append([f"{NAMES.get(method, method)}, {bits} bits: {title}", *cells])
    head = ["MSE against the float model at", *(f"call {call} (t = {times[call]:.0f})" for call in calls)]
    return table(head, body)


def movement(layer: dict[str, Any]) -> float:
    """Return how many times the narrowest span of a layer's input, between two quantiles, the widest of all calls is."""
    spans = [high - low for high, low in zip(layer["high"], layer["low"], strict=True)]
    return max(spans) / max(min(spans), 1e-9)


def drift(layers: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """Return by what share the span of a layer's input changes from a call to the next, and to calls at least half a trajectory
    away: of the median layer.
    """
    near, far = [], []
    for layer in layers:
        spans = np.log(np.maximum(np.asarray(layer["high"]) - np.asarray(layer["low"]), 1e-9))
        apart = np.abs(np.subtract.outer(np.arange(len(spans)), np.arange(len(spans))))
        changes = np.abs(np.subtract.outer(spans, spans))
        near.append(changes[apart == 1].mean())
        far.append(changes[apart >= len(spans) // 2].mean())
    return float(np.expm1(np.median(near))), float(np.expm1(np.median(far)))


def widest(parts: list[dict[str, Any]]) -> float:
    """Return how many times wider the widest part of a shortcut's input is than the narrowest, over all calls."""
    spans = [max(part["maximum"]) - min(part["minimum"]) for part in parts]
    return max(spans) / max(min(spans), 1e-9)


def ranges_table(section: Section) -> list[str]:
    """Return the range of every layer's input over all calls, and how much it moves, folded up."""
    row = section.get("float")
    if row is None:
        return []
    ranges, roles = row.metrics["ranges"], row.metrics.get("roles", {})
    body = [
        [
            f"`{path}`",
            roles.get(path, "-"),
            f"{min(layer['minimum']):.2f}",
            f"{max(layer['maximum']):.2f}",
            f"{movement(layer):.1f}",
        ]
        for path, layer in ranges["layers"].items()
    ]
    low, high = ranges["quantiles"]
    words = (
        f"Least and greatest value over {len(ranges['timesteps'])} calls. *Moves*: the widest call's span between the quantiles "
        f"{low} and {high}, over the narrowest call's; 1 is a range that stands still."
    )
    lines = ["<details>", f"<summary>The input range of all {len(body)} layers</summary>", "", words, ""]
    head = ["layer", "role", "min", "max", "moves, ×"]
    return [*lines, *table(head, body), "</details>", ""]
