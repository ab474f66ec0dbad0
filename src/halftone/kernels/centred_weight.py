"""A weight as integer kernels multiply it: its codes minus their zero points, in one byte each."""

import torch

from halftone.kernels.contract import Operands, Operation


def _zero_codes(operation: Operation, operands: Operands) -> torch.Tensor:
    """Return the weight's zero points counted as its codes are, ``[S, out]``."""
    return operands.weight.zero_point - operation.weight_format.low


def _sizes(operation: Operation, operands: Operands) -> list[int]:
    """Return how many of the codes' input channels belong to each segment; in a grouped convolution there is one segment."""
    return list(operation.segments) if len(operation.segments) > 1 else [operands.codes.shape[1]]


def span(operation: Operation, operands: Operands) -> tuple[int, int] | str:
    """Return the least and the greatest ``code - zero point``, or why they cannot all be int8."""
    zero_codes = _zero_codes(operation, operands)
    if not torch.equal(zero_codes, zero_codes.round()):
        return "a weight zero point is not an integer"
    ends = []
    for codes, zero in zip(operands.codes.split(_sizes(operation, operands), dim=1), zero_codes, strict=True):
        least, most = torch.aminmax(codes.flatten(1), dim=1)
        ends += [least - zero, most - zero]
    low, high = (int(end) for end in torch.aminmax(torch.cat(ends)))
    if low < -128 or high > 127:
        fix = "8-bit asymmetric weights need a ninth bit; symmetric ones fit"
        return f"weights minus zero point span [{low}, {high}], beyond int8 ({fix})"
    return low, high


def centred(operation: Operation, operands: Operands) -> torch.Tensor:
    """Return ``code - zero point``, int8, of a weight whose :func:`span` fits.

    Subtracted modulo 256, one byte for each weight: models are loaded with as many weights as they have.
    """
    zero_codes = _zero_codes(operation, operands).to(torch.int32).bitwise_and(255).to(torch.uint8)
    sizes = torch.tensor(_sizes(operation, operands))
    spread = zero_codes.t() if len(sizes) == 1 else zero_codes.repeat_interleave(sizes, dim=0).t()
    tail = [1] * (operands.codes.ndim - 2)
    return (operands.codes - spread.view(*spread.shape, *tail)).view(torch.int8)


def sums_may_overflow(operation: Operation, operands: Operands, largest: int) -> bool:
    """Return whether an output's sum may exceed 32 bits, given the largest weight."""
    assert operation.input_format is not None
    bound, terms = 2**31 / 2 ** min(operation.input_format.bits, 8), operands.codes[0].numel()
    if largest * terms < bound:
        return False
    # Seldom: only then the sums themselves.
    rows = centred(operation, operands).flatten(1).to(torch.int16).abs()
    return float(rows.sum(1, dtype=torch.int64).max()) >= bound
