"""Which part of a pipeline is quantized: the denoiser, or another network that it saves."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from halftone.foundation.errors import ConfigError, suggest
from halftone.models.denoiser import called_each_step, named_denoiser

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

KINDS = "a denoiser, a ControlNet, an autoencoder or a text encoder"
_DECODER = "decoder"
_TEXT = "text_encoder"  # of transformers; SDXL has two, others three


@dataclass(frozen=True)
class Component:
    """A network of a pipeline.

    Attributes:
        name: of the component in the pipeline.
        owner: the component: what is saved, and described.
        path: of the network in it, whose calls are recorded and whose activations are quantized; "" for the owner itself.
        every_step: whether it is called at every sampling step, or once an image.
    """

    name: str
    owner: nn.Module
    path: str = ""
    every_step: bool = True

    @property
    def network(self) -> nn.Module:
        return self.owner.get_submodule(self.path) if self.path else self.owner

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.owner.parameters())

    def inside(self, path: str) -> bool:
        """Whether the owner's module at ``path`` is part of the network."""
        return not self.path or path == self.path or path.startswith(f"{self.path}.")


def component(pipe: "DiffusionPipeline", name: str | None = None) -> Component:
    """Return the component called ``name``; None is the denoiser.

    Of an autoencoder the network is the decoder, which every image passes; the encoder runs only where one is given an image.
    A text encoder is called once a prompt, and once more for the negative one.

    Raises:
        ConfigError: no such component, or one that cannot be quantized.
    """
    chosen, module = named_denoiser(pipe)
    found = Component(chosen, module) if name is None else _find(pipe, name)
    if found is None:
        assert name is not None
        other = pipe.components.get(name)
        got = f"'{name}'" + (f", a {type(other).__name__}" if isinstance(other, nn.Module) else "")
        fix = suggest(name, (each for each in pipe.components if _find(pipe, each)))
        raise ConfigError(type(pipe).__name__, f"{KINDS} in it", got, fix)
    return found


def as_component(name: str, owner: object) -> Component | None:
    """Return ``owner``, called ``name`` in its pipeline, as a component that can be quantized; None where it cannot."""
    if not isinstance(owner, nn.Module):
        return None
    if name.startswith(_TEXT):
        return Component(name, owner, every_step=False)
    if not hasattr(owner, "register_to_config"):
        return None  # not one model of diffusers: several ControlNets in one, for example
    if called_each_step(name):
        return Component(name, owner)
    path = network_path(owner)
    return Component(name, owner, path, every_step=False) if path else None


def network_path(owner: nn.Module) -> str:
    """Return where in ``owner`` the network lies whose activations are quantized: an autoencoder's decoder, else ""."""
    decodes = hasattr(owner, "decode") and isinstance(getattr(owner, _DECODER, None), nn.Module)
    return _DECODER if decodes else ""


def _find(pipe: "DiffusionPipeline", name: str) -> Component | None:
    chosen, module = named_denoiser(pipe)
    return Component(name, module) if name == chosen else as_component(name, pipe.components.get(name))
