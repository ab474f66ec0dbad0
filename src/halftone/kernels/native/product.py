"""The native product of codes with 8-bit and 4-bit weights: weights arranged for it, and its call."""

import ctypes
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import torch

from halftone.kernels.contract import Grid
from halftone.kernels.native.build import load

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_PANEL, _STEP = 64, 4
_ISA = "ONEDNN_MAX_CPU_ISA"
# Whoever holds oneDNN to less than this wants that of all integer products.
_ALLOWED = ("", "ALL", "DEFAULT", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX10_1_512")


class _Weight(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("panels", "zero", "pad", "offset", "scale")),
        *((name, _LONG) for name in ("taps", "width", "outputs")),
    )


class _Finish(ctypes.Structure):
    _fields_ = (
        ("bias", _POINTER),
        ("bias_rows", _LONG),
        ("added", _POINTER),
        ("out", _POINTER),
        ("bfloat16", _INT),
        ("gated", _INT),
        *((name, _FLOAT) for name in ("factor", "offset", "top")),
    )


@cache
def why_none() -> str | None:
    """Return why there is no native product here, or None."""
    library = load()
    if isinstance(library, str):
        return library
    if not library.halftone_product_there():
        return "this processor has no AVX512-VNNI"
    mask = os.environ.get(_ISA, "").upper()
    return None if mask in _ALLOWED or "AMX" in mask or "FP16" in mask else f"{_ISA}={mask} leaves AVX512-VNNI out"


def mask_allows_amx() -> bool:
    """Return whether the user leaves oneDNN its matrix extensions, where the processor has them."""
    mask = os.environ.get(_ISA, "").upper()
    return mask in ("", "ALL", "DEFAULT") or "AMX" in mask


@cache
def _functions() -> tuple[Any, Any, Any]:
    library = load()
    assert not isinstance(library, str)
    product, arrange, back = library.halftone_product, library.halftone_arrange, library.halftone_disarrange
    product.argtypes, product.restype = [_POINTER] * 4 + [_LONG], None
    arrange.argtypes, arrange.restype = [_POINTER, _INT, _POINTER, _POINTER, _INT, _POINTER, *[_LONG] * 3], None
    back.argtypes, back.restype = [_POINTER, _INT, _POINTER, _POINTER, *[_LONG] * 3], None
    return product, arrange, back


