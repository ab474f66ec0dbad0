"""From a denoiser to its description, and from a description to a denoiser that waits for its numbers."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from halftone.artifact.checksum import checksum
from halftone.artifact.schema import Description
from halftone.foundation.build import plain
from halftone.foundation.errors import ArtifactError, HalftoneError, OutputError
from halftone.models.surgery import nearest_path, replace_layers
from halftone.nn import AttentionOperands, QuantizedLayer, Scheme
from halftone.nn.attention import can_hold_operands, install_operands
from halftone.quant import QuantSpec

_OPERANDS_NAME = "operands"  # of the child that nn.attention gives an attention


def describe(
    denoiser: nn.Module,
    recipe: Mapping[str, Any],
    trajectory: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    producer: Mapping[str, str] | None = None,
) -> Description:
    """Return the description of ``denoiser`` as it is now, checksum included.

    A site counts as quantized once it has a scale; a spec without one is left out.

    Args:
        denoiser: holds quantized layers.
        recipe, trajectory, notes: anything that :func:`halftone.foundation.build.plain` takes.
        producer: None stands for this program.

    Raises:
        OutputError: adapters are attached, a layer is still calibrating, or nothing is quantized.
    """
    schemes: dict[str, Scheme] = {}
    operands: dict[str, dict[str, QuantSpec]] = {}
    ignore: list[str] = []
    for path, module in denoiser.named_modules():
        _refuse_unfinished(path, module)
        if isinstance(module, QuantizedLayer) and module.scheme is not None:
            schemes[path] = _scheme(module)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            ignore.append(path)
        elif isinstance(module, AttentionOperands):
            specs = {site: spec for site, spec in module.site_specs.items() if module.is_quantized(site)}
            if specs:
                operands[path.removesuffix(f".{_OPERANDS_NAME}")] = specs
    if not schemes:
        raise OutputError(type(denoiser).__name__, "at least one quantized layer", "none")
    return Description(
        schemes,
        operands,
        tuple(ignore),
        plain(recipe),
        None if trajectory is None else plain(trajectory),
        plain(notes or {}),
        dict(producer or {"name": "halftone", "version": _version()}),
        checksum(saved_tensors(denoiser)),
    )


def saved_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of ``model`` that its library writes: of several names of one, transformers writes the first."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _refuse_unfinished(path: str, module: nn.Module) -> None:
    if hasattr(module, "base_layer"):
        fix = "Save the adapters on their own, and unload them before the model is saved."
        raise OutputError(f"layer '{path}'", "no adapters in a model that is saved", "one", fix)
    if getattr(module, "taps", None) or getattr(module, "weight_trial", None) is not None:
        raise OutputError(f"layer '{path}'", "a layer that is not being calibrated", "taps or a weight on trial")


def _scheme(layer: QuantizedLayer) -> Scheme:
    assert layer.scheme is not None
    segments = layer.scheme.segments if len(layer.scheme.segments) > 1 else ()
    given = layer.scheme.input if layer.is_quantized("input") else None
    return Scheme(layer.scheme.weight, given, segments)


def _version() -> str:
    try:
        return version("halftone")
    except PackageNotFoundError:  # run from a checkout
        return "0"


def prepare(denoiser: nn.Module, description: Description) -> None:
    """Give a float ``denoiser``, usually on the meta device, the empty tensors that ``description`` asks for.

    Raises:
        ArtifactError: the description names a layer that the model does not have, or that cannot be so quantized.
    """
    modules = dict(denoiser.named_modules())
    for path in description.ignore:
        _find(modules, path, "ignore")
    for path, scheme in description.schemes.items():
        layer = _find(modules, path, "config_groups")
        if scheme.segments:
            _check_segments(path, layer, scheme.segments)
    for path in description.operands:
        if not can_hold_operands(_find(modules, path, "attention_operands")):
            where = "quantization_config.attention_operands"
            raise ArtifactError(where, "an attention of the standard kind", f"'{path}'")
    try:
        layers = replace_layers(denoiser, description.schemes)
    except HalftoneError as error:
        raise ArtifactError(
            "quantization_config.config_groups", error.expected, f"{error.where}: {error.got}"
        ) from error
    for path, quantized in layers.items():
        quantized.allocate(description.schemes[path])
    for path, specs in description.operands.items():
        # Under the device of the rest, which is meta while loading.
        with next(denoiser.parameters()).device:
            install_operands(modules[path], dict(specs)).allocate()


def _find(modules: dict[str, nn.Module], path: str, key: str) -> nn.Module:
    if path not in modules:
        where, fix = f"{type(modules['']).__name__}: quantization_config.{key}", nearest_path(path, modules)
        raise ArtifactError(where, "layers of this model", f"'{path[:200]}'", fix)
    return modules[path]


def _check_segments(path: str, layer: nn.Module, segments: tuple[int, ...]) -> None:
    width = getattr(layer, "in_features", getattr(layer, "in_channels", None))
    if sum(segments) != width or getattr(layer, "groups", 1) != 1:
        where = "quantization_config.config_groups"
        got = f"{len(segments)} segments" if len(segments) > 8 else str(list(segments))
        raise ArtifactError(where, f"segments that add up to the {width} input channels of '{path}'", got)
