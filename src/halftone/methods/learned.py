"""Numbers of a quantized model that can be learned with its codes as they are: steps of sites and weights, and biases."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from halftone.formats import AbstractFormat, Affine
from halftone.formats.segments import along_input, along_weight
from halftone.methods.fit import check_integral
from halftone.nn import QuantizedLayer
from halftone.nn.sites import SiteOwner


class LearnedStep(nn.Module):
    """One site's quantizer whose step is ``start * exp(theta)``: positive whatever the optimizer does; zero points are fixed.

    Raises:
        FormatError: the grid is not made of consecutive integers.
    """

    def __init__(self, start: Affine, grid: AbstractFormat, segments: tuple[int, ...], axis: int) -> None:
        super().__init__()
        check_integral("a learned step", grid)
        self.start, self.grid, self.segments, self.axis = start, grid, segments, axis
        self.theta = nn.Parameter(torch.zeros_like(start.scale))

    def affine(self) -> Affine:
        return Affine(self.start.scale * self.theta.exp(), self.start.zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        affine = along_input(self.affine(), self.segments, x.ndim, self.axis)
        scaled = x * affine.scale.reciprocal()  # as the definition does, so that ties fall alike
        # Straight through the rounding; the clamp stops gradients to x outside the range and sends them to the step instead.
        level = scaled + (scaled.round() - scaled).detach() + affine.zero_point
        return (level.clamp(self.grid.low, self.grid.high) - affine.zero_point) * affine.scale


class LearnedWeight(nn.Module):
    """A layer's weight with fixed codes and steps ``start * exp(theta)`` per channel, and its bias."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        assert layer.scheme is not None
        affine, codes = layer.weight_affine(), layer.codes()
        broadcast = along_weight(affine, layer.segments, codes.ndim)
        self.levels = layer.scheme.weight.number_format.decode(codes) - broadcast.zero_point
        self.start, self.segments = affine, layer.segments
        self.theta = nn.Parameter(torch.zeros_like(affine.scale))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def affine(self) -> Affine:
        return Affine(self.start.scale * self.theta.exp(), self.start.zero_point)

    def weight(self) -> torch.Tensor:
        return self.levels * along_weight(self.affine(), self.segments, self.levels.ndim).scale


@dataclass
class Learner:
    """What is learned together: quantizers of sites, and (where wanted) layers' weight steps and biases."""

    sites: dict[str, tuple[SiteOwner, str]]
    layers: dict[str, QuantizedLayer]
    steps: dict[str, LearnedStep]
    weights: dict[str, LearnedWeight]

    @classmethod
    def of(cls, sites: dict[str, tuple[SiteOwner, str]], layers: dict[str, QuantizedLayer]) -> "Learner":
        steps = {}
        for name, (owner, site) in sites.items():
            start = owner.site_affine(site)
            assert start is not None, f"{name} needs a range first"
            segments = owner.site_segments.get(site) or (0,)
            axis = getattr(owner, "channel_axis", 1)
            steps[name] = LearnedStep(start, owner.site_specs[site].number_format, segments, axis)
        return cls(sites, layers, steps, {path: LearnedWeight(layer) for path, layer in layers.items()})

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let sites and layers compute with what is learned, while the context lasts."""
        biases = {path: layer.bias for path, layer in self.layers.items()}
        for name, (owner, site) in self.sites.items():
            owner.taps[site] = self.steps[name]
        for path, layer in self.layers.items():
            layer.weight_trial = self.weights[path].weight
            layer.bias = self.weights[path].bias
        try:
            yield
        finally:
            for owner, site in self.sites.values():
                owner.taps.pop(site, None)
            for path, layer in self.layers.items():
                layer.weight_trial = None
                layer.bias = biases[path]

    def parameters(self) -> list[nn.Parameter]:
        learned = [*self.steps.values(), *self.weights.values()]
        return [parameter for module in learned for parameter in module.parameters()]

    def result(self) -> dict[str, torch.Tensor]:
        found = {f"site.{name}": step.affine().scale for name, step in self.steps.items()}
        for path, weight in self.weights.items():
            found[f"weight.{path}"] = weight.affine().scale
            if weight.bias is not None:
                found[f"bias.{path}"] = weight.bias
        return {name: value.detach().clone() for name, value in found.items()}

    def better(self, start: dict[str, torch.Tensor], before: float, after: float) -> dict[str, torch.Tensor]:
        """Return the result, or ``start`` where the error did not fall, with both errors under ``errors``."""
        result = self.result() if after < before else start
        return {**result, "errors": torch.tensor([before, min(after, before)])}


def write(
    sites: Mapping[str, tuple[SiteOwner, str]], layers: Mapping[str, QuantizedLayer], found: Mapping[str, torch.Tensor]
) -> None:
    """Give sites and layers the numbers of a :meth:`Learner.result`."""
    for name, (owner, site) in sites.items():
        start = owner.site_affine(site)
        assert start is not None
        owner.set_site_affine(site, Affine(found[f"site.{name}"], start.zero_point))
    for path, layer in layers.items():
        layer.weight_scale = found[f"weight.{path}"]
        if layer.bias is not None:
            layer.bias = nn.Parameter(found[f"bias.{path}"], requires_grad=False)
        layer.refresh()
