"""What each part of our engine is worth: all of them on, and all but one, taking turns in one process.

What a part replaces is what ran before it was there: diffusers' own way, PyTorch's attention, oneDNN's operators.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.cpu_unet.inputs import Inputs

_CALLS = 2  # timed, each time that a part is switched off, after one that is not
WHOLE = "all of them"
PACKED = "weights a byte each, instead of packed (4-bit weights only)"


@contextmanager
def _patched(where: str, value: Any) -> Iterator[None]:
    with mock.patch(where, value):
        yield


def _never(*_: Any, **__: Any) -> None:
    return None


def _diffusers_attention(attn: Any, norm: Any, x: Any, context: Any, mask: Any) -> Any:
    return attn(norm(x), encoder_hidden_states=context, attention_mask=mask) + x


def _diffusers_forward(kind: str) -> Callable[..., Any]:
    """Return the forward of diffusers' class below one of ours."""
    import halftone.nn as ours

    return getattr(ours, kind).__mro__[1].forward  # type: ignore[no-any-return]


@contextmanager
def _without_product(unet: Any) -> Iterator[None]:
    from halftone.nn.running import set_engine

    with mock.patch("halftone.kernels.native.product.why_none", lambda: "switched off"):
        set_engine(unet, "torch")
        yield
    set_engine(unet, "torch")


@contextmanager
def _packed(unet: Any) -> Iterator[None]:
    from halftone.nn.running import set_weights

    set_weights(unet, "packed")
    yield
    set_weights(unet, "ready")


# By name: how to switch it off for a U-Net.
LEVERS: dict[str, Callable[[Any], Any]] = {
    "integer product of our own, instead of oneDNN's": _without_product,
    "native attention": lambda _: _patched("halftone.nn.attention.why_none", lambda _: "switched off"),
    "transformer blocks that write codes and add sums": lambda _: _patched(
        "halftone.nn.QuantizedTransformerBlock.forward", _diffusers_forward("QuantizedTransformerBlock")
    ),
    "of these, attention with its norm and its sum": lambda _: _patched(
        "halftone.nn.transformer.attended", _diffusers_attention
    ),
    "of these, keys and values of a text made once": lambda _: _patched("halftone.nn.attended._Held.hold", _never),
    "norm and sum of transformers on images, tokens without a copy": lambda _: _patched(
        "halftone.nn.QuantizedTransformer2DModel._open", lambda *_: False
    ),
    "residual blocks that write codes and add sums": lambda _: _patched(
        "halftone.nn.QuantizedResnetBlock2D.forward", _diffusers_forward("QuantizedResnetBlock2D")
    ),
    PACKED: _packed,
}


def levers(spec: dict[str, Any]) -> dict[str, Any]:
    """Load a contender and return seconds of a call with everything on, and with each part off, by round."""
    import importlib

    road: Any = importlib.import_module(f"benchmarks.cpu_unet.roads.{spec['road']}")
    inputs = Inputs.load(Path(spec["inputs"]))
    denoiser = road.load(Path(spec["folder"]), inputs.shapes, spec["threads"], **spec["options"])
    given = [denoiser.take(*each) for each in inputs]
    found: dict[str, list[float]] = {}
    for number in range(spec["rounds"]):
        for name, off in LEVERS.items():
            # Each beside the whole: what slows the machine down slows both.
            on = _seconds(denoiser, given)
            with off(denoiser.unet):
                without = _seconds(denoiser, given)
            if number:  # the first round warms up
                found.setdefault(WHOLE, []).extend(on)
                found.setdefault(name, []).append(float(np.median(without) / np.median(on)))
    whole = np.array(found.pop(WHOLE))
    ratios = {name: _spread(np.array(each)) for name, each in found.items()}
    return {"seconds": _spread(whole), "without": ratios}


def _seconds(denoiser: Any, given: list[Any]) -> list[float]:
    denoiser.call(given[0])
    taken = []
    for number in range(_CALLS):
        began = time.perf_counter()
        denoiser.call(given[(number + 1) % len(given)])
        taken.append(time.perf_counter() - began)
    return taken


def _spread(values: np.ndarray) -> dict[str, float]:
    ends = {"median": 0.5, "low": 0.1, "high": 0.9}
    return {name: float(f"{np.quantile(values, share):.4g}") for name, share in ends.items()}
