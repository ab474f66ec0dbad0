"""Attention whose four operands are codes of up to 8 bits, multiplied as integers; the scores are never a matrix in memory."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from halftone.formats.kinds.integer import Integer
from halftone.kernels.attention_contract import OPERANDS, AbstractAttentionKernel, Attend, Attention, Operand
from halftone.kernels.native.attention import LONGEST, attend_codes, why_none

_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class NativeInt8(AbstractAttentionKernel):
    """The codes of q, k and v are the definition's, and products are exact. In between, exp has a relative error of 3e-6: of the
    probabilities' codes, one in a thousand or fewer is the neighbour of the definition's."""

    engine: ClassVar[str] = "torch"
    preference: ClassVar[int] = 10
    arithmetic: ClassVar[Literal["integer", "float", "simulated"]] = "integer"
    tolerance: ClassVar[float] = 1e-2

    def refusal(self, attention: Attention) -> str | None:
        missing = [name for name in OPERANDS if name not in attention.operands]
        if missing:
            return f"{', '.join(missing)} of the attention stays float"
        for name, operand in attention.operands.items():
            reason = _refused(name, operand)
            if reason is not None:
                return reason
        return why_none("codes")

    def prepare(self, attention: Attention) -> Attend:
        q, k, v, probs = (attention.operands[name] for name in OPERANDS)
        scales = [float(each.affine.scale) for each in (q, k, v, probs)]
        inverse = [float(each.affine.scale.reciprocal()) for each in (q, k, v, probs)]
        unit = scales[0] * scales[1] * attention.scale * math.log2(math.e)
        real = (*inverse, unit, scales[3] * scales[2])
        whole = (*(number for each in (q, k, v) for number in (_zero(each), _top(each))), _top(probs))

        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor | None:
            if not 0 < k.shape[1] <= LONGEST or q.numel() == 0:
                return None
            dtype = q.dtype
            if not (dtype == k.dtype == v.dtype and dtype in _DTYPES):
                q, k, v = q.float(), k.float(), v.float()
            return attend_codes(q, k, v, real, whole).to(dtype)

        return run


def _zero(operand: Operand) -> int:
    return int(operand.affine.zero_point - operand.format.low)


def _top(operand: Operand) -> int:
    return int(2**operand.format.bits - 1)


def _refused(name: str, operand: Operand) -> str | None:
    if operand.affine.scale.device.type != "cpu":
        return f"runs on CPUs, the attention is on {operand.affine.scale.device.type}"
    if not isinstance(operand.format, Integer) or operand.format.bits > 8:
        return f"{name} format {operand.format.name} is not an integer of up to 8 bits"
    if operand.keep:
        return f"{operand.keep} tokens of {name} stay float"
    if operand.affine.scale.numel() != 1:
        return f"{name} has more than one scale"
    zero = float(operand.affine.zero_point) - operand.format.low
    if not (zero.is_integer() and 0 <= zero <= _top(operand)):
        return f"{name}'s zero point is not on the grid"
    if name == "probs" and zero:
        return "the zero of the probabilities is not code 0"
    return None