class ProductWeight:
    """A weight in the order in which the product reads it, one byte or half a byte each.

    Args:
        codes: uint8 ``[out, in, taps]``.
        zero: int32 ``[out]``, the zero points as codes are counted; ``codes - zero`` fits into int8.
        scale: float32 ``[out]``, of the products.
        zero_point: of the input's codes.
        nibbles: whether to keep codes, all below 16, in half a byte; they are widened piece by piece whenever they are used.
    """

    def __init__(
        self, codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, zero_point: int, nibbles: bool
    ) -> None:
        self.outputs, self.width, self.taps = codes.shape
        self.nibbles = nibbles
        codes = codes.contiguous()
        panels = -(-self.outputs // _PANEL)
        size = panels * self.taps * self.width * _PANEL
        self._panels = torch.zeros(size // 2 if nibbles else size, dtype=torch.uint8)
        self._zero, self._scale = zero.to(torch.int32).contiguous(), scale.float().contiguous()
        columns = torch.empty(self.outputs, dtype=torch.int32)
        sizes = self.outputs, self.width, self.taps
        given = codes.data_ptr(), 0, self._zero.data_ptr(), self._panels.data_ptr(), nibbles, columns.data_ptr()
        _functions()[1](*given, *sizes)
        self._offset = columns * zero_point
        self._pad = torch.full((self.width,), zero_point, dtype=torch.uint8)
        self._spread: torch.Tensor | None = None
        if nibbles:
            spread = torch.zeros(panels * _PANEL, dtype=torch.int8)
            spread[: self.outputs] = self._zero.to(torch.int8)
            self._spread = spread.repeat_interleave(_STEP).contiguous()
        addresses = (
            0 if held is None else held.data_ptr()
            for held in (self._panels, self._spread, self._pad, self._offset, self._scale)
        )
        self._weight = _Weight(*addresses, self.taps, self.width, self.outputs)
        self._address = ctypes.addressof(self._weight)

    def codes(self) -> torch.Tensor:
        """Return the codes, uint8 ``[out, in, taps]``."""
        found = torch.empty(self.outputs, self.width, self.taps, dtype=torch.uint8)
        given = self._panels.data_ptr(), self.nibbles, self._zero.data_ptr(), found.data_ptr()
        _functions()[2](*given, self.outputs, self.width, self.taps)
        return found

    def product(
        self,
        codes: torch.Tensor,
        table: torch.Tensor | None,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
    ) -> None:
        """Fill ``out``, float32 or bfloat16 and dense with ``out`` channels last.

        Args:
            codes: uint8, dense with the channels last.
            table: of :func:`rows_of`, None where each row of ``out`` is made of the row of ``codes``.
            bias: float32 ``[out]``, or ``[samples, out]`` for as many equal parts of the rows.
            added: laid out as ``out``, which it may be.
        """
        rows = out.numel() // self.outputs
        each = 0 if bias is None or bias.ndim == 1 else rows // len(bias)
        addresses = (0 if given is None else given.data_ptr() for given in (added, out))
        finish = _Finish(
            0 if bias is None else bias.data_ptr(), each, *addresses, out.dtype is torch.bfloat16, 0, 0.0, 0.0, 0.0
        )
        self._run(finish, codes, table, rows)

    def gated(self, codes: torch.Tensor, bias: torch.Tensor | None, grid: Grid) -> torch.Tensor | None:
        """Return the codes of ``hidden * gelu(gate)``, uint8 ``[..., out / 2]``, the halves of the product; None where it cannot.

        Args:
            codes: uint8 ``[..., in]``, dense.
            grid: of the result.
        """
        if self.outputs % (2 * _PANEL) or grid.shift or self.taps > 1:
            return None
        out = codes.new_empty(*codes.shape[:-1], self.outputs // 2)
        last = (grid.factor, grid.offset, grid.top)
        finish = _Finish(0 if bias is None else bias.data_ptr(), 0, 0, out.data_ptr(), 0, 1, *last)
        self._run(finish, codes, None, codes.numel() // self.width)
        return out

    def _run(self, finish: _Finish, codes: torch.Tensor, table: torch.Tensor | None, rows: int) -> None:
        where = 0 if table is None else table.data_ptr()
        torch.get_num_threads()  # tells OpenMP, in a thread that has not asked before
        _functions()[0](self._address, ctypes.addressof(finish), codes.data_ptr(), where, rows)


class _Tables:
    """Remembers the tables that were asked for last, up to so many bytes: those of large pictures are large."""

    def __init__(self, room: int) -> None:
        self.room, self.used = room, 0
        self._known: OrderedDict[tuple, tuple[torch.Tensor, tuple[int, int]]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple, make: Callable[[], tuple[torch.Tensor, tuple[int, int]]]) -> Any:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            made = self._known[key] = make()
            self.used += made[0].nbytes
            while self.used > self.room and len(self._known) > 1:
                _, (gone, _) = self._known.popitem(last=False)
                self.used -= gone.nbytes
            return made


_TABLES = _Tables(64 * 2**20)


def rows_of(
    shape: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    margins: tuple[int, int, int, int],
) -> tuple[torch.Tensor | None, tuple[int, int]]:
    """Return which pixel each tap of each output pixel reads, of pictures ``shape`` ``[N, H, W]``, and the output's size.

    Args:
        margins: top, bottom, left, right.

    Returns:
        int32 ``[taps, N * H' * W']``, -1 beyond the edge; None where output pixel ``n`` is made of pixel ``n`` alone.
    """
    top, bottom, left, right = margins
    size = (
        (shape[1] + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1,
        (shape[2] + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1,
    )
    if kernel == stride == (1, 1) and not any(margins):
        return None, size

    def make() -> tuple[torch.Tensor, tuple[int, int]]:
        pixels = torch.arange(math.prod(shape), dtype=torch.int32).view(shape)
        framed = torch.nn.functional.pad(pixels, (left, right, top, bottom), value=-1)
        taps = []
        for y in range(kernel[0]):
            for x in range(kernel[1]):
                down, along = y * dilation[0], x * dilation[1]
                last = down + stride[0] * (size[0] - 1) + 1, along + stride[1] * (size[1] - 1) + 1
                taps.append(framed[:, down : last[0] : stride[0], along : last[1] : stride[1]].reshape(-1))
        return torch.stack(taps).contiguous(), size

    found: tuple[torch.Tensor, tuple[int, int]] = _TABLES.get((shape, kernel, stride, dilation, margins), make)
    return found
