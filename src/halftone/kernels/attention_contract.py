"""The contract of a kernel of attention: ``(formats of q, k, v and probs) -> refusal or call``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from halftone.formats import AbstractFormat, Affine

# q, k and v [N, tokens, heads, width] to the result, of q's shape and dtype; or None: this call is the reference's.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]

OPERANDS = ("q", "k", "v", "probs")


@dataclass(frozen=True)
class Operand:
    """How one operand of the two matrix products is quantized.

    Attributes:
        affine: ``[1]``.
        keep: leading tokens that stay float.
    """

    format: AbstractFormat
    affine: Affine
    keep: int = 0


@dataclass(frozen=True)
class Attention:
    """What an attention computes between its projections: ``softmax(q k^T * scale) v``, some operands quantized.

    Attributes:
        operands: by name (``q``, ``k``, ``v``, ``probs``); those that are absent stay float. Probabilities are quantized after
            the division by the row's sum.
    """

    scale: float
    operands: Mapping[str, Operand]


class AbstractAttentionKernel(ABC):
    """One way to compute an attention with quantized operands. A file of ``kernels/attentions`` defines one, named after the file.

    The class attributes are those of :class:`halftone.kernels.AbstractKernel`.
    """

    engine: ClassVar[str]
    preference: ClassVar[int]
    arithmetic: ClassVar[Literal["integer", "float", "simulated"]]
    tolerance: ClassVar[float]

    @abstractmethod
    def refusal(self, attention: Attention) -> str | None:
        """Return why this kernel cannot compute the attention on the scales' device, or None when it can.

        Calls with a mask are the reference's with every kernel.
        """

    @abstractmethod
    def prepare(self, attention: Attention) -> Attend:
        """Return the call."""
