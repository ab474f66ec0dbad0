"""A denoiser on its way to low bits: its roles, its plan, and its float weights until the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from halftone.foundation.errors import CalibrationError, MatchError
from halftone.models.policy import Plan
from halftone.models.precision import narrow, widen
from halftone.models.roles import Architecture
from halftone.models.surgery import nearest_path, replace_layers
from halftone.nn import AttentionOperands, QuantizedLayer, Scheme
from halftone.nn.attention import install_operands
from halftone.nn.running import set_engine
from halftone.nn.sites import SiteOwner, sites


@dataclass
class QuantModel:
    """The model that methods work on.

    Attributes:
        module: the denoiser; its planned layers are :class:`QuantizedLayer`, float at first.
        originals, biases: the float weight and bias of every planned layer, by path.
        remainders: what is left to round of a weight, where a step keeps part of it elsewhere; see :meth:`target`.
        concatenated: channels of the parts, for layers fed by a concatenation.
        dtypes: what the 16-bit tensors of the denoiser were, by name; until :meth:`close` they are float32.
    """

    module: nn.Module
    architecture: Architecture
    plan: Plan
    originals: dict[str, torch.Tensor] = field(default_factory=dict)
    biases: dict[str, nn.Parameter | None] = field(default_factory=dict)
    remainders: dict[str, torch.Tensor] = field(default_factory=dict)
    concatenated: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @classmethod
    def open(cls, module: nn.Module, architecture: Architecture, plan: Plan) -> "QuantModel":
        """Replace the planned layers of ``module`` in place (they still compute in float, in float32) and return the model.

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
        model = cls(module.eval().requires_grad_(False), architecture, plan, dtypes=widen(module))
        model.originals = {path: model.layer(path).weight.data for path in paths}
        model.biases = {path: model.layer(path).bias for path in paths}
        return model

    def layer(self, path: str) -> QuantizedLayer:
        """Return the planned layer at ``path``."""
        return self.module.get_submodule(path)  # type: ignore[return-value]

    def target(self, path: str) -> torch.Tensor:
        """Return what the codes of the layer at ``path`` shall stand for: its float weight, or what a step has left of it.

        Methods that round ask here. A step that keeps part of a weight beside the codes (a low-rank branch) puts the rest into
        :attr:`remainders`.
        """
        return self.remainders.get(path, self.originals[path])

    def layers_in(self, unit: str) -> list[str]:
        """Return the paths of the planned layers at or inside ``unit``."""
        return [path for path in self.plan.quantized() if path == unit or path.startswith(unit + ".")]

    def assign(self, path: str, scheme: Scheme) -> None:
        """Plan ``scheme`` (other formats, other segments) for the layer at ``path``; rounding it again makes it so.

        Raises:
            MatchError: the policy does not quantize a layer of that path.
        """
        planned = self.plan.layers.get(path)
        if planned is None or planned.scheme is None:
            got = "none" if planned is None else "a layer that stays float"
            fix = nearest_path(path, self.plan.quantized())
            raise MatchError(f"layer '{path}'", "a layer that the policy quantizes", got, fix)
        self.plan.layers[path] = replace(planned, scheme=scheme)

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

        What stayed float is then in the denoiser's own dtype again.

        Raises:
            CalibrationError: the recipe left something float.
        """
        for path in self.plan.quantized():
            if self.layer(path).scheme is None:
                raise CalibrationError(path, "codes", "a float weight", "The recipe has no step that rounds weights.")
        for path, owner, site in self.activation_sites():
            if owner.site_specs[site].keep and getattr(owner, "kept", 1) == 0:
                fix = "Tokens are kept by the step transforms/token_sinks, which computes their outputs."
                raise CalibrationError(f"{path}.{site}", "outputs of the tokens it keeps", "none", fix)
            if not owner.is_quantized(site):
                fix = "Set activation ranges, and after the last step that plans other input formats or segments."
                raise CalibrationError(f"{path}.{site}", "a scale", "none", fix)
        self.originals.clear()
        self.remainders.clear()
        self.biases.clear()
        narrow(self.module, self.dtypes)
        set_engine(self.module, "auto")
        return self.module
