"""The native loops on tensors. Each returns None where it does not serve: the caller then does it with PyTorch's operators."""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import nn

from halftone.kernels.contract import Grid
from halftone.kernels.native.build import load

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_ENCODE = [_POINTER, _POINTER, _LONG, _LONG, _LONG, _FLOAT, _FLOAT, _FLOAT, _INT]
_NORMALISE = [_POINTER, _POINTER, *[_LONG] * 4, _POINTER, _POINTER, _FLOAT, _INT, _FLOAT, _FLOAT, _FLOAT]
_ROWS = [_POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER, *[_FLOAT] * 4]
_MULTIPLY = [*[_POINTER] * 3, *[_LONG] * 3, *[_POINTER] * 3]
_SHORT = (torch.float32, torch.bfloat16, torch.float16)  # what float32 holds exactly
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def encode(x: torch.Tensor, grid: Grid) -> torch.Tensor | None:
    """Return the codes of ``x``, uint8, or None."""
    function = _function("encode", x)
    if function is None:
        return None
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        codes, rows, width, stride = torch.empty_like(x, dtype=torch.uint8), 1, x.numel(), 0
    else:
        found = _rows(x)
        if found is None:
            return None
        codes, rows, width, stride = found
    function(x.data_ptr(), codes.data_ptr(), rows, width, stride, grid.factor, grid.offset, grid.top, grid.shift)
    return codes


def normalise(x: torch.Tensor, norm: nn.GroupNorm, silu: bool, grid: Grid) -> torch.Tensor | None:
    """Return the codes of ``silu(norm(x))``, or of ``norm(x)``, uint8 with the channels last, or None.

    The mean and the variance are summed in another order than PyTorch's, and exp is a polynomial: a code now and then (one in
    100,000) is its neighbour.
    """
    function = _function("normalise", x)
    if function is None or x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last) or grid.shift:
        return None
    parameters = _parameters(norm)
    if parameters is None:
        return None
    weight, bias = parameters
    samples, channels, height, width = x.shape
    codes = torch.empty_like(x, dtype=torch.uint8)
    addresses = (0 if value is None else value.data_ptr() for value in (weight, bias))
    sizes = (samples, height * width, channels, norm.num_groups)
    function(x.data_ptr(), codes.data_ptr(), *sizes, *addresses, norm.eps, silu, grid.factor, grid.offset, grid.top)
    return codes


def normalise_rows(x: torch.Tensor, norm: nn.LayerNorm, grid: Grid) -> torch.Tensor | None:
    """Return the codes of ``norm(x)``, uint8, for a norm over the last axis, or None; as exact as :func:`normalise`."""
    function = _function("normalise_rows", x)
    if function is None or not x.is_contiguous() or grid.shift or tuple(norm.normalized_shape) != x.shape[-1:]:
        return None
    parameters = _parameters(norm)
    if parameters is None:
        return None
    weight, bias = parameters
    codes = torch.empty_like(x, dtype=torch.uint8)
    addresses = (0 if value is None else value.data_ptr() for value in (weight, bias))
    sizes = (x.numel() // x.shape[-1], x.shape[-1])
    function(x.data_ptr(), codes.data_ptr(), *sizes, *addresses, norm.eps, grid.factor, grid.offset, grid.top)
    return codes


def _parameters(norm: nn.GroupNorm | nn.LayerNorm) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
    """Return weight and bias as the loops read them, to be held by the caller meanwhile; None where they are not for loops."""
    values = (norm.weight, norm.bias)
    for value in values:
        if value is not None and (value.device.type != "cpu" or value.dtype not in _SHORT):
            return None
    weight, bias = (None if value is None else value.detach().float().contiguous() for value in values)
    return weight, bias


def few_rows(
    codes: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor | None:
    """Return ``(codes @ weight.t() - offset) * scale + bias``, float32 ``[..., out]``, or None.

    Args:
        codes: uint8 ``[..., in]``.
        weight: int8 ``[out, in]``.
        offset, scale, bias: int32, float32 and float32 (or None) ``[out]``.
    """
    function = _multiply()
    if function is None or not codes.is_contiguous():
        return None
    outputs, width = weight.shape
    out = torch.empty(*codes.shape[:-1], outputs)
    given = (codes, weight, out)
    last = (0 if value is None else value.data_ptr() for value in (offset, scale, bias))
    function(*(value.data_ptr() for value in given), codes.numel() // width, width, outputs, *last)
    return out


@cache
def _multiply() -> Any:
    library = load()
    if isinstance(library, str):
        return None
    function: Any = library.halftone_multiply
    function.argtypes, function.restype = _MULTIPLY, None
    return function


def _function(name: str, x: torch.Tensor) -> Any:
    """Return the loop for tensors like ``x``, or None."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype not in _NAMES or x.numel() == 0:
        return None
    if type(x) not in (torch.Tensor, nn.Parameter):
        return None  # one that only records, or holds no memory
    torch.get_num_threads()  # tells OpenMP, in a thread that has not asked before
    return _functions()[name, x.dtype]


@cache
def _functions() -> dict[tuple[str, torch.dtype], Any]:
    library = load()
    found: dict[tuple[str, torch.dtype], Any] = {}
    for name, arguments in (("encode", _ENCODE), ("normalise", _NORMALISE), ("normalise_rows", _ROWS)):
        for dtype, suffix in _NAMES.items():
            function = None
            if not isinstance(library, str):
                function = getattr(library, f"halftone_{name}_{suffix}")
                function.argtypes, function.restype = arguments, None
            found[name, dtype] = function
    return found


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int, int] | None:
    """Return dense codes to fill, and rows, width and stride of a tensor cut out of a dense one along its channels."""
    strides = x.stride()
    if x.ndim == 4:
        n, c, h, w = x.shape
        if strides[1] == 1 and strides[2] == w * strides[3] and strides[0] == h * strides[2]:
            codes = torch.empty_like(x, dtype=torch.uint8, memory_format=torch.channels_last)
            return codes, n * h * w, c, strides[3]
        if strides[3] == 1 and strides[2] == w and strides[1] == h * w:
            return (
                torch.empty_like(x, dtype=torch.uint8, memory_format=torch.contiguous_format),
                n,
                c * h * w,
                strides[0],
            )
    if x.ndim in (2, 3) and strides[-1] == 1 and (x.ndim == 2 or strides[0] == x.shape[1] * strides[1]):
        codes = torch.empty_like(x, dtype=torch.uint8, memory_format=torch.contiguous_format)
        return codes, x.numel() // x.shape[-1], x.shape[-1], strides[-2]
    return None
