"""Which component of a pipeline is the denoiser."""

from typing import TYPE_CHECKING

from torch import nn

from halftone.foundation.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# In the order in which pipelines with several are asked.
_DENOISERS = ("unet", "transformer", "prior", "decoder")


def named_denoiser(pipe: "DiffusionPipeline") -> tuple[str, nn.Module]:
    """Return name and module of the component that is called at each sampling step.

    Raises:
        ConfigError: the pipeline has none that is known.
    """
    components = pipe.components
    for name in _DENOISERS:
        if isinstance(components.get(name), nn.Module):
            return name, components[name]
    known = ", ".join(_DENOISERS)
    raise ConfigError(type(pipe).__name__, f"a component {known}", ", ".join(sorted(components)) or "no component")


def denoiser(pipe: "DiffusionPipeline") -> nn.Module:
    """Return the module that is called at each sampling step; raises as :func:`named_denoiser`."""
    return named_denoiser(pipe)[1]
