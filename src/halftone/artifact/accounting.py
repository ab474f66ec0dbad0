"""Bytes of a quantized denoiser: what they are spent on, and how few they could be."""

from pathlib import Path

import torch
from torch import nn

from halftone.nn import AttentionOperands, QuantizedLayer


def sizes(denoiser: nn.Module, folder: str | Path | None = None) -> dict[str, int]:
    """Return the bytes of a denoiser's tensors by purpose.

    Args:
        denoiser: holds quantized layers.
        folder: where the denoiser's weights lie on disk; adds ``file``.

    Returns:
        ``codes``, ``scales``, ``zero_points`` and ``float`` (norms, biases, kept layers) as stored; ``minimum``: each
        weight of a quantized layer at exactly its bits, everything else as stored; ``unquantized``: the same denoiser
        with all weights in float32; ``file``: all safetensors files of ``folder``.
    """
    spent = {"codes": 0, "scales": 0, "zero_points": 0, "float": 0}
    fewest = elements = 0
    for module in denoiser.modules():
        for leaf, tensor in _tensors(module):
            purpose = _purpose(module, leaf)
            size = tensor.numel() * tensor.element_size()
            spent[purpose] += size
            if purpose == "codes" and isinstance(module, QuantizedLayer) and module.scheme is not None:
                weights = torch.Size(module.weight_shape).numel()
                elements += weights
                fewest += (weights * module.scheme.weight.bits + 7) // 8
            elif purpose == "float":
                elements += tensor.numel()
    rest = sum(size for purpose, size in spent.items() if purpose != "codes")
    counted = {**spent, "minimum": fewest + rest, "unquantized": 4 * elements}
    if folder is not None:
        counted["file"] = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return counted


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of ``module`` itself that are saved with it."""
    saved = {**module._parameters, **module._buffers}
    skipped = module._non_persistent_buffers_set
    return [(leaf, tensor) for leaf, tensor in saved.items() if tensor is not None and leaf not in skipped]


def _purpose(module: nn.Module, leaf: str) -> str:
    if isinstance(module, QuantizedLayer) and module.scheme is not None and leaf == "weight":
        return "codes"
    if isinstance(module, QuantizedLayer | AttentionOperands):
        if leaf.endswith("_scale"):
            return "scales"
        if leaf.endswith("_zero_point"):
            return "zero_points"
    return "float"
