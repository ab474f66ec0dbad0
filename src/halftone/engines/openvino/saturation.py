"""Whether 8-bit products saturate on this machine: x86 without VNNI adds two of them in 16 bits."""

from functools import cache

import numpy as np
import openvino as ov
from openvino import opset13 as ops

NARROW = 64  # two products of codes up to 255 with weights up to this fit into 16 bits
_WIDTH = 64
_LARGEST = 127


@cache
def saturates() -> bool:
    """Return whether OpenVINO's 8-bit products of large weights are wrong here; asked of a small graph, once."""
    x = ops.parameter([1, _WIDTH], ov.Type.f32)
    ends = [ops.constant(np.array(end, np.float32)) for end in (0.0, 255.0)]
    weight = ops.convert(ops.constant(np.full((_WIDTH, _WIDTH), _LARGEST, np.int8)), ov.Type.f32)
    scale = ops.constant(np.ones((_WIDTH, 1), np.float32))
    product = ops.matmul(ops.fake_quantize(x, *ends, *ends, 256), ops.multiply(weight, scale), False, True)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(ov.Model([product], [x]), "CPU", options)
    found = float(compiled([np.full((1, _WIDTH), 255.0, np.float32)])[0].min())
    exact = 255.0 * _LARGEST * _WIDTH
    return abs(found - exact) > 1e-3 * exact
