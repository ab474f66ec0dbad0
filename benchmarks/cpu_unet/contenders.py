"""The contenders, as data: adding one is adding an entry."""

from dataclasses import dataclass, field, replace
from typing import Any

BASELINE = "torch-bf16"
RIVAL = "openvino-int8"
# Who takes part in every group, so that ratios are between turns of one group.
ANCHORS = (BASELINE, RIVAL)
REFERENCE = "torch-fp32"  # whose output the errors are distances to

OURS = "halftone_engine"  # the road

# Attention in float, as all others have it.
_FLOAT_ATTENTION = ("policy.0.operands=null",)


@dataclass(frozen=True)
class Contender:
    """One way to run a U-Net.

    Attributes:
        name: of rows.
        title: of tables.
        road: a module of ``benchmarks/cpu_unet/roads``.
        prepare: options of the road's ``prepare``; contenders of equal options share what it made.
        load: options of its ``load``.
        peers: whether it needs the packages of ``requirements.txt``, and so runs in their environment.
        only: sections that it is in; empty for all of them.
    """

    name: str
    title: str
    road: str
    prepare: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    peers: bool = False
    only: tuple[str, ...] = ()

    @property
    def profiled(self) -> bool:
        """Whether its operators' times can be had: from PyTorch's profiler, or from OpenVINO's counters."""
        return self.road in (OURS, "torch_float", "openvino_ir") and not self.load.get("compiled")

    @property
    def simulated(self) -> "Contender":
        """The same artifact on the engine that defines what it computes."""
        return replace(self, load={"engine": "simulate"}, peers=False)


# Whose parts are switched off one by one.
TAKEN_APART = ("halftone-w8a8-bf16", "halftone-w4a8-bf16")


def _torch(name: str, title: str, dtype: str, **load: Any) -> Contender:
    return Contender(name, title, "torch_float", {"dtype": dtype}, {"dtype": dtype, **load})


def _halftone(
    name: str, title: str, recipe: str, *overrides: str, only: tuple[str, ...] = (), peers: bool = False, **load: Any
) -> Contender:
    given = {"recipe": recipe, "overrides": list(overrides)}
    return Contender(name, title, OURS, given, {"engine": "torch", **load}, peers, only)


def _q_diffusion(recipe: str, title: str) -> Contender:
    # Learned rounding at the smallest budget, minutes where nearest rounding takes seconds; attention in 8 bits too.
    given = {"recipe": recipe, "budget": "demo"}
    return Contender(recipe, title, OURS, given, {"engine": "torch"}, only=("error",))


CONTENDERS = (
    _torch("torch-fp32", "torch fp32", "float32"),
    _torch("torch-bf16", "torch bf16", "bfloat16"),
    _torch("torch-bf16-compiled", "torch bf16, compiled", "bfloat16", compiled=True),
    Contender("openvino-bf16", "OpenVINO bf16", "openvino_ir", {}, {"precision": "bf16"}, peers=True),
    Contender("openvino-int8", "OpenVINO int8 (NNCF)", "openvino_ir", {"quantized": True}, {"precision": "bf16"}, True),
    Contender("onnxruntime-int8", "ONNX Runtime int8", "onnx_runtime", peers=True),
    Contender("sdnq-int8", "SDNQ int8", "sdnq_int8", {"convolutions": True}, peers=True),
    Contender("sdnq-int8-linears", "SDNQ int8, linears alone", "sdnq_int8", {"convolutions": False}, peers=True),
    Contender("torchao-int8", "torchao int8, linears alone", "torchao_int8", peers=True),
    Contender(
        "torchao-int8-compiled",
        "torchao int8, linears alone, compiled",
        "torchao_int8",
        load={"compiled": True},
        peers=True,
    ),
    _halftone("halftone-w8a8", "Halftone W8A8", "rtn-w8a8", *_FLOAT_ATTENTION),
    _halftone("halftone-w4a8", "Halftone W4A8", "rtn-w4a8", *_FLOAT_ATTENTION),
    _halftone(
        "halftone-w8a8-bf16", "Halftone W8A8, bf16 between layers", "rtn-w8a8", *_FLOAT_ATTENTION, dtype="bfloat16"
    ),
    _halftone(
        "halftone-w4a8-bf16", "Halftone W4A8, bf16 between layers", "rtn-w4a8", *_FLOAT_ATTENTION, dtype="bfloat16"
    ),
    _halftone(
        "halftone-w4a8-packed",
        "Halftone W4A8, bf16 between layers, packed",
        "rtn-w4a8",
        *_FLOAT_ATTENTION,
        dtype="bfloat16",
        weights="packed",
    ),
    _halftone(
        "halftone-w8a8-attention", "Halftone W8A8, bf16 between layers, attention too", "rtn-w8a8", dtype="bfloat16"
    ),
    _halftone(
        "halftone-w4a8-attention", "Halftone W4A8, bf16 between layers, attention too", "rtn-w4a8", dtype="bfloat16"
    ),
    _halftone(
        "halftone-w8a8-openvino",
        "Halftone W8A8 on OpenVINO",
        "rtn-w8a8",
        *_FLOAT_ATTENTION,
        peers=True,
        engine="openvino",
    ),
    _halftone(
        "halftone-w4a8-openvino",
        "Halftone W4A8 on OpenVINO",
        "rtn-w4a8",
        *_FLOAT_ATTENTION,
        peers=True,
        engine="openvino",
    ),
    _halftone(
        "halftone-w8a8-attention-openvino",
        "Halftone W8A8 on OpenVINO, attention too",
        "rtn-w8a8",
        peers=True,
        engine="openvino",
    ),
    # What is float in the network is float32: how far our graphs are from the definition, and not bfloat16.
    _halftone(
        "halftone-w8a8-openvino-f32",
        "Halftone W8A8 on OpenVINO, f32 between layers",
        "rtn-w8a8",
        *_FLOAT_ATTENTION,
        only=("distance",),
        peers=True,
        engine="openvino",
        precision="f32",
    ),
    _halftone(
        "halftone-w4a8-openvino-f32",
        "Halftone W4A8 on OpenVINO, f32 between layers",
        "rtn-w4a8",
        *_FLOAT_ATTENTION,
        only=("distance",),
        peers=True,
        engine="openvino",
        precision="f32",
    ),
    _halftone("halftone-w8a8-compiled", "Halftone W8A8, compiled", "rtn-w8a8", *_FLOAT_ATTENTION, compiled=True),
    _q_diffusion("q-diffusion-w8a8", "Halftone W8A8, Q-Diffusion"),
    _q_diffusion("q-diffusion-w4a8", "Halftone W4A8, Q-Diffusion"),
)
BY_NAME = {each.name: each for each in CONTENDERS}
assert len(BY_NAME) == len(CONTENDERS)
