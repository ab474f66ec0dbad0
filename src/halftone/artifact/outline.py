"""A network without its numbers: built on the meta device from a configuration, so that no weights need to be there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halftone.artifact.folder import INDEX, check_folder, read_json
from halftone.artifact.pipeline import WITHOUT_HUB, refuse_path
from halftone.artifact.registration import register
from halftone.foundation.errors import ConfigError, HalftoneError, suggest
from halftone.models.component import KINDS, as_component, network_path
from halftone.models.denoiser import name_of_denoiser
from halftone.models.surgery import nearest_path

_CONFIG = "config.json"


@dataclass(frozen=True)
class Outline:
    """A float component on the meta device.

    Attributes:
        component: its name in the pipeline; None of a configuration on its own.
    """

    module: nn.Module
    component: str | None

    @property
    def network(self) -> str:
        """Where in the module the network lies that would be calibrated; "" for all of it."""
        return network_path(self.module)


def load_outline(source: str | Path, component: str | None = None) -> Outline:
    """Return a component from its configuration alone: of a pipeline's folder, of a hub id, or from a model's own folder or its
    ``config.json``.

    Args:
        component: which one of a pipeline; None is the denoiser.

    Raises:
        ConfigError: nothing of the kind at ``source``, no such component or one that cannot be quantized, a quantized model, or a
            class that its library does not have.
        ArtifactError: a file that cannot be read.
    """
    register()
    path = Path(source)
    if (path / INDEX).is_file():
        check_folder(path)
        name, listed = _listed(read_json(path / INDEX), component, str(path / INDEX))
        config = read_json(path / name / _CONFIG)
    elif path.suffix == ".json" or (path / _CONFIG).is_file():
        if component is not None:
            raise ConfigError("--component", "a pipeline that has components", str(source), "Leave --component out.")
        config = read_json(path if path.is_file() else path / _CONFIG)
        return Outline(_build(str(source), _float(source, config), ("diffusers", config.get("_class_name"))), None)
    elif path.is_dir():
        fix = "Name a pipeline's folder, a denoiser's, or a configuration."
        raise ConfigError(str(source), f"{INDEX} or {_CONFIG}", "a folder without either", fix)
    else:
        refuse_path(str(source), path)
        name, listed, config = _from_hub(str(source), component)
    module = _build(str(source), _float(source, config), listed)
    if component is not None and as_component(name, module) is None:
        raise ConfigError(str(source), KINDS, f"'{name}', a {listed[1]}")
    return Outline(module, name)


def _listed(index: Mapping[str, Any], component: str | None, where: str) -> tuple[str, tuple[str, Any]]:
    """Return the name of the component, and library and class that a pipeline's index says it has."""
    name = name_of_denoiser(index, where) if component is None else component
    networks = {key: value for key, value in index.items() if isinstance(value, list | tuple) and len(value) == 2}
    if name not in networks or not networks[name][0]:
        raise ConfigError(where, f"a component called '{name}'", "none", suggest(name, networks))
    library, kind = networks[name]
    return name, (library, kind)


def _float(source: str | Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return ``config``, or refuse that of a quantized model."""
    if config.get("quantization_config") is not None:
        fix = f"What became of each layer: halftone inspect {source}"
        raise ConfigError(str(source), "a float model", "one that is quantized already", fix)
    return config


def _from_hub(source: str, component: str | None) -> tuple[str, tuple[str, Any], dict[str, Any]]:
    from diffusers import DiffusionPipeline, ModelMixin

    try:
        name, listed = _listed(DiffusionPipeline.load_config(source), component, source)
        return name, listed, dict(ModelMixin.load_config(source, subfolder=name))
    except HalftoneError:
        raise
    except Exception as error:  # whatever diffusers or the hub client raises
        lines = str(error).strip().splitlines() or [""]
        got = f"{type(error).__name__}: {lines[0][:300]}"
        raise ConfigError(source, "a pipeline on the hub that can be reached", got, WITHOUT_HUB) from error


def _build(source: str, config: dict[str, Any], listed: tuple[str, Any]) -> nn.Module:
    library, name = listed
    make = {"diffusers": _of_diffusers, "transformers": _of_transformers}.get(library)
    if make is None:
        raise ConfigError(source, "a model of diffusers or transformers", f"{name} of {library}")
    kind = make(source, name)
    try:
        with torch.device("meta"):
            model: nn.Module = kind(config)
    except Exception as error:  # whatever the class makes of settings it cannot use
        got = f"{type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(source, f"a configuration of {name}", got) from error
    return model.eval().requires_grad_(False)


def _of_diffusers(source: str, name: Any) -> Callable[[dict[str, Any]], nn.Module]:
    import diffusers

    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        fix = nearest_path(str(name), (each for each in dir(diffusers) if "Model" in each)) if name else ""
        raise ConfigError(f"{source}: _class_name", "a model class of diffusers", repr(name)[:80], fix)
    return lambda config: kind.from_config({k: value for k, value in config.items() if k != "quantization_config"})


def _of_transformers(source: str, name: Any) -> Callable[[dict[str, Any]], nn.Module]:
    import transformers

    kind: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ConfigError(source, "a model class of transformers", repr(name)[:80])
    return lambda config: kind(kind.config_class.from_dict(config))
