"""What exists at inference: layers that hold codes and scales, quantized attention."""

from halftone.nn.attention import AttentionOperands
from halftone.nn.layers import QuantConv2d, QuantizedLayer, QuantLinear, Scheme
from halftone.nn.resnet import QuantizedResnetBlock2D
from halftone.nn.sites import SiteOwner
from halftone.nn.transformer import QuantizedTransformer2DModel, QuantizedTransformerBlock

__all__ = [
    "AttentionOperands",
    "QuantConv2d",
    "QuantLinear",
    "QuantizedLayer",
    "QuantizedResnetBlock2D",
    "QuantizedTransformer2DModel",
    "QuantizedTransformerBlock",
    "Scheme",
    "SiteOwner",
]
