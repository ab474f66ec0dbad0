"""What is quantized how: specs, granularities, ranges."""

from halftone.quant.spec import QuantSpec

__all__ = ["QuantSpec"]
