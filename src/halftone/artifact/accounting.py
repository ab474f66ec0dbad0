"""Bytes of a quantized denoiser: what they are spent on, and how few they could be."""

from collections.abc import Mapping
from pathlib import Path
from types import CellType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halftone.kernels.contract import HoldsFloat
from halftone.nn import AttentionOperands, QuantizedLayer
from halftone.nn.layers import quantized_layers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


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


def component_sizes(pipe: "DiffusionPipeline") -> dict[str, dict[str, Any]]:
    """Return for each network of the pipeline its ``class``, how many linears and 2-D convolutions it has (``layers``) and how
    many of them hold codes (``quantized``), the bytes of its tensors as stored and, with all weights in float32, ``unquantized``.

    What layers keep beside their tensors to run is not in them: see :func:`held`.
    """
    found = {}
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module):
            counted, layers = sizes(module), [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            found[name] = {
                "class": type(module).__name__,
                "layers": len(layers),
                "quantized": sum(isinstance(m, QuantizedLayer) and m.scheme is not None for m in layers),
                "bytes": sum(counted[purpose] for purpose in ("codes", "scales", "zero_points", "float")),
                "unquantized": counted["unquantized"],
            }
    return found


def held(network: nn.Module) -> int:
    """Return the bytes of all memory that tensors of ``network`` and of its kernels' calls refer to, each once.

    That is what it holds between calls: layers that have not run yet prepare for it. What a call takes for a while is not in
    it (``halftone bench`` measures peaks), nor are the graphs of engines that run whole networks.
    """
    tensors = [*network.parameters(), *network.buffers()]
    dtype = next((each.dtype for each in network.parameters() if each.is_floating_point()), torch.float32)
    for _, layer in quantized_layers(network):
        call = layer.prepared()
        if isinstance(call, HoldsFloat):
            call.hold_float(dtype)
        tensors += _tensors_in(call, set())
    known: dict[int, int] = {}
    for tensor in tensors:
        if tensor.is_mkldnn:  # oneDNN's own form has no storage to ask
            known[id(tensor)] = tensor.numel() * tensor.element_size()
        else:
            known[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(known.values())


def _tensors_in(value: Any, seen: set[int]) -> list[torch.Tensor]:
    """Return the tensors that a kernel's call refers to: in attributes, containers, closures, and what a method belongs to."""
    if isinstance(value, torch.Tensor):
        return [value]
    if id(value) in seen or not _of_ours(value):
        return []
    seen.add(id(value))
    if isinstance(value, MethodType):
        inside: list[Any] = [value.__self__]
    elif isinstance(value, FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
    elif isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set):
        inside = list(value)
    else:
        names = [*getattr(value, "__dict__", {}), *getattr(type(value), "__slots__", ())]
        inside = [getattr(value, name, None) for name in names]
    return [tensor for each in inside for tensor in _tensors_in(each, seen)]


def _of_ours(value: Any) -> bool:
    """Return whether tensors may be found inside ``value``: a container, a function, or an object of this package."""
    if isinstance(value, MethodType | FunctionType | Mapping | list | tuple | set):
        return True
    return type(value).__module__.partition(".")[0] == __name__.partition(".")[0]


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


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
