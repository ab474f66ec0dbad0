"""Kernels: how one quantized layer is computed on one kind of machine. ``library/`` holds one per file."""

from halftone.foundation.forks import compute_in_forks
from halftone.kernels.attention_contract import AbstractAttentionKernel, Attend, Attention, Operand
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
from halftone.kernels.select import AttentionChoice, Choice, choose, choose_attention, engines

__all__ = [
    "AbstractAttentionKernel",
    "AbstractKernel",
    "Attend",
    "Attention",
    "AttentionChoice",
    "Choice",
    "Fuses",
    "Grid",
    "HoldsCodes",
    "Operand",
    "Operands",
    "Operation",
    "Prepared",
    "TakesCodes",
    "choose",
    "choose_attention",
    "engines",
]

# Before anything here computes: what a process does before it forks need not be a quantized model's.
compute_in_forks()
