"""A denoiser without its numbers: built on the meta device from a configuration, so that no weights need to be there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halftone.artifact.folder import INDEX, check_folder, read_json
from halftone.artifact.pipeline import WITHOUT_HUB, refuse_path
from halftone.artifact.registration import register
from halftone.foundation.errors import ConfigError, HalftoneError
from halftone.models.denoiser import name_of_denoiser
from halftone.models.surgery import nearest_path

_CONFIG = "config.json"


@dataclass(frozen=True)
class Outline:
    """A float denoiser on the meta device.

    Attributes:
        component: its name in the pipeline; None of a configuration on its own.
    """

    module: nn.Module
    component: str | None


def load_outline(source: str | Path) -> Outline:
    """Return the denoiser of a pipeline folder, a hub id, a denoiser's folder or its ``config.json``, from the configuration alone.

    Raises:
        ConfigError: nothing of the kind at ``source``, a quantized model, or a class that diffusers does not have.
        ArtifactError: a file that cannot be read.
    """
    register()
    path = Path(source)
    if path.is_file() and path.suffix == ".json":
        component, config = None, read_json(path)
    elif (path / INDEX).is_file():
        check_folder(path)
        component = name_of_denoiser(read_json(path / INDEX), str(path / INDEX))
        config = read_json(path / component / _CONFIG)
    elif (path / _CONFIG).is_file():
        component, config = None, read_json(path / _CONFIG)
    elif path.is_dir():
        fix = "Name a pipeline's folder, a denoiser's, or a configuration."
        raise ConfigError(str(source), f"{INDEX} or {_CONFIG}", "a folder without either", fix)
    else:
        refuse_path(str(source), path)
        component, config = _from_hub(str(source))
    if config.get("quantization_config") is not None:
        fix = f"What became of each layer: halftone inspect {source}"
        raise ConfigError(str(source), "a float model", "one that is quantized already", fix)
    return Outline(_build(str(source), config), component)


def _from_hub(source: str) -> tuple[str, dict[str, Any]]:
    from diffusers import DiffusionPipeline, ModelMixin

    try:
        component = name_of_denoiser(DiffusionPipeline.load_config(source), source)
        return component, dict(ModelMixin.load_config(source, subfolder=component))
    except HalftoneError:
        raise
    except Exception as error:  # whatever diffusers or the hub client raises
        lines = str(error).strip().splitlines() or [""]
        got = f"{type(error).__name__}: {lines[0][:300]}"
        raise ConfigError(source, "a pipeline on the hub that can be reached", got, WITHOUT_HUB) from error


def _build(source: str, config: dict[str, Any]) -> nn.Module:
    import diffusers

    name = config.get("_class_name")
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    known: bool = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not known:
        fix = nearest_path(str(name), (each for each in dir(diffusers) if "Model" in each)) if name else ""
        raise ConfigError(f"{source}: _class_name", "a model class of diffusers", repr(name)[:80], fix)
    try:
        with torch.device("meta"):
            model: nn.Module = kind.from_config(
                {key: value for key, value in config.items() if key != "quantization_config"}
            )
    except Exception as error:  # whatever the class makes of settings it cannot use
        got = f"{type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(source, f"a configuration of {name}", got) from error
    return model.eval().requires_grad_(False)
