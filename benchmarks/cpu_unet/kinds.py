"""What operators are for, by their names: the kinds that a profile is summed up in."""

# The first that occurs in a name decides; names of PyTorch and of OpenVINO, in small letters.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention", ("scaled_dot_product", "scaleddotproduct", "attention", "softmax", "aten::bmm", "aten::baddbmm")),
    (
        "layers",
        (
            *(
                "qconv",
                "qlinear",
                "int_mm",
                "native::multiply",
                "native::product",
                "convolution",
                "mkldnn_linear",
                "addmm",
                "aten::mm",
            ),
            *("aten::linear", "fullyconnected", "matmul"),
        ),
    ),
    ("norms, quantization", ("norm", "mvn", "encode", "quantize", "round", "clamp")),
    ("activations, sums", ("silu", "gelu", "sigmoid", "swish", "mul", "add", "div", "sub", "exp", "eltwise")),
    (
        "copies",
        (
            *("copy", "cat", "clone", "contiguous", "reorder", "transpose", "to_", "pad", "upsample", "interpolate"),
            *("fill", "zero", "convert", "reshape", "split"),
        ),
    ),
)
OTHERS = "others"


def kind_of(name: str) -> str:
    """Return an operator's kind."""
    return next((kind for kind, parts in KINDS if any(part in name.lower() for part in parts)), OTHERS)
