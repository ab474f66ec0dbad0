"""Uniform integers of 1 to 16 bits, signed or not."""

import re
from dataclasses import dataclass
from typing import Self

import torch

from halftone.formats.contract import AbstractFormat
from halftone.foundation.errors import FormatError

_NAME = re.compile(r"(u?)int(\d+)")


@dataclass(frozen=True)
class Integer(AbstractFormat):
    """All integers that fit into ``bits``: ``[0, 2**bits - 1]``, or two's complement when ``signed``."""

    bits: int
    signed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise FormatError(f"format '{self.name}'", "1 to 16 bits", str(self.bits))

    @classmethod
    def parse(cls, name: str) -> Self | None:
        match = _NAME.fullmatch(name)
        return cls(bits=int(match[2]), signed=not match[1]) if match else None

    @property
    def name(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}"

    @property
    def low(self) -> float:
        return float(-(2 ** (self.bits - 1))) if self.signed else 0.0

    @property
    def high(self) -> float:
        return self.low + 2**self.bits - 1

    @property
    def middle(self) -> float:
        return (self.low + self.high + 1) / 2

    @property
    def integral(self) -> bool:
        return True

    def round(self, x: torch.Tensor) -> torch.Tensor:
        return x.round().clamp(self.low, self.high)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (self.round(x) - self.low).to(self.code_dtype)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(torch.float32) + self.low
