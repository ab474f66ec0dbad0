"""How transformers loads and saves a text encoder with quantized layers, under the same name and in the same format."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.quantizers.base import HfQuantizer

from halftone.artifact.checksum import check, tensor_line
from halftone.artifact.diffusers_loader import HalftoneConfig, HalftoneMethod, refuse_disk
from halftone.artifact.numbers import check_numbers, is_exact
from halftone.artifact.owner import Owner
from halftone.artifact.schema import Description, parse, to_json
from halftone.artifact.weights_file import Tensors
from halftone.foundation.errors import ArtifactError, ConfigError

_OLDEST = 5  # transformers' major version: before, other paths and another way of loading


def refuse_old_versions() -> None:
    """Raise a ConfigError where transformers is too old for quantized text encoders."""
    if int(transformers.__version__.partition(".")[0]) < _OLDEST:
        fix = f"pip install 'transformers>={_OLDEST}', or leave the text encoder float."
        raise ConfigError("text encoder", f"transformers {_OLDEST} or newer", transformers.__version__, fix)


class TransformersQuantizer(HfQuantizer):
    """Loads and saves text encoders with quantized layers.

    Loading: the files are hashed before anything is loaded, then layers get empty packed tensors on the meta device, so float
    weights never exist; transformers gives each tensor the dtype of the one that waits for it, which for scales is float32 whatever
    was asked for. Saving: the description is made anew, as :class:`~halftone.artifact.diffusers_loader.HalftoneQuantizer` does, and
    tensors are named as the model names them, not as the checkpoint that it once came from did.
    """

    requires_calibration = True  # `from_pretrained` of a float model with this config is refused

    def __init__(self, quantization_config: HalftoneConfig, **kwargs: Any) -> None:
        refuse_old_versions()
        super().__init__(quantization_config, **kwargs)
        self._owner = Owner()

    # Loading, in the order of the calls.

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        refuse_disk(device_map)

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        from halftone.artifact.structure import prepare, saved_tensors

        description = self.quantization_config.description
        prepare(model, description)
        lines = dict(_lines(checkpoint_files or []))
        expected = saved_tensors(model)
        if lines.keys() != expected.keys():
            odd = min(lines.keys() ^ expected.keys())
            got = f"nothing for {odd}" if odd in expected else f"one more, {odd[:200]}"
            raise ArtifactError(type(model).__name__, "every tensor of the model in the file, and no other", got)
        check(type(model).__name__, lines, description.checksum)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for path, owner in model.named_modules():
            for leaf, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
                if tensor is not None and is_exact(owner, leaf) and tensor.dtype not in (torch.uint8, torch.float32):
                    fix = "This version of transformers casts what it loads: another one, or no dtype."
                    raise ArtifactError(f"tensor '{path}.{leaf}'", "its own dtype", str(tensor.dtype), fix)
        check_numbers(model)
        self._settle(model)
        return model

    # Saving.

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """True; asked once at the start of ``save_pretrained``, and the moment to describe the layers as they are now.

        Raises:
            OutputError: adapters are attached or a layer is still being calibrated.
        """
        from halftone.artifact.structure import describe

        model = self._owner()
        if model is not None:
            old = self.quantization_config.description
            self.adopt(model, describe(model, old.recipe, old.trajectory, old.notes, old.producer))
        return True

    def adopt(self, model: Any, description: Description) -> None:
        """Make this the quantizer of ``model``, which ``description`` describes."""
        parse(to_json(description))  # what is written can be read
        self.quantization_config = HalftoneConfig(description)
        model.hf_quantizer = self
        model.quantization_method = HalftoneMethod.HALFTONE
        model.config.quantization_config = self.quantization_config
        self._settle(model)

    def _settle(self, model: Any) -> None:
        from halftone.artifact.watch import watch

        self._owner = Owner(model)
        model.is_quantized = False  # casts are allowed: a quantized layer casts nothing but its bias
        model._weight_conversions = None  # tensors keep the model's own names
        watch(model, self.quantization_config.description.trajectory)

    @property
    def is_trainable(self) -> bool:
        return False


def _lines(files: list[str]) -> Iterator[tuple[str, str]]:
    """Yield name and line of each tensor in ``files``, of which one at a time is in memory.

    Raises:
        ArtifactError: a file that is not safetensors.
    """
    tensors = Tensors(files)
    for name in tensors:
        yield name, tensor_line(name, tensors[name])
