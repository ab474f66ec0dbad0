"""A denoiser on its way to low bits: its roles, its plan, and its float weights until the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from halftone.foundation.errors import CalibrationError
from halftone.models.policy import Plan
from halftone.models.roles import Architecture
from halftone.models.surgery import replace_layers
from halftone.nn import AttentionOperands, QuantizedLayer
from halftone.nn.attention import install_operands
from halftone.nn.layers import set_engine
from halftone.nn.sites import SiteOwner, sites


@dataclass
class QuantModel:
    """The model that methods work on.

    Attributes:
        module: the denoiser; its planned layers are :class:`QuantizedLayer`, float at first.
        originals, biases: the float weight and bias of every planned layer, by path.
        concatenated: channels of the parts, for layers fed by a concatenation.
    """

    module: nn.Module
    architecture: Architecture
    plan: Plan
    originals: dict[str, torch.Tensor] = field(default_factory=dict)
    biases: dict[str, nn.Parameter | None] = field(default_factory=dict)
    concatenated: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def open(cls, module: nn.Module, architecture: Architecture, plan: Plan) -> "QuantModel":
        """Replace the planned layers of ``module`` in place (they still compute in float) and return the model.

        Raises:
            CalibrationError: a weight that is NaN or infinite.
        """
        paths = list(plan.quantized())
        for path in paths:
            weight = module.get_parameter(f"{path}.weight")
            if not torch.isfinite(weight).all():
                raise CalibrationError(
                    f"weight of {path}", "finite numbers", "NaN or infinity", "Check the float model."
                )
        replace_layers(module, paths)
        for path, specs in plan.operands.items():
            install_operands(module.get_submodule(path), specs)
        model = cls(module.eval().requires_grad_(False), architecture, plan)
        model.originals = {path: model.layer(path).weight.data for path in paths}
        model.biases = {path: model.layer(path).bias for path in paths}
        return model

    def layer(self, path: str) -> QuantizedLayer:
        """Return the planned layer at ``path``."""
        return self.module.get_submodule(path)  # type: ignore[return-value]

    def layers_in(self, unit: str) -> list[str]:
        """Return the paths of the planned layers at or inside ``unit``."""
        return [path for path in self.plan.quantized() if path == unit or path.startswith(unit + ".")]

    def split(self, path: str, segments: tuple[int, ...]) -> None:
        """Plan separate scales for consecutive groups of input channels of the layer at ``path``."""
        planned = self.plan.layers[path]
        assert planned.scheme is not None
        self.plan.layers[path] = replace(planned, scheme=replace(planned.scheme, segments=segments))

    def activation_sites(self, unit: str = "") -> Iterator[tuple[str, SiteOwner, str]]:
        """Yield ``(path, owner, site)`` of every planned activation site at or inside ``unit`` ("" = the model)."""
        root = self.module.get_submodule(unit) if unit else self.module
        for path, owner, site in sites(root):
            yield ".".join(part for part in (unit, path) if part), owner, site

    @contextmanager
    def in_float(self, unit: str = "") -> Iterator[None]:
        """Let the layers and attention of ``unit`` compute in float while the context lasts."""
        root = self.module.get_submodule(unit) if unit else self.module
        saved: list[tuple[SiteOwner, Any, dict]] = []
        for path, child in root.named_modules():
            if isinstance(child, QuantizedLayer) and child.scheme is not None:
                full = ".".join(part for part in (unit, path) if part)
                saved.append((child, (child.weight_trial, child.bias), child.taps))
                child.bias = self.biases[full]
                weight = self.originals[full]
                child.weight_trial, child.taps = (lambda w=weight: w), {"input": lambda x: x}
            elif isinstance(child, AttentionOperands):
                saved.append((child, None, child.taps))
                child.taps = {site: (lambda x: x) for site in child.site_specs}
        try:
            yield
        finally:
            for child, trial, taps in saved:
                child.taps = taps
                if isinstance(child, QuantizedLayer):
                    child.weight_trial, child.bias = trial

    def close(self) -> nn.Module:
        """Check that every planned layer holds codes and every planned site a scale, and let go of the float weights.

        Raises:
            CalibrationError: the recipe left something float.
        """
        for path in self.plan.quantized():
            if self.layer(path).scheme is None:
                raise CalibrationError(path, "codes", "a float weight", "The recipe has no step that rounds weights.")
        for path, owner, site in self.activation_sites():
            if owner.site_affine(site) is None:
                fix = "The recipe has no step that sets activation ranges."
                raise CalibrationError(f"{path}.{site}", "a scale", "none", fix)
        self.originals.clear()
        self.biases.clear()
        set_engine(self.module, "auto")
        return self.module
