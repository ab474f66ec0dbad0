"""Rounding a float model while diffusers loads it: no calibration, no float copy of a quantized weight."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halftone.artifact.diffusers_loader import HalftoneConfig, HalftoneMethod, HalftoneQuantizer
from halftone.artifact.schema import METHOD

if TYPE_CHECKING:
    from halftone.models.policy import Rule
    from halftone.nn import QuantizedLayer, Scheme


class RoundOnLoad(HalftoneConfig):
    """``quantization_config`` for a model that is float on disk: round its weights to nearest as they come.

    It has no description, as there is no model yet.

    Args:
        rules: a policy that quantizes weights only.
        range: a range estimator by name, or a mapping with its ``name`` and fields.
        recipe: the resolved recipe, to be kept with the model.
    """

    def __init__(self, rules: tuple["Rule", ...], range: str | Mapping[str, Any], recipe: dict[str, Any]) -> None:
        self.quant_method = HalftoneMethod.HALFTONE
        self.rules, self.range, self.recipe = rules, range, recipe

    def to_dict(self) -> dict[str, Any]:
        """Return what there is to say before a model is there: method and recipe."""
        return {"quant_method": METHOD, "recipe": self.recipe}

    @property
    def modules_to_not_convert(self) -> list[str]:
        """Nothing is known before the model is."""
        return []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.recipe.get('name')})"


def planned(model: nn.Module, given: RoundOnLoad) -> tuple[dict[str, "Scheme"], dict[str, "QuantizedLayer"]]:
    """Make layers of ``model``, which has no weights yet, ready to be rounded; return scheme and layer by path."""
    from halftone.models.policy import make_plan
    from halftone.models.roles import architecture
    from halftone.models.surgery import replace_layers

    schemes = make_plan(model, architecture(model), given.rules).quantized()
    return schemes, replace_layers(model, schemes)


class RoundingQuantizer(HalftoneQuantizer):
    """Loads a float denoiser as one with quantized weights; from then on it is as if it had been loaded from an artifact."""

    requires_calibration = False

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._given = quantization_config
        self._layers: dict[str, QuantizedLayer] = {}

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        self._schemes, self._layers = planned(model, self._given)

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        return missing_keys  # as for a float model

    def check_if_quantized_param(
        self, model: nn.Module, param_value: torch.Tensor, param_name: str, state_dict: dict[str, Any], **kwargs: Any
    ) -> bool:
        path, _, leaf = param_name.rpartition(".")
        return leaf == "weight" and path in self._layers

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: torch.Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, torch.Tensor],
        unexpected_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Round one weight, as it is in the file, and let go of it."""
        path = param_name.removesuffix(".weight")
        layer, scheme = self._layers[path], self._schemes[path]
        layer.hold_nearest(self._stored(param_name, state_dict)[0].float(), scheme, self._given.range)
        layer.weight = nn.Parameter(layer.weight.data.to(target_device), requires_grad=False)
        for name, value in list(layer.named_buffers(recurse=False)):
            layer._buffers[name] = value.to(target_device)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        from halftone.artifact.structure import describe

        self._layers, self._files = {}, None
        self.adopt(model, describe(model, self._given.recipe))
        return model


def quantizer(quantization_config: Any, **kwargs: Any) -> HalftoneQuantizer:
    """Return the quantizer for a config: what diffusers calls with the config that a user gave or that a file holds."""
    kind = RoundingQuantizer if isinstance(quantization_config, RoundOnLoad) else HalftoneQuantizer
    return kind(quantization_config, **kwargs)
