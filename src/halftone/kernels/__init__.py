"""Kernels: how one quantized layer is computed on one kind of machine. ``library/`` holds one per file."""

from halftone.kernels.contract import (
    AbstractKernel,
    Fuses,
    Grid,
    HoldsCodes,
    Operands,
    Operation,
    Prepared,
    TakesCodes,
)
from halftone.kernels.select import Choice, choose, engines

__all__ = [
    "AbstractKernel",
    "Choice",
    "Fuses",
    "Grid",
    "HoldsCodes",
    "Operands",
    "Operation",
    "Prepared",
    "TakesCodes",
    "choose",
    "engines",
]
