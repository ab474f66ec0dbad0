"""How diffusers loads and saves a Halftone denoiser: a quantization config and a quantizer, known to it by name."""

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import nn

from halftone.artifact.checksum import check, tensor_line
from halftone.artifact.fusing import Fusing
from halftone.artifact.numbers import check_numbers, is_exact
from halftone.artifact.owner import Owner
from halftone.artifact.schema import METHOD, Description, parse, to_json
from halftone.artifact.weights_file import Tensors
from halftone.foundation.errors import ArtifactError, ConfigError, OutputError
from halftone.nn.running import set_weights


class HalftoneMethod(str, Enum):  # noqa: UP042 - as diffusers' own; the loader reads ``quant_method.value``
    """The name of this quantization method."""

    HALFTONE = METHOD


class HalftoneConfig(QuantizationConfigMixin):
    """``quantization_config`` of a denoiser; :attr:`description` is what it says."""

    def __init__(self, description: Description) -> None:
        self.quant_method = HalftoneMethod.HALFTONE
        self.description = description

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read the JSON strictly; see :func:`halftone.artifact.schema.parse`."""
        config = cls(parse(config_dict))
        return (config, kwargs) if return_unused_kwargs else config

    @property
    def modules_to_not_convert(self) -> list[str]:
        """Paths of the linears and convolutions that stay float."""
        return list(self.description.ignore)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON."""
        return to_json(self.description)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the JSON: nothing in it has a default."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.to_dict().items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.description.schemes)} quantized layers)"


class HalftoneQuantizer(DiffusersQuantizer):
    """Loads and saves denoisers with quantized layers.

    Loading: layers get empty packed tensors on the meta device, so float weights never exist. Every tensor then comes
    through :meth:`create_quantized_param`, which hashes it as it is in the file and keeps scales in float32 whatever
    dtype was asked for. Saving: the description is made anew from the layers, so that it is true whatever happened to
    them since.
    """

    requires_calibration = True  # `from_pretrained` of a float model with this config is refused
    use_keep_in_fp32_modules = True  # honour the architecture's own list

    def __init__(self, quantization_config: HalftoneConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._owner = Owner()
        self._lines: dict[str, str] = {}
        self._files: Tensors | None = None

    # Loading, in the order of the calls.

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        refuse_disk(device_map)

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Any) -> list[str]:
        files = checkpoint_files if isinstance(checkpoint_files, list | tuple) else []
        self._files = Tensors(file for file in files if isinstance(file, str | Path))
        return loaded_keys

    def _stored(self, name: str, state_dict: dict[str, torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """Return a tensor as it is in the file, and whether it is ours alone."""
        if self._files is not None and name in self._files:
            return self._files[name], True
        # diffusers before 0.39 does not tell the files.
        return state_dict[name], False

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        from halftone.artifact.structure import prepare

        self._lines = {}
        prepare(model, self.quantization_config.description)

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        if missing_keys:
            raise ArtifactError(type(model).__name__, "every tensor in the file", _without(missing_keys))
        return missing_keys

    def check_if_quantized_param(self, *args: Any, **kwargs: Any) -> bool:
        return True  # float tensors too: all of them are hashed

    def check_quantized_param_shape(
        self, param_name: str, current_param: torch.Tensor, loaded_param: torch.Tensor
    ) -> bool:
        if current_param.shape != loaded_param.shape:
            raise ArtifactError(f"tensor '{param_name}'", str(list(current_param.shape)), str(list(loaded_param.shape)))
        return True

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
        """Put one tensor in place. ``param_value`` has been cast already; ``state_dict`` holds what the file holds."""
        stored, ours = self._stored(param_name, state_dict)
        self._lines[param_name] = tensor_line(param_name, stored)
        path, _, leaf = param_name.rpartition(".")
        owner = model.get_submodule(path)
        if is_exact(owner, leaf):
            expected = getattr(owner, leaf).dtype
            if stored.dtype != expected:
                raise ArtifactError(f"tensor '{param_name}'", str(expected), str(stored.dtype))
            param_value = stored
        elif ours:
            param_value = stored.to(param_value.dtype)
        # A copy: diffusers' tensors are windows on the file, and would change or vanish with it.
        value = param_value.to(target_device, copy=not ours)
        if leaf in owner._parameters:
            old = owner._parameters[leaf]
            grad = old is not None and old.requires_grad and value.is_floating_point()
            owner._parameters[leaf] = nn.Parameter(value, requires_grad=grad)
        else:
            owner._buffers[leaf] = value

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        from halftone.artifact.watch import watch

        lines, self._lines, self._files = self._lines, {}, None
        missing = [name for name in model.state_dict() if name not in lines]
        if missing:
            raise ArtifactError(type(model).__name__, "every tensor to be loaded", _without(missing))
        check(type(model).__name__, lines, self.quantization_config.description.checksum)
        check_numbers(model)
        self._owner = Owner(model)
        _as_if_float(model)
        set_weights(model, "ready")
        watch(model, self.quantization_config.description.trajectory)
        return model

    # Saving.

    @property
    def is_serializable(self) -> bool:
        """True; asked once at the start of ``save_pretrained``, and the moment to describe the layers as they are now.

        Raises:
            OutputError: adapters are attached or a layer is still being calibrated.
        """
        model = self._owner()
        if model is not None:
            self.refresh(model)
        return True

    def refresh(self, model: nn.Module) -> None:
        """Describe ``model`` anew, with the provenance of the description so far, and put that into its config."""
        from halftone.artifact.structure import describe

        old = self.quantization_config.description
        new = describe(model, old.recipe, old.trajectory, old.notes, old.producer)
        self.adopt(model, new)

    def adopt(self, model: Any, description: Description) -> None:
        """Make this the quantizer of ``model``, which ``description`` describes."""
        from halftone.artifact.watch import watch

        parse(to_json(description))  # what is written can be read
        self.quantization_config = HalftoneConfig(description)
        self._owner = Owner(model)
        model.hf_quantizer = self
        _as_if_float(model)
        watch(model, description.trajectory)
        model.quantization_method = HalftoneMethod.HALFTONE
        model.register_to_config(quantization_config=self.quantization_config)

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if not safe_serialization:
            raise OutputError("save_pretrained", "safe_serialization=True", "False", "Pickle is not written.")
        return state_dict, {}

    @property
    def is_trainable(self) -> bool:
        return False


def refuse_disk(device_map: Any) -> None:
    """Raise a ConfigError for a device map that leaves tensors on the disk."""
    if isinstance(device_map, dict) and "disk" in device_map.values():
        raise ConfigError("device_map", "devices that hold tensors", "disk", "Quantized layers do not run from disk.")


def _as_if_float(model: Any) -> None:
    """Let ``model.to(dtype)`` do what it does to float models, and its ``fuse_lora`` refuse what only those can do.

    diffusers refuses to cast what calls itself quantized, and so could not make one pipeline from another (``from_pipe``).
    A quantized layer casts nothing but its bias, so there is nothing to refuse.
    """
    model.is_quantized = False
    if hasattr(type(model), "fuse_lora"):
        model.fuse_lora = Fusing(model)


def _without(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"none for {shown}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
