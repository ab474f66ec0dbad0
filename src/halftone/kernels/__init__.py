"""Kernels: how one quantized layer is computed on one kind of machine. ``library/`` holds one per file."""

from halftone.kernels.contract import AbstractKernel, Operands, Operation, Prepared
from halftone.kernels.select import Choice, choose, engines

__all__ = ["AbstractKernel", "Choice", "Operands", "Operation", "Prepared", "choose", "engines"]
