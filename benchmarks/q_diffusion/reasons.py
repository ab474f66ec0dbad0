"""Why a published finding does not show here: sentences, with numbers from the rows or from the model's own weights."""

import functools
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.q_diffusion.results import Result, Section, comparable, gain, pick
from halftone.cli.models import resolve
from halftone.formats import dequantize, quantize
from halftone.formats.segments import along_weight
from halftone.foundation.errors import ConfigError
from halftone.quant import QuantSpec
from halftone.quant.weights import weight_affine

_MOST = 0.95  # of a range
_WEIGHT = QuantSpec("uint4", "channel")
_FILE = "unet/diffusion_pytorch_model.safetensors"


def _decibels(a: Result | None, b: Result | None) -> str | None:
    """Return by how much the mean image of ``a`` is better than that of ``b``; None where they are no pairs."""
    if a is None or b is None or not comparable(a, b):
        return None
    found = gain(a, b)
    return f"{found.value:+.2f} dB ({found.low:+.2f} to {found.high:+.2f})"


def covered(layer: dict[str, Any], calls: slice) -> float:
    """Return what share of the range that a layer's input has over all calls it has over some of them."""
    low, high = np.asarray(layer["minimum"]), np.asarray(layer["maximum"])
    return float((high[calls].max() - low[calls].min()) / max(high.max() - low.min(), 1e-9))


def middle_half(sections: dict[str, Section]) -> str:
    """Return how much of the layers' ranges the middle half of the calls sees."""
    row = sections.get("ranges", {}).get("float")
    if row is None:
        return ""
    ranges = row.metrics["ranges"]
    count, layers = len(ranges["timesteps"]), list(ranges["layers"].values())
    parts = {"middle": slice(count // 4, count - count // 4), "first": slice(0, count // 2)}
    seen = {name: sum(covered(layer, part) >= _MOST for layer in layers) for name, part in parts.items()}
    return (
        f"the middle half sees at least {_MOST:.0%} of the range that all calls have in {seen['middle']} of {len(layers)} "
        f"layers, the first half in {seen['first']}."
    )


def samples(sections: dict[str, Section]) -> str:
    """Return what the number of samples is worth where no step learns over the whole network."""
    many = pick(sections.get("timesteps", {}), bits="w4a8", without="network", samples="1024")
    found = _decibels(pick(sections.get("ablation", {}), without="network"), many)
    if found is None:
        return ""
    return (
        "it is not the step over the whole network, which is ours: without it, 256 in place of 1024 change the mean image by "
        f"{found}. The other steps want more samples than this budget has; the paper's has 5,120."
    )


_LEVERS = (
    ("edges", "q-diffusion-w4a8-wide-shortcuts", "16-bit inputs of the shortcut convolutions"),
    ("timesteps", "w4a8-uniform-1024", "1024 calibration samples in place of 256"),
)


def levers(sections: dict[str, Section]) -> str:
    """Return what brings the smallest budget nearer to its targets, each on its own."""
    found = []
    for section, name, words in _LEVERS:
        rows = sections.get(section, {})
        row, whole, plain = rows.get(name), rows.get("float"), pick(sections.get("ablation", {}), without="nothing")
        decibels = _decibels(row, plain)
        if row and whole and row.distribution and whole.distribution and decibels:
            over = row.distribution["value"] / whole.distribution["value"] - 1
            found.append(f"{words}: distance {over:+.1%}, the mean image {decibels}")
    return f"{'; '.join(found)}." if found else ""


def another_sampler(section: Section) -> str:
    """Return what the exchange of samplers costs weights without the step over the whole network, and which layers it is."""
    carried, fresh, timeless = (
        section.get(f"gptq-w4a32-{name}") for name in ("ddim-to-dpm", "dpm-to-dpm", "time-float-ddim-to-dpm")
    )
    found, without = _decibels(carried, fresh), _decibels(timeless, fresh)
    if found is None:
        return ""
    text = (
        "it is not the step over the whole network, which fits one sampler's trajectory: GPTQ's weights, which had no such step, "
        f"change by {found} in the same exchange."
    )
    if without is None:
        return text
    return text + (
        " The layers that read the timestep alone see no more different inputs in a calibration than there are calls, and the "
        f"other sampler has other timesteps: with those layers in float it is {without}."
    )


@functools.cache
def _weights(model: str) -> dict[str, torch.Tensor]:
    try:
        return load_file(f"{resolve(model)}/{_FILE}")
    except (ConfigError, OSError):  # the study was of a model that is not here
        return {}


def own_scales(row: Result, path: str, channels: list[int]) -> float | None:
    """Return how many times smaller 4-bit rounding's squared error of a shortcut's deep weights is where they have their own scale.

    None where the model's weights are not here.
    """
    weight = _weights(row.protocol["model"]["name"]).get(f"{path}.weight")
    if weight is None or weight.ndim != 4:
        return None
    weight, deep = weight.float(), channels[0]

    def error(segments: tuple[int, ...]) -> float:
        affine = along_weight(weight_affine(weight, segments, _WEIGHT, "min_max"), segments, weight.ndim)
        near = dequantize(quantize(weight, affine, _WEIGHT.number_format), affine, _WEIGHT.number_format)
        return float((near - weight)[:, :deep].square().sum())

    return error((sum(channels),)) / error(tuple(channels))


def split_weights(sections: dict[str, Section]) -> str:
    """Return what one scale for both parts costs the weights of the deep part."""
    row = sections.get("ranges", {}).get("float")
    if row is None:
        return ""
    parts = row.metrics["ranges"]["concatenations"].items()
    found = [times for path, facts in parts if (times := own_scales(row, path, facts["channels"])) is not None]
    if not found:
        return ""
    return (
        "here the deep part has the smaller weights and the larger inputs: with one scale for both parts its weights' 4-bit "
        f"rounding error is {min(found):.1f} to {max(found):.1f} times as large as with its own (see the shortcuts' table)."
    )
