"""``fuse_lora`` of a quantized model: PEFT's own merging adds to weights, and codes are no weights."""

from typing import Any

from torch import nn

from halftone.artifact.owner import Owner
from halftone.foundation.errors import ConfigError
from halftone.nn import QuantizedLayer


def refuse_codes(model: nn.Module) -> None:
    """Raise a ConfigError that names the first quantized layer with an adapter, and what to call instead."""
    for path, module in model.named_modules():
        if hasattr(module, "get_base_layer") and isinstance(module.get_base_layer(), QuantizedLayer):
            expected, fix = "float weights to add to", "halftone.fuse_lora(pipe) adds in float and rounds again."
            raise ConfigError(f"fuse_lora: {path}", expected, "the codes of a quantized layer", fix)


class Fusing:
    """Stands before a model's own ``fuse_lora``, which ``pipe.fuse_lora()`` asks each model for.

    Adapters on float layers are fused as ever. For one on a quantized layer PEFT would add to packed codes, in place or, with
    ``safe_fusing``, without even failing.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owner = Owner(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Fuse, or raise a ConfigError; see ``refuse_codes``."""
        model: Any = self._owner()
        refuse_codes(model)
        return type(model).fuse_lora(model, *args, **kwargs)
