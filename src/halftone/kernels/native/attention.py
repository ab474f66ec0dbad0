"""The native attention on tensors, and the operators that stand for it in the graphs of ``torch.compile``."""

import ctypes
import math
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch

from halftone.foundation.errors import KernelError
from halftone.kernels.native.build import load

LONGEST = 1 << 15  # keys whose sums of products are sure to fit into 32 bits
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_MISSING = {"codes": (1, "AVX512-VNNI"), "bfloat16": (2, "AVX512-BF16")}
_ISA = "ONEDNN_MAX_CPU_ISA"
# Whoever holds oneDNN to less than this wants that of these products too.
_ALLOWED = ("", "ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX10_1_512")
_ALLOWED_CODES = (*_ALLOWED, "AVX512_CORE_VNNI")

torch.library.define("halftone::attention_codes", "(Tensor q, Tensor k, Tensor v, float[] real, int[] whole) -> Tensor")
torch.library.define("halftone::attention_bfloat16", "(Tensor q, Tensor k, Tensor v, float scale) -> Tensor")


@cache
def why_none(kind: Literal["codes", "bfloat16"]) -> str | None:
    """Return why there is no native attention on codes, or on bfloat16 numbers, here; None where there is."""
    library = load()
    if isinstance(library, str):
        return f"no native loops: {library}"
    bit, needed = _MISSING[kind]
    if library.halftone_attention_missing() & bit:
        return f"this processor (or its compiler) has no {needed}"
    mask = os.environ.get(_ISA, "").upper()
    allowed = mask in (_ALLOWED_CODES if kind == "codes" else _ALLOWED) or "AMX" in mask or "FP16" in mask
    return None if allowed else f"{_ISA}={mask} leaves {needed} out"


def attend_codes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, real: Sequence[float], whole: Sequence[int]
) -> torch.Tensor:
    """Return ``softmax(q k^T * scale) v`` of the operands' codes: exact integer products of q with k and of probabilities with v.

    Args:
        q, k, v: float32 or bfloat16 ``[N, tokens, heads, width]``; float32 of the same numbers gives the same codes.
        real: the reciprocal scales of q, k, v and of the probabilities; what a score is multiplied with to be a power of two;
            what a sum is multiplied with to be a result.
        whole: zero point and greatest code of q, k and v; the greatest code of the probabilities, whose zero is code 0.

    Returns:
        A tensor like ``q``, dense. (Compare ``halftone.kernels.attentions.reference``.)
    """
    if torch.compiler.is_compiling():
        found: torch.Tensor = torch.ops.halftone.attention_codes(q, k, v, real, whole)
        return found
    return _codes(q, k, v, real, whole)


def attend_bfloat16(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Return ``softmax(q k^T * scale) v``, bfloat16 ``[N, tokens, heads, width]``: sums in float32, as exact as PyTorch's."""
    if torch.compiler.is_compiling():
        found: torch.Tensor = torch.ops.halftone.attention_bfloat16(q, k, v, scale)
        return found
    return _bfloat16(q, k, v, scale)


def _codes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, real: Sequence[float], whole: Sequence[int]
) -> torch.Tensor:
    function = _function("halftone_attention_codes_" + ("float32" if q.dtype == torch.float32 else "bfloat16"))
    numbers = (_FLOAT * len(real))(*real), (ctypes.c_int32 * len(whole))(*whole)
    return _called(q, k, v, lambda *given: function(*given[:-1], *numbers, given[-1]))


def _bfloat16(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    function = _function("halftone_attention_bfloat16")
    return _called(q, k, v, lambda *given: function(*given[:-1], _FLOAT(scale * math.log2(math.e)), given[-1]))


torch.library.impl("halftone::attention_codes", "CPU", _codes)
torch.library.impl("halftone::attention_bfloat16", "CPU", _bfloat16)


@torch.library.register_fake("halftone::attention_codes")
def _promised_codes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, real: Sequence[float], whole: Sequence[int]
) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.register_fake("halftone::attention_bfloat16")
def _promised_bfloat16(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _called(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Any) -> torch.Tensor:
    if len(k) == len(v) == 1:  # one text for all samples
        k, v = (x.expand(len(q), -1, -1, -1) for x in (k, v))
    alike = k.shape == v.shape and k.shape[::2] == q.shape[::2] and k.shape[3] == q.shape[3]
    if not alike or not q.dtype == k.dtype == v.dtype:
        expected = "q, k and v of one dtype, of as many samples and heads, and as wide"
        raise KernelError("attention", expected, ", ".join(f"{x.dtype} {list(x.shape)}" for x in (q, k, v)))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q.detach(), k.detach(), v.detach()))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    samples, queries, heads, width = q.shape
    strides = (x.stride(n) for x in (q, k, v, out) for n in range(3))
    shape = (_LONG * 17)(samples, heads, queries, k.shape[1], width, *strides)
    room = torch.empty(
        _function("halftone_attention_bytes")(samples * heads, k.shape[1], width) + 64, dtype=torch.uint8
    )
    torch.get_num_threads()  # tells OpenMP, in a thread that has not asked before
    # On a line of the cache.
    start = -(-room.data_ptr() // 64) * 64
    call(*(x.data_ptr() for x in (q, k, v, out)), shape, start)
    return out


@cache
def _function(name: str) -> Any:
    library = load()
    assert not isinstance(library, str)
    function = getattr(library, name)
    if name == "halftone_attention_bytes":
        function.argtypes, function.restype = [_LONG] * 3, _LONG
    else:
        numbers = [_FLOAT] if name == "halftone_attention_bfloat16" else [_POINTER] * 2
        function.argtypes, function.restype = [*[_POINTER] * 5, *numbers, _POINTER], None
    return function
