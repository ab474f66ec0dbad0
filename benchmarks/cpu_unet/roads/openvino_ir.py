"""OpenVINO: the U-Net converted, as it is or quantized by NNCF, and compiled for the shapes it will be given."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

_FILE = "unet.xml"


def prepare(
    model: Path, folder: Path, calibration: Path, *, quantized: bool = False, transformer: bool = False
) -> dict[str, Any]:
    """Convert, and quantize after training with NNCF where asked.

    Args:
        quantized: by ``nncf.quantize``, with its own defaults.
        transformer: told that the model is one, which keeps the operators out of int8 that NNCF holds delicate there.
    """
    import torch

    from benchmarks.cpu_unet.inputs import Inputs
    from benchmarks.cpu_unet.roads.torch_module import Plain, float_unet

    plain = Plain(float_unet(model)).eval()
    example = plain.example()
    with torch.no_grad():
        graph = ov.convert_model(plain, example_input=example)
    for number, (name, tensor) in enumerate(zip(("sample", "timestep", "text"), example, strict=False)):
        graph.inputs[number].tensor.set_names({name})
        graph.inputs[number].node.set_friendly_name(name)
        if name != "timestep":
            fixed = [-1, tensor.shape[1], -1, -1] if tensor.ndim == 4 else [-1, -1, tensor.shape[2]]
            graph.inputs[number].node.set_partial_shape(ov.PartialShape(fixed))
    graph.validate_nodes_and_infer_types()
    del plain
    facts: dict[str, Any] = {"openvino": ov.__version__}
    if quantized:
        import nncf

        inputs = Inputs.load(calibration)
        items = [_arrays(*each) for each in inputs]
        kind = nncf.ModelType.TRANSFORMER if transformer else None
        graph = nncf.quantize(graph, nncf.Dataset(items), subset_size=len(items), model_type=kind)
        facts |= {"nncf": nncf.__version__, "calibration_calls": len(items)}
    # Float weights in half precision, as OpenVINO's own exporters write them.
    ov.save_model(graph, folder / _FILE, compress_to_fp16=True)
    return facts


def _arrays(sample: np.ndarray, timestep: int, text: np.ndarray | None) -> dict[str, np.ndarray]:
    given = {"sample": sample, "timestep": np.array(timestep, np.int64)}
    return given if text is None else {**given, "text": text}


class _Compiled:
    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.request = compiled.create_infer_request()

    def take(self, sample: np.ndarray, timestep: int, text: np.ndarray | None) -> dict[str, ov.Tensor]:
        # Shared, so that a call copies no input.
        return {
            name: ov.Tensor(np.require(array, requirements="C"), shared_memory=array.ndim > 0)
            for name, array in _arrays(sample, timestep, text).items()
        }

    def call(self, given: dict[str, ov.Tensor]) -> Any:
        for name, tensor in given.items():
            self.request.set_tensor(name, tensor)
        self.request.infer()
        return self.request.get_output_tensor(0).data

    def give(self, output: Any) -> np.ndarray:
        return np.array(output, np.float32)


def load(
    folder: Path, shapes: dict[str, list[int]], threads: int, *, precision: str, counted: bool = False
) -> _Compiled:
    """Compile for one shape, which is OpenVINO's fastest; ``precision`` is of the float operators, such as ``bf16``.

    Args:
        counted: whether it keeps the time of every operator.
    """
    core = ov.Core()
    graph = core.read_model(folder / _FILE)
    graph.reshape({name: shape for name, shape in shapes.items()} | {"timestep": []})
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "PERF_COUNT": counted,
    }
    return _Compiled(core.compile_model(graph, "CPU", options))


def operators(denoiser: _Compiled) -> list[tuple[str, float]]:
    """Return the operators of the last call, by type and implementation, and their seconds.

    Whole attentions become one ``Subgraph``, which only the name of what it was made of tells from sums and activations.
    """
    found = []
    for each in denoiser.request.profiling_info:
        attention = " (attention)" if "scaled_dot_product" in each.node_name else ""
        found.append((f"{each.node_type} {each.exec_type}{attention}", each.real_time.total_seconds()))
    return found
