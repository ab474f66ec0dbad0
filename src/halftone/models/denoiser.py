"""Which component of a pipeline is the denoiser."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from halftone.foundation.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# In the order in which pipelines with several are asked.
# What pipelines call the network that is called at each sampling step.
DENOISERS = ("unet", "transformer", "prior", "decoder")


def named_denoiser(pipe: "DiffusionPipeline") -> tuple[str, nn.Module]:
    """Return name and module of the component that is called at each sampling step.

    Raises:
        ConfigError: the pipeline has none that is known.
    """
    components = pipe.components
    for name in DENOISERS:
        if isinstance(components.get(name), nn.Module):
            return name, components[name]
    known = ", ".join(DENOISERS)
    raise ConfigError(type(pipe).__name__, f"a component {known}", ", ".join(sorted(components)) or "no component")


def name_of_denoiser(index: Mapping[str, Any], where: str) -> str:
    """Return the name of the denoiser among the components that a pipeline's index lists.

    Raises:
        ConfigError: at ``where``, none is listed.
    """
    there = listed(index)
    for name in DENOISERS:
        if name in there:
            return name
    raise ConfigError(where, f"a component {', '.join(DENOISERS)}", ", ".join(sorted(there)) or "no component")


def listed(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``[library, class]`` of the components that a pipeline's index lists, those that are None left out."""
    return {name: value for name, value in index.items() if isinstance(value, list | tuple) and value and value[0]}


def denoiser(pipe: "DiffusionPipeline") -> nn.Module:
    """Return the module that is called at each sampling step; raises as :func:`named_denoiser`."""
    return named_denoiser(pipe)[1]


def other_denoisers(pipe: "DiffusionPipeline") -> dict[str, nn.Module]:
    """Return what else is called at the sampling steps, by name: a second expert (``transformer_2``), a ControlNet."""
    chosen, _ = named_denoiser(pipe)
    return {
        name: module
        for name, module in pipe.components.items()
        if isinstance(module, nn.Module) and name != chosen and called_each_step(name)
    }


def called_each_step(name: str) -> bool:
    """Return whether the component called ``name`` is called at the sampling steps."""
    return name in DENOISERS or name.rpartition("_")[0] in DENOISERS or name.startswith("controlnet")


def refuse_cache(network: nn.Module) -> None:
    """Raise a CalibrationError when the denoiser has a cache enabled (diffusers' ``CacheMixin``).

    Blocks that answer with what they computed at an earlier step would be measured and fitted on inputs they do not have.
    """
    if getattr(network, "is_cache_enabled", False):
        fix = "Call its disable_cache() before quantizing; enable_cache() works on the result."
        raise CalibrationError(type(network).__name__, "a denoiser that computes every call", "an enabled cache", fix)
