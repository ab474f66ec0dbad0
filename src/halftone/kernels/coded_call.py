"""The call of a prepared integer layer: its input checked and made into codes, whichever kernel multiplies them."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch.nn import functional as F

from halftone.foundation.errors import KernelError
from halftone.kernels import compiled
from halftone.kernels.contract import Grid, Operation, Prepared
from halftone.kernels.input_codes import encode


class Part(Protocol):
    """One byte of the codes of the input channels from ``start`` to ``stop``."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def grid(self) -> Grid: ...
    @property
    def zero_point(self) -> int: ...


class CodedCall:
    """The call of a layer: checks its input, and leaves an empty one to ``empty``.

    Args:
        margins: in ``F.pad``'s order, to be added to the codes, or None.
        windows: for each axis of an image, what to add to its length before dividing by the second number, the stride.
    """

    def __init__(
        self,
        operation: Operation,
        parts: Sequence[Part],
        margins: list[int] | None,
        windows: list[tuple[int, int]],
        empty: Prepared,
    ) -> None:
        self.image, self.width, self.out = operation.kind == "conv2d", operation.in_channels, operation.out_channels
        self.axis = 1 if self.image else -1
        self.parts, self.margins, self.windows, self.empty = parts, margins, windows, empty
        self.number = compiled.enter(self)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[self.axis] != self.width:
            # A slice would not notice channels too many, and the operators' own message does not mention channels.
            raise KernelError("input", f"{self.width} channels along axis {self.axis}", str(list(x.shape)))
        x = x.detach() if x.requires_grad else x
        if x.numel() == 0:
            return self.empty(x)
        if torch.compiler.is_compiling():
            return self._traced(x)
        return self.multiplied((self._codes(part, x) for part in self.parts), x.dtype)

    def multiplied(self, codes: Iterable[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return the output, ``dtype``, for the codes of each part."""
        raise NotImplementedError

    def _codes(self, part: Part, x: torch.Tensor) -> torch.Tensor:
        found = encode(
            x if len(self.parts) == 1 else x.narrow(self.axis, part.start, part.stop - part.start), part.grid
        )
        return found if self.margins is None else F.pad(found, self.margins, value=part.zero_point)

    def _traced(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output by way of one operator; what makes the codes is left to the compiler, to fuse with what is before."""
        # In the layout that the products read: the loop that makes the codes writes them in any.
        layout = torch.channels_last if self.image else torch.contiguous_format
        codes = [self._codes(part, x).contiguous(memory_format=layout) for part in self.parts]
        shape = codes[0].shape
        if self.image:
            sizes = [(n + more) // step + 1 for n, (more, step) in zip(shape[2:], self.windows, strict=True)]
            return compiled.product(codes, self.number, (shape[0], self.out, *sizes), x.dtype, True)
        return compiled.product(codes, self.number, (*shape[:-1], self.out), x.dtype, False)
