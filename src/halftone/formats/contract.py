"""The one contract of a number format."""

from abc import ABC, abstractmethod
from typing import Self

import torch


class AbstractFormat(ABC):
    """A finite grid of numbers in the unscaled domain.

    Subclasses are frozen dataclasses, one per file of :mod:`halftone.formats.kinds`, named after their file. Everything about
    the grid is derived from their fields. Codes are unsigned integers ``0 .. 2**bits - 1``: uint8 up to 8 bits, int32 for the wider
    formats that only activations have (a 16-bit softmax).
    """

    bits: int

    @property
    def code_dtype(self) -> torch.dtype:
        """The dtype that codes are held in."""
        return torch.uint8 if self.bits <= 8 else torch.int32

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> Self | None:
        """Return the format called ``name``, or None when the name is not of this kind."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that :meth:`parse` reads back."""

    @property
    @abstractmethod
    def low(self) -> float:
        """Smallest number on the grid."""

    @property
    @abstractmethod
    def high(self) -> float:
        """Largest number on the grid."""

    @property
    def middle(self) -> float:
        """The grid number that stands for zero in the symmetric zero mode."""
        return 0.0

    @property
    def integral(self) -> bool:
        """Whether the grid is made of consecutive integers."""
        return False

    @abstractmethod
    def round(self, x: torch.Tensor) -> torch.Tensor:
        """Return the grid number nearest to each element of ``x`` (float in, same float dtype out), clamped to the grid."""

    @abstractmethod
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the codes of ``round(x)`` in :attr:`code_dtype`; same shape."""

    @abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the float32 grid numbers of ``codes``; same shape."""
