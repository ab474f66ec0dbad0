"""Tie a description to a model that was quantized in place, and read it back: for models of diffusers and of transformers."""

import sys
from typing import Any

from torch import nn

from halftone.artifact.diffusers_loader import HalftoneConfig, HalftoneQuantizer
from halftone.artifact.schema import Description
from halftone.foundation.errors import ConfigError


def attach(
    model: nn.Module,
    recipe: dict[str, Any],
    trajectory: dict[str, Any] | None = None,
    notes: dict[str, Any] | None = None,
) -> HalftoneConfig:
    """Let the library of ``model`` know that it was quantized in place, so that its ``save_pretrained`` writes the artifact.

    Casting it later (``model.to(dtype)``, ``from_pipe``) concerns what stayed float: codes and scales keep their numbers.

    Args:
        model: a diffusers model, or a text encoder of transformers, that holds quantized layers.
        recipe: the resolved recipe.
        trajectory: the identity of the calibration trajectory.
        notes: anything else to keep, for example trials. All three are stored as JSON.

    Raises:
        OutputError: nothing is quantized, adapters are attached, or a layer is still being calibrated.
        ConfigError: a model of neither library.
    """
    from halftone.artifact.structure import describe

    quantizer: Any = HalftoneQuantizer
    if is_transformers(model):
        from halftone.artifact.transformers_loader import TransformersQuantizer as quantizer  # noqa: N813
    elif not hasattr(model, "register_to_config"):
        raise ConfigError("model", "a model of diffusers or transformers", type(model).__name__)
    description = describe(model, recipe, trajectory, notes)
    quantizer(HalftoneConfig(description)).adopt(model, description)
    return model.hf_quantizer.quantization_config  # type: ignore[union-attr,return-value]


def described(model: nn.Module) -> Description | None:
    """Return what a model that was loaded or attached says about itself (recipe ...), or None if it is float."""
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    return config.description if isinstance(config, HalftoneConfig) and hasattr(config, "description") else None


def refuse_unattachable(model: object) -> None:
    """Raise a ConfigError for a model that could be quantized and then not be described: before hours of work."""
    if is_transformers(model):
        from halftone.artifact.transformers_loader import refuse_old_versions

        refuse_old_versions()


def is_transformers(model: object) -> bool:
    """Return whether ``model`` is one of transformers, which nobody has imported if there is no such model."""
    library = sys.modules.get("transformers")
    return library is not None and isinstance(model, library.PreTrainedModel)
