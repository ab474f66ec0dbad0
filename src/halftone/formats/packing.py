"""Codes of 1 to 8 bits to bytes and back: a little-endian bit stream along the last axis, rows padded to whole bytes.

Two 4-bit codes share a byte, the first in the low nibble; eight 3-bit codes share three bytes.
"""

import torch

from halftone.foundation.errors import FormatError


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return uint8 ``[..., packed_size(n, bits)]`` for uint8 ``codes`` ``[..., n]``.

    Raises:
        FormatError: a code does not fit into ``bits``.
    """
    if codes.dtype != torch.uint8:
        raise FormatError("pack", "uint8 codes", str(codes.dtype))
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise FormatError("pack", f"codes below {2**bits}", str(int(codes.max())))
    if bits == 8:
        return codes.contiguous().clone()
    if bits == 4:
        padded = torch.nn.functional.pad(codes, [0, codes.shape[-1] % 2])
        return padded[..., 0::2] | (padded[..., 1::2] << 4)
    stream = (codes.unsqueeze(-1) >> torch.arange(bits, dtype=torch.uint8, device=codes.device)) & 1
    stream = stream.flatten(-2)
    stream = torch.nn.functional.pad(stream, [0, -stream.shape[-1] % 8]).unflatten(-1, (-1, 8))
    return (stream << torch.arange(8, dtype=torch.uint8, device=codes.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the uint8 codes ``[..., count]`` held in ``packed`` ``[..., packed_size(count, bits)]``.

    Raises:
        FormatError: the last axis is not as long as ``count`` codes need.
    """
    if packed.dtype != torch.uint8 or packed.shape[-1] != packed_size(count, bits):
        expected = f"uint8 [..., {packed_size(count, bits)}] for {count} codes of {bits} bits"
        raise FormatError("unpack", expected, f"{packed.dtype} {list(packed.shape)}")
    if bits == 8:
        return packed.clone()
    if bits == 4:
        return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :count].contiguous()
    place = torch.arange(8, dtype=torch.uint8, device=packed.device)
    stream = ((packed.unsqueeze(-1) >> place) & 1).flatten(-2)[..., : count * bits]
    return (stream.unflatten(-1, (count, bits)) << place[:bits]).sum(-1, dtype=torch.uint8)
