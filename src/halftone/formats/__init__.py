"""Number formats: frozen values that know their grid, and how codes become bytes."""

from halftone.formats.affine import Affine, dequantize, fake_quantize, quantize
from halftone.formats.contract import AbstractFormat
from halftone.formats.names import parse
from halftone.formats.packing import pack, packed_size, unpack

__all__ = [
    "AbstractFormat",
    "Affine",
    "dequantize",
    "fake_quantize",
    "pack",
    "packed_size",
    "parse",
    "quantize",
    "unpack",
]
