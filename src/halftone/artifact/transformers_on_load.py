"""Rounding a float text encoder while transformers loads it: no calibration, no float copy of a quantized weight left."""

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps

from halftone.artifact.on_load import RoundOnLoad, planned
from halftone.artifact.transformers_loader import TransformersQuantizer


class RoundingTextQuantizer(TransformersQuantizer):
    """Loads a float text encoder as one with quantized weights; from then on it is as if it had been loaded from an artifact.

    transformers casts a tensor before it hands it over: with another ``dtype`` than the file's, that is what is rounded.
    """

    requires_calibration = False

    def __init__(self, quantization_config: RoundOnLoad, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._given = quantization_config

    def _process_model_before_weight_loading(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self._schemes, self._layers = planned(model, self._given)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        path, _, leaf = param_name.rpartition(".")
        return leaf == "weight" and path in self._layers

    def get_quantize_ops(self) -> ConversionOps:
        return _Round(self)

    def round(self, name: str, weight: torch.Tensor) -> None:
        """Let the layer of the tensor ``name`` hold ``weight``, rounded."""
        path = name.removesuffix(".weight")
        layer = self._layers[path]
        layer.hold_nearest(weight.float(), self._schemes[path], self._given.range)
        for value in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            value._is_hf_initialized = True  # type: ignore[attr-defined] # not to be filled with random numbers afterwards

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from halftone.artifact.structure import describe

        self._layers = {}
        self.adopt(model, describe(model, self._given.recipe))
        return model


class _Round(ConversionOps):
    """What transformers calls with each weight that is to be rounded, in place of putting it into the model."""

    def __init__(self, quantizer: RoundingTextQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], *args: Any, missing_keys: set[str] | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        for name, value in input_dict.items():
            self.quantizer.round(name, value[0] if isinstance(value, list) else value)
            if missing_keys is not None:
                missing_keys.discard(name)
        return {}
