"""``python -m benchmarks.attention``: attention at the shapes of diffusion models, on native loops and on PyTorch's operators.

All contenders take turns in one process. Printed are the medians in milliseconds, and how many times as fast as PyTorch's fused
attention in bfloat16 the native ones are. ``chunks`` is what plain operators do in bfloat16, 256 queries at a time: product,
softmax, product. ``integer`` has four operands in codes of 8 bits, found from bfloat16 tensors within the time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.markdown import table
from halftone.kernels import Attention, Operand
from halftone.kernels.attention_contract import OPERANDS
from halftone.kernels.attentions.native_int8 import NativeInt8
from halftone.kernels.native.attention import attend_bfloat16, why_none
from halftone.quant import QuantSpec

# Samples, queries, keys, heads, width of a head: self- and cross-attention of Stable Diffusion 1.5 (512 pixels), SDXL, the zoo's.
SHAPES = (
    *((1, n, keys, 8, width) for n, width in ((4096, 40), (1024, 80), (256, 160), (64, 160)) for keys in (n, 77)),
    (2, 4096, 4096, 8, 40),
    (8, 1024, 1024, 8, 80),
    *((1, n, keys, heads, 64) for n, heads in ((4096, 10), (1024, 20)) for keys in (n, 77)),
    *((n, 64, 64, 4, 32) for n in (1, 8)),
)
_SECONDS, _ROUNDS = 0.03, 9  # least time of one measurement; measurements of each contender


def _contenders(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    samples, queries, keys, heads, width = shape
    draw = torch.Generator().manual_seed(0)
    wide = [torch.randn(samples, n, heads, width, generator=draw) for n in (queries, keys, keys)]
    operands = {}
    for name in OPERANDS:
        spec = QuantSpec(zero="none" if name == "probs" else "asymmetric")
        ends = (0.0, 32 / keys) if name == "probs" else (-4.0, 4.0)
        operands[name] = Operand(spec.number_format, spec.affine(*(torch.tensor([end]) for end in ends)))
    half, scale = [x.bfloat16() for x in wide], width**-0.5
    integer = NativeInt8().prepare(Attention(scale, operands))
    return {
        "float32": lambda: _fused(*wide),
        "bfloat16": lambda: _fused(*half),
        "chunks": lambda: _chunks(*half),
        "native bfloat16": lambda: attend_bfloat16(half[0], half[1], half[2], scale),
        "integer": lambda: integer(half[0], half[1], half[2]),
    }


def _fused(*operands: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in operands))


def _chunks(*operands: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in operands)
    flat, out = (k * q.shape[-1] ** -0.5).transpose(-1, -2), torch.empty_like(q)
    for n in range(0, q.shape[2], 256):
        out[:, :, n : n + 256] = (q[:, :, n : n + 256] @ flat).softmax(-1) @ v
    return out


@torch.inference_mode()
def measure(shape: tuple[int, ...]) -> dict[str, float]:
    """Return the median milliseconds of each contender."""
    contenders, times = _contenders(shape), dict[str, list[float]]()
    calls = {}
    for name, call in contenders.items():
        call()
        began = time.perf_counter()
        call()
        calls[name] = max(1, round(_SECONDS / (time.perf_counter() - began)))
    for _ in range(_ROUNDS):
        for name, call in contenders.items():
            began = time.perf_counter()
            for _ in range(calls[name]):
                call()
            times.setdefault(name, []).append((time.perf_counter() - began) / calls[name])
    return {name: 1000 * statistics.median(own) for name, own in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=0, help="leave out shapes with more scores than this (0: none)")
    largest = parser.parse_args().largest
    for kind in ("codes", "bfloat16"):
        reason = why_none(kind)
        if reason:
            raise SystemExit(reason)
    rows, names = [], []
    for shape in SHAPES:
        if largest and shape[0] * shape[1] * shape[2] * shape[3] > largest:
            continue
        found = measure(shape)
        names = list(found)
        ratios = [f"{found['bfloat16'] / found[name]:.1f}" for name in ("native bfloat16", "integer")]
        samples, queries, keys, heads, width = shape
        rows.append(
            [f"{samples} x {queries} x {keys}, {heads} x {width}", *(f"{x:.3f}" for x in found.values()), *ratios]
        )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, ms")
    print(
        "\n".join(
            table(["samples x queries x keys, heads x width", *names, "bfloat16 / native", "bfloat16 / integer"], rows)
        )
    )


if __name__ == "__main__":
    main()
