"""Merging adapters into quantized layers: added in float, rounded again."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halftone.foundation.errors import ConfigError
from halftone.nn import QuantizedLayer, QuantLinear

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def fuse_lora(
    pipe: "DiffusionPipeline",
    lora_scale: float = 1.0,
    adapter_names: Sequence[str] | None = None,
    range: str = "shrink",
) -> dict[str, float]:
    """Merge LoRA adapters into the weights of a pipeline for good, and remove them: quantized layers included.

    diffusers' own ``fuse_lora`` adds to a layer's weight in place, which codes do not allow. Here the adapter and the weight that
    the codes stand for are added in float, and rounded to nearest with a new range for each channel; activation ranges stay. It
    costs the accuracy of rounding to nearest in the layers that an adapter touches: leave adapters unfused unless the time of two
    small products matters.

    Args:
        lora_scale: times the scales that the adapters have.
        adapter_names: those to merge; the active ones by default. All are removed.
        range: a range estimator for the weights.

    Returns:
        Of each quantized layer that changed, by its path, how far rounding moved the merged weight, relative to its norm.

    Raises:
        ConfigError: no adapter is loaded, none has that name, or one that is no plain LoRA lies on a quantized layer.
    """
    wrapped = list(_wrapped(pipe))
    if not wrapped:
        raise ConfigError(
            "fuse_lora", "a pipeline with LoRA adapters", "none", "Load one with pipe.load_lora_weights()."
        )
    known = {name for _, _, module in wrapped for name in module.lora_A}
    unknown = sorted(set(adapter_names or ()) - known)
    if unknown:
        raise ConfigError("adapter_names", f"some of {', '.join(sorted(known))}", ", ".join(unknown))
    for _, path, module in wrapped:
        _refuse_others(path, module)
    moved: dict[str, float] = {}
    with torch.no_grad():
        for component, path, module in wrapped:
            names = [name for name in (adapter_names or module.active_adapters) if name in module.lora_A]
            base = module.get_base_layer()
            if not names:
                continue
            change = lora_scale * torch.stack([_product(module, name) for name in names]).sum(0)
            if isinstance(base, QuantizedLayer) and base.scheme is not None:
                moved[f"{component}.{path}"] = _rounded(base, change, range)
            else:
                base.weight.add_(change.to(base.weight.dtype))
    pipe.unload_lora_weights()
    return moved


def _rounded(layer: QuantizedLayer, change: torch.Tensor, estimator: str) -> float:
    """Round the layer's weight plus ``change`` to nearest; return how far that moves it, relative to its norm."""
    assert layer.scheme is not None
    weight = layer.dequantized_weight() + change
    if isinstance(layer, QuantLinear) and layer.kept:
        layer.keep_tokens(layer.kept_input, layer.kept_output + layer.kept_input @ change.t())
    layer.hold_nearest(weight, layer.scheme, estimator)
    return float((layer.dequantized_weight() - weight).norm() / weight.norm().clamp(min=1e-12))


def _product(module: Any, name: str) -> torch.Tensor:
    """Return what the adapter ``name`` adds to the weight, float32 ``[out, in, ...]``.

    Not PEFT's ``get_delta_weight``, which goes by the shape of the base layer's weight: that of the packed codes.
    """
    down, up = (side[name].weight.float() for side in (module.lora_A, module.lora_B))
    return module.scaling[name] * torch.tensordot(up.flatten(1), down, dims=1)


def _wrapped(pipe: "DiffusionPipeline") -> Iterator[tuple[str, str, Any]]:
    """Yield component, path and module of every layer with a LoRA adapter, in the components that a LoRA is loaded into.

    Those are what ``unload_lora_weights`` takes adapters from: one elsewhere, merged and not removed, would act twice.
    """
    loadable = getattr(pipe, "_lora_loadable_modules", pipe.components)
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module) and name in loadable:
            for path, module in component.named_modules():
                if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
                    yield name, path, module


def _refuse_others(path: str, module: Any) -> None:
    """Raise a ConfigError for what is not a plain sum of weight and product."""
    if getattr(module, "merged_adapters", None):
        raise ConfigError(path, "adapters that are not merged", ", ".join(module.merged_adapters), "Unfuse them first.")
    grouped = getattr(module.get_base_layer(), "groups", 1) > 1
    if grouped or getattr(module, "lora_variant", None) or any(getattr(module, "lora_bias", {}).values()):
        fix = "Leave this adapter unfused."
        raise ConfigError(path, "plain LoRA", "a variant (DoRA, a bias of its own, groups)", fix)
