"""The definition: fake-quantized operands, float arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from halftone.formats import fake_quantize
from halftone.kernels.attention_contract import AbstractAttentionKernel, Attend, Attention


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    through: Callable[[str, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return ``softmax(q k^T * scale + mask) v``, each operand as ``through(name, operand)`` returns it.

    q, k, v and the result: ``[N, heads, tokens, width]``; mask broadcastable to ``[N, heads, queries, keys]``. q and k are
    quantized before the scaling by ``scale`` (as Q-Diffusion's code does).
    """
    q, k, v = through("q", q), through("k", k), through("v", v)
    scores = (q @ k.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + mask
    return through("probs", scores.float().softmax(-1).to(v.dtype)) @ v


@dataclass(frozen=True)
class Reference(AbstractAttentionKernel):
    """Runs everywhere and serves every attention; holds the score matrix, and is what the other kernels are compared with."""

    engine: ClassVar[str] = "simulate"
    preference: ClassVar[int] = 0
    arithmetic: ClassVar[Literal["integer", "float", "simulated"]] = "simulated"
    tolerance: ClassVar[float] = 0.0

    def refusal(self, attention: Attention) -> str | None:
        return None

    def prepare(self, attention: Attention) -> Attend:
        def through(name: str, x: torch.Tensor) -> torch.Tensor:
            operand = attention.operands.get(name)
            if operand is None:
                return x
            first, rest = x.tensor_split([operand.keep], dim=-2)
            rounded = fake_quantize(rest, operand.affine, operand.format)
            return torch.cat([first, rounded], dim=-2) if operand.keep else rounded

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return attend(q, k, v, attention.scale, None, through).transpose(1, 2)

        return run
