"""What this machine can do at best: integer and float products, and passes over memory, with PyTorch's own operators."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812 - the customary name

_ROUNDS = 7
# Shapes of the U-Net's middle, with rows enough that the weights' reading is hidden.
_ROWS, _WIDTH = 4096, 1280
_CHANNELS, _SIDE = 640, 32
_BYTES = 2**28


def ceilings() -> dict[str, float]:
    """Return giga-operations (a product and a sum are two) and gigabytes a second: the best of a few rounds that take turns."""
    linear = 2.0 * _ROWS * _WIDTH * _WIDTH / 1e9
    conv = 2.0 * 9 * _CHANNELS * _CHANNELS * _SIDE * _SIDE / 1e9
    source = torch.zeros(_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    calls: dict[str, tuple[float, Callable[[], object]]] = {
        "copy, GB/s": (2.0 * _BYTES / 1e9, lambda: target.copy_(source)),
        "read, GB/s": (_BYTES / 1e9, lambda: source.view(torch.int64).max()),
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        x, w = torch.randn(_ROWS, _WIDTH).to(dtype), torch.randn(_WIDTH, _WIDTH).to(dtype)
        image = torch.randn(1, _CHANNELS, _SIDE, _SIDE).to(dtype, memory_format=torch.channels_last)
        kernel = torch.randn(_CHANNELS, _CHANNELS, 3, 3).to(dtype, memory_format=torch.channels_last)
        calls[f"{name} linear, GOP/s"] = linear, lambda x=x, w=w: F.linear(x, w)
        calls[f"{name} convolution, GOP/s"] = conv, lambda i=image, k=kernel: F.conv2d(i, k, padding=1)
    calls["int8 linear, GOP/s"] = linear, _integer_linear()
    calls["int8 convolution, GOP/s"] = conv, _integer_convolution()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for number in range(_ROUNDS + 1):
            for name, (_, call) in calls.items():
                began = time.perf_counter()
                call()
                if number:
                    seconds[name].append(time.perf_counter() - began)
    return {name: round(work / min(seconds[name]), 1) for name, (work, _) in calls.items()}


def _integer_linear() -> Callable[[], object]:
    x = torch.randint(0, 255, (_ROWS, _WIDTH), dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 127, (_WIDTH, _WIDTH), dtype=torch.int8), None)
    scales, zeros = torch.ones(_WIDTH), torch.zeros(_WIDTH, dtype=torch.int32)
    given = (x, 0.1, 128, weight, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(*given)


def _integer_convolution() -> Callable[[], object]:
    shape = (1, _CHANNELS, _SIDE, _SIDE)
    x = torch.randint(0, 255, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    scales, zeros = torch.ones(_CHANNELS), torch.zeros(_CHANNELS, dtype=torch.int32)
    plain = torch.randint(-127, 127, (_CHANNELS, _CHANNELS, 3, 3), dtype=torch.int8)
    how = [1, 1], [1, 1], [1, 1]
    weight = torch.ops.onednn.qconv_prepack(plain, scales, 0.1, 128, *how, 1, list(shape))
    given = (x, 0.1, 128, weight, scales, zeros, None, *how, 1, 1.0, 0, torch.bfloat16, "none", [], "")
    return lambda: torch.ops.onednn.qconv2d_pointwise(*given)
