"""ControlNets beside a denoiser: whether what they add to it fits."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halftone.foundation.errors import ConfigError
from halftone.models.denoiser import named_denoiser

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# What the shapes of a U-Net's residuals and of its conditions follow from.
_SHARED = ("block_out_channels", "layers_per_block", "cross_attention_dim")


def refuse_unfit_controlnets(pipe: "DiffusionPipeline") -> None:
    """Raise a ConfigError for a ControlNet that was made for another denoiser than the pipeline's.

    PyTorch would say that two sizes differ, in the middle of the first call.
    """
    found = {name: part for name, part in pipe.components.items() if name.startswith("controlnet")}
    if not found:
        return
    chosen, network = named_denoiser(pipe)
    for name, part in found.items():
        for net in getattr(part, "nets", [part]):  # several are one component
            for key in _SHARED:
                wanted, got = _setting(network, key), _setting(net, key)
                if wanted is not None and got is not None and wanted != got:
                    fix = f"It was trained for another model: take one that was made for {key} {wanted}."
                    raise ConfigError(f"{name}: {key}", f"{wanted}, as the {chosen} has it", str(got), fix)


def refuse_unfit_residuals(network: nn.Module, args: tuple, kwargs: dict) -> None:
    """Raise a ConfigError for a ControlNet's residuals of other widths than the U-Net's: a forward pre-hook, for pipelines that are
    put together after loading."""
    down, middle = (kwargs.get(name) for name in ("down_block_additional_residuals", "mid_block_additional_residual"))
    if not down or middle is None or torch.compiler.is_compiling():
        return
    widths = _setting(network, "block_out_channels")
    if not widths:
        return
    got = [down[0].shape[1], middle.shape[1]]
    if got != [widths[0], widths[-1]]:
        fix = f"It was trained for another model: take one that was made for block_out_channels {widths}."
        expected = f"residuals of {widths[0]} to {widths[-1]} channels"
        raise ConfigError(f"{type(network).__name__}: a ControlNet", expected, f"{got[0]} to {got[1]}", fix)


def _setting(network: Any, key: str) -> Any:
    config = getattr(network, "config", {})
    # A ControlNet-XS is narrower on purpose; the base's widths have a name of their own there.
    value = config.get(f"base_{key}", config.get(key))
    return list(value) if isinstance(value, list | tuple) else value
