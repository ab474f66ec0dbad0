"""How a quantized model runs: which kernels its layers and attentions choose from, and how they hold their codes meanwhile."""

from torch import nn

from halftone.foundation.errors import ConfigError
from halftone.nn.attention import AttentionOperands
from halftone.nn.layers import QuantizedLayer, quantized_layers

WEIGHTS = ("ready", "packed")


def set_engine(module: nn.Module, engine: str) -> None:
    """Let every quantized layer and attention of ``module`` choose its kernel from ``engine`` (``auto``, ``torch`` ...)."""
    owners: list[QuantizedLayer | AttentionOperands] = [layer for _, layer in quantized_layers(module)]
    owners += [child for child in module.modules() if isinstance(child, AttentionOperands)]
    for owner in owners:
        owner.engine = engine
        owner.refresh()


def set_weights(module: nn.Module, weights: str) -> None:
    """Say how the quantized layers of ``module`` keep their codes while they run.

    ``ready``: as their kernel multiplies them, a byte each. ``packed``: where a kernel can, codes of up to 4 bits in half a byte,
    widened piece by piece each time a layer runs, in scratch of a fixed size. Either way they are held once. Layers whose weights
    alone are quantized hold a float weight beside packed codes, or, ``packed``, the codes alone: the weight is made at each call.

    Raises:
        ConfigError: neither of the two.
    """
    if weights not in WEIGHTS:
        raise ConfigError("weights", "ready or packed", f"'{weights}'")
    for _, layer in quantized_layers(module):
        layer.refresh()
        layer.weights = weights  # type: ignore[assignment] # one of the two
