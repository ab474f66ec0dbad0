"""ControlNets beside a denoiser: whether what they add to it fits."""

from typing import TYPE_CHECKING, Any

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
                    fix = "It was trained for another model."
                    raise ConfigError(f"{name}: {key}", f"{wanted}, as the {chosen} has it", str(got), fix)


def _setting(network: Any, key: str) -> Any:
    config = getattr(network, "config", {})
    # A ControlNet-XS is narrower on purpose; the base's widths have a name of their own there.
    value = config.get(f"base_{key}", config.get(key))
    return list(value) if isinstance(value, list | tuple) else value
