"""What no rule of a policy can reach: weights without a role, and denoisers beside the one that is quantized."""

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from halftone.models.denoiser import other_denoisers
from halftone.nn.layers import quantized_layers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class LeftFloat:
    """A weight, or a whole component of the pipeline, that stays float without anybody having said so.

    Attributes:
        path: of the parameter, or name of the component.
        kind: class of the module that owns it, or of the component.
        shape: of the parameter; empty for a component.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    bytes: int


def without_role(model: nn.Module, placed: Container[str]) -> tuple[LeftFloat, ...]:
    """Return the float parameters with two or more axes whose module's path is not among ``placed``.

    Such are 1-D and 3-D convolutions, transposed ones, embeddings, tables of positions, and the joint projection of PyTorch's
    own attention. Norms and biases have one axis and are not quantized by anybody.
    """
    found = []
    for path, module in model.named_modules():
        if path in placed:
            continue
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.ndim > 1 and parameter.is_floating_point():
                size = parameter.numel() * parameter.element_size()
                found.append(LeftFloat(name, type(module).__name__, tuple(parameter.shape), size))
    return tuple(found)


def float_denoisers(pipe: "DiffusionPipeline") -> tuple[LeftFloat, ...]:
    """Return the denoisers beside the first that hold no quantized layer, such as the second expert of Wan 2.2."""
    return tuple(
        LeftFloat(name, type(module).__name__, (), sum(p.numel() * p.element_size() for p in module.parameters()))
        for name, module in other_denoisers(pipe).items()
        if next(quantized_layers(module), None) is None
    )
