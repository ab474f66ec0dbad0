"""A network without its numbers: built on the meta device from a configuration, so that no weights need to be there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from halftone.artifact.folder import INDEX, check_folder, read_json
from halftone.artifact.pipeline import WITHOUT_HUB, refuse_path
from halftone.artifact.registration import register
from halftone.foundation.errors import ConfigError, HalftoneError, suggest
from halftone.models.component import KINDS, as_component, network_path
from halftone.models.denoiser import DENOISERS, listed, name_of_denoiser
from halftone.models.surgery import nearest_path

_CONFIG = "config.json"


@dataclass(frozen=True)
class Outline:
    """A float component on the meta device.

    Attributes:
        component: its name in the pipeline; None of a configuration on its own.
        latents: height and width of what the pipeline's denoiser reads, where that is known and square.
        others: bytes of the pipeline's other components in float32; None where their files are not at hand.
    """

    module: nn.Module
    component: str | None
    latents: int | None = None
    others: int | None = None

    @property
    def network(self) -> str:
        """Where in the module the network lies that would be calibrated; "" for all of it."""
        return network_path(self.module)

    @property
    def every_step(self) -> bool:
        """Whether it is called at every sampling step, or once an image or a prompt."""
        found = as_component(self.component, self.module) if self.component else None
        return found.every_step if found else not self.network

    @property
    def is_denoiser(self) -> bool:
        """Whether it draws pictures by itself, or another network of its pipeline does while it is recorded."""
        if self.component is None:
            return not self.network and "ControlNet" not in type(self.module).__name__
        return self.component in DENOISERS


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
    if (path.is_file() and path.suffix == ".json") or ((path / _CONFIG).is_file() and not (path / INDEX).is_file()):
        if component is not None:
            raise ConfigError("--component", "a pipeline that has components", str(source), "Leave --component out.")
        config = read_json(path if path.is_file() else path / _CONFIG)
        kind = _of_diffusers(f"{source}: _class_name", config.get("_class_name"))
        module = _build(str(source), kind, config, None)
        return Outline(module, None, _latents(module, None))
    if (path / INDEX).is_file():
        check_folder(path)
        name, kind = _listed(str(path / INDEX), read_json(path / INDEX), component)
        config = read_json(path / name / _CONFIG)
    elif path.is_dir():
        fix = "Name a pipeline's folder, a denoiser's, or a configuration."
        raise ConfigError(str(source), f"{INDEX} or {_CONFIG}", "a folder without either", fix)
    else:
        refuse_path(str(source), path)
        name, kind, config = _from_hub(str(source), component)
    module = _build(str(source), kind, config, component)
    if component is not None and as_component(name, module) is None:
        raise ConfigError(str(source), KINDS, f"'{name}', a {type(module).__name__}")
    folder = path if (path / INDEX).is_file() else None
    return Outline(module, name, _latents(module, folder), None if folder is None else _others(folder, name))


def _others(folder: Path, name: str) -> int | None:
    """Return the bytes in float32 of what else a pipeline loads, from the heads of its files; None where one cannot be read."""
    total = 0
    for other in listed(read_json(folder / INDEX)):
        files = list((folder / other).glob("*.safetensors")) if other != name else []
        plain = [file for file in files if ".fp16." not in file.name]  # the same weights again
        for file in plain or files:
            try:
                with safe_open(file, "np") as stored:
                    total += sum(4 * math.prod(stored.get_slice(key).get_shape()) for key in stored.keys())  # noqa: SIM118
            except (OSError, SafetensorError):
                return None
    return total


def _latents(module: nn.Module, folder: Path | None) -> int | None:
    """Return the side of the latents: the model's own, its pipeline's denoiser's, or that of what an autoencoder was trained on."""
    config: Any = getattr(module, "config", None)
    size = getattr(config, "sample_size", None)
    if network_path(module):
        scale = 2 ** (len(getattr(config, "block_out_channels", (1,))) - 1)
        size = size // scale if isinstance(size, int) else None
    if folder is not None and (size is None or network_path(module)):
        own = next((file for name in DENOISERS if (file := folder / name / _CONFIG).is_file()), None)
        size = (read_json(own).get("sample_size") if own else None) or size
    return size if isinstance(size, int) else None


def _listed(where: str, index: Mapping[str, Any], component: str | None) -> tuple[str, type]:
    """Return name and class of a component, as a pipeline's index has them."""
    name = name_of_denoiser(index, where) if component is None else component
    there = listed(index)
    if name not in there:
        raise ConfigError(where, f"a component called '{name}'", "none", suggest(name, there))
    library, kind = there[name]
    if library == "transformers":
        import transformers

        found = getattr(transformers, str(kind), None)
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            raise ConfigError(f"{where}: {name}", KINDS, f"a {kind} of {library}")
        return name, found
    import diffusers

    # Classes that a pipeline has for itself are listed under its name, and are diffusers' as well.
    if library != "diffusers" and not hasattr(diffusers.pipelines, str(library)):
        raise ConfigError(f"{where}: {name}", KINDS, f"a {kind} of {library}")
    return name, _of_diffusers(f"{where}: {name}", kind)


def _of_diffusers(where: str, name: Any) -> type:
    import diffusers

    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        fix = nearest_path(str(name), (each for each in dir(diffusers) if "Model" in each)) if name else ""
        raise ConfigError(where, "a model class of diffusers", repr(name)[:80], fix)
    return kind


def _from_hub(source: str, component: str | None) -> tuple[str, type, dict[str, Any]]:
    from diffusers import DiffusionPipeline, ModelMixin

    try:
        name, kind = _listed(source, DiffusionPipeline.load_config(source), component)
        return name, kind, dict(ModelMixin.load_config(source, subfolder=name))
    except HalftoneError:
        raise
    except Exception as error:  # whatever diffusers or the hub client raises
        lines = str(error).strip().splitlines() or [""]
        got = f"{type(error).__name__}: {lines[0][:300]}"
        raise ConfigError(source, "a pipeline on the hub that can be reached", got, WITHOUT_HUB) from error


def _build(source: str, kind: Any, config: dict[str, Any], component: str | None) -> nn.Module:
    if config.get("quantization_config") is not None:
        fix = f"What became of each layer: halftone inspect {source}"
        fix += f" --component {component}" if component else ""
        raise ConfigError(source, "a float model", "one that is quantized already", fix)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        with torch.device("meta"):
            if hasattr(kind, "from_config"):
                model: nn.Module = kind.from_config(plain)
            else:
                model = kind(kind.config_class.from_dict(plain))  # transformers
    except Exception as error:  # whatever the class makes of settings it cannot use
        got = f"{type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(source, f"a configuration of {kind.__name__}", got) from error
    return model.eval().requires_grad_(False)
