"""ONNX Runtime: the U-Net exported, quantized statically with its own tool (QDQ), run on its CPU provider."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_FLOAT, _FILE = "float.onnx", "unet.onnx"
_NAMES = ("sample", "timestep", "text")


def prepare(model: Path, folder: Path, calibration: Path, *, quantized: bool = True) -> dict[str, Any]:
    """Export, then ``quantize_static`` with weights per channel; only what is multiplied by weights is quantized."""
    import onnx
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    from benchmarks.cpu_unet.inputs import Inputs
    from benchmarks.cpu_unet.roads.torch_module import Plain, float_unet

    plain = Plain(float_unet(model)).eval()
    example = plain.example()
    names = _NAMES[: len(example)]
    folder.mkdir(parents=True)
    place = folder if not quantized else folder.with_name("float")
    place.mkdir(exist_ok=True)
    dynamic = {"sample": {0: "batch", 2: "height", 3: "width"}, "text": {0: "batch"}}
    with torch.no_grad():
        torch.onnx.export(
            plain, example, str(place / _FLOAT), input_names=list(names), output_names=["output"], dynamo=False,
            dynamic_axes={name: axes for name, axes in dynamic.items() if name in names}, opset_version=17,
        )  # fmt: skip
    del plain
    facts = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    if not quantized:
        (folder / _FLOAT).rename(folder / _FILE)
        return facts

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.items = iter(Inputs.load(calibration))

        def get_next(self) -> dict[str, np.ndarray] | None:
            given = next(self.items, None)
            return None if given is None else _arrays(*given)

    quantize_static(
        place / _FLOAT, folder / _FILE, Reader(), per_channel=True, use_external_data_format=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"], activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
    )  # fmt: skip
    import shutil

    shutil.rmtree(place)
    return facts


def _arrays(sample: np.ndarray, timestep: int, text: np.ndarray | None) -> dict[str, np.ndarray]:
    given = {"sample": sample, "timestep": np.array(timestep, np.int64)}
    return given if text is None else {**given, "text": text}


class _Session:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def take(self, sample: np.ndarray, timestep: int, text: np.ndarray | None) -> dict[str, np.ndarray]:
        return _arrays(sample, timestep, text)

    def call(self, given: dict[str, np.ndarray]) -> Any:
        return self.session.run(None, given)[0]

    def give(self, output: Any) -> np.ndarray:
        return np.asarray(output, np.float32)


def load(folder: Path, shapes: dict[str, list[int]], threads: int) -> _Session:
    """Load with every optimisation that ONNX Runtime has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return _Session(onnxruntime.InferenceSession(str(folder / _FILE), options, providers=["CPUExecutionProvider"]))
