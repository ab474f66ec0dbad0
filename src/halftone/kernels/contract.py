"""The contract of a kernel: ``(op, weight format, activation format, granularity) -> refusal or call``."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from halftone.formats import AbstractFormat, Affine

Prepared = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Grid:
    """How values become the uint8 codes that a call multiplies: the low byte of the bits of ``x * factor + offset``.

    Both are rounded to float32, the product first.

    Attributes:
        offset: 1.5 * 2**23 and the zero point. Between 2**23 and 2**24 float32 holds exactly the integers: adding rounds half to
            even and leaves the code in the low bits.
        top: the greatest code.
        shift: 8 for the high byte of a code of more than 8 bits.
    """

    factor: float
    offset: float
    top: int
    shift: int = 0


class TakesCodes(ABC):
    """A prepared call that also takes its input as codes, on ``grid``, from whatever computed them together with the values."""

    grid: Grid

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output for values, as :data:`Prepared`."""

    @abstractmethod
    def from_codes(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the output, ``dtype``, for an input whose codes are ``codes``."""


class Fuses(TakesCodes):
    """A prepared call that does what follows the product before its output is written."""

    @abstractmethod
    def fused(
        self,
        codes: torch.Tensor,
        dtype: torch.dtype,
        added: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the output plus ``added``, shaped as it, plus ``shift`` ``[N, out]`` of each sample."""

    @abstractmethod
    def gated(self, codes: torch.Tensor, grid: Grid) -> torch.Tensor | None:
        """Return the codes of ``hidden * gelu(gate)``, the two halves of the output's channels, or None where it cannot."""


class HoldsCodes(ABC):
    """A prepared call that can give the weight's codes back, so that nobody else needs to hold them."""

    @abstractmethod
    def codes(self) -> torch.Tensor:
        """Return them, uint8 ``[out, in, *kernel]``."""


class HoldsFloat(HoldsCodes):
    """A prepared call that computes with a float weight."""

    @abstractmethod
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output, as :data:`Prepared`."""

    @abstractmethod
    def hold_float(self, dtype: torch.dtype) -> None:
        """Make what calls in ``dtype`` hold between them, as the first of them would."""


@dataclass(frozen=True)
class Operation:
    """What a layer computes, without its numbers.

    Attributes:
        segments: sizes of the input-channel groups with scales of their own; they add up to ``in_channels``.
        input_format: None when the activations stay float (weight-only).
        padding: as ``torch.nn.Conv2d`` keeps it (a pair, or ``"same"``/``"valid"``);
            zeros are padded unless ``padding_mode`` says else.
        input_scale: where the input's scale comes from: ``static`` (it is among the operands), ``dynamic`` (from the input
            itself) or ``per_step`` (a table over the timestep). A kernel refuses what it does not know.
    """

    kind: Literal["linear", "conv2d"]
    in_channels: int
    out_channels: int
    segments: tuple[int, ...]
    weight_format: AbstractFormat
    input_format: AbstractFormat | None
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros"
    input_scale: Literal["static", "dynamic", "per_step"] = "static"


@dataclass(frozen=True)
class Operands:
    """The numbers of a layer.

    Attributes:
        codes: uint8 ``[out, in / groups, *kernel]`` (linear: ``[out, in]``), unpacked.
        weight: affine ``[S, out]``.
        input: affine ``[S]``, or None (weight-only).
        bias: float ``[out]`` or None.
        keep: how a kernel is to keep the codes: ``ready`` to be multiplied, or ``packed``, which it may take for a wish.
    """

    codes: torch.Tensor
    weight: Affine
    input: Affine | None
    bias: torch.Tensor | None
    keep: Literal["ready", "packed"] = "ready"


class AbstractKernel(ABC):
    """One way to compute a quantized layer. A file of ``kernels/library`` defines one, named after the file.

    Class attributes:
        engine: the engine that may use it (``simulate`` or ``torch`` ...).
        preference: among kernels that do not refuse, the highest runs.
        arithmetic: ``integer`` (codes are multiplied), ``float`` (weights unpacked to float: exact for weight-only layers), or
            ``simulated`` (float arithmetic in place of an integer kernel).
        tolerance: greatest difference from the reference, relative to the largest reference output of the call.
    """

    engine: ClassVar[str]
    preference: ClassVar[int]
    arithmetic: ClassVar[Literal["integer", "float", "simulated"]]
    tolerance: ClassVar[float]

    @abstractmethod
    def refusal(self, operation: Operation, operands: Operands) -> str | None:
        """Return why this kernel cannot compute the layer on the operands' device, or None when it can."""

    @abstractmethod
    def prepare(self, operation: Operation, operands: Operands) -> Prepared:
        """Return the call ``x -> y``: any float dtype in, the same dtype out; conv ``[N, C, H, W]``, linear ``[..., C]``.

        Weights are packed here, and again when a new input shape needs another layout; else the call allocates only
        outputs and scratch.
        """
