"""An exported network on disk: OpenVINO's own pair of files, and one that says which calls of which network they are of.

``openvino_model.xml`` and ``.bin`` are an ordinary OpenVINO model, which any program of OpenVINO's runs: codes as they are in
the artifact (four bits where they have four), their scales, and what is float. With ``halftone.json`` beside them the engine takes
them in place of exporting.
"""

import hashlib
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from torch import nn
from torch.utils import _pytree as pytree

from halftone.engines.openvino.graph import General, Graph
from halftone.foundation.errors import ArtifactError
from halftone.foundation.files import sha256_of, staged_folder
from halftone.nn.layers import quantized_layers

MODEL, WEIGHTS, ABOUT = "openvino_model.xml", "openvino_model.bin", "halftone.json"
_VERSION = 1


def save(graph: Graph, general: General, network: nn.Module, folder: str | Path, overwrite: bool = False) -> Path:
    """Write ``graph``, the graph of ``network`` for calls of the kind ``general``, to ``folder``, wholly or not at all.

    Raises:
        OutputError: the folder exists and may not be overwritten, or cannot be written.
    """
    with staged_folder(folder, overwrite) as stage:
        # Not compressed to half precision: the float numbers are part of what ``simulate`` defines.
        ov.save_model(graph.model, stage / MODEL, compress_to_fp16=False)
        about = {
            "version": _VERSION,
            "openvino": ov.__version__,
            "network": type(network).__name__,
            "numbers": fingerprint(network),
            "calls": _calls(general),
            "result": _written(graph.returned([torch.empty(0)] * len(graph.model.outputs)), iter(range(10**6))),
            "layers": sorted(graph.paths),
            "largest": graph.largest,
            "sha256": {name: sha256_of(stage / name) for name in (MODEL, WEIGHTS)},
        }
        (stage / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return Path(folder)


def load(folder: str | Path, general: General, network: nn.Module) -> Graph:
    """Return the graph in ``folder`` for calls of ``network`` of the kind ``general``.

    Raises:
        ArtifactError: no such export, a damaged one, or one of another network, other numbers or other calls.
    """
    folder = Path(folder)
    about = _about(folder)
    fix = "Export again: halftone export MODEL -o FOLDER."
    for key, wanted in (
        ("network", type(network).__name__),
        ("numbers", fingerprint(network)),
        ("calls", _calls(general)),
    ):
        if about.get(key) != wanted:
            raise ArtifactError(f"{folder / ABOUT}, {key}", _short(wanted), _short(about.get(key)), fix)
    for name in (MODEL, WEIGHTS):
        if not (folder / name).is_file() or sha256_of(folder / name) != about["sha256"].get(name):
            raise ArtifactError(str(folder / name), "the file that was exported", "another one or none", fix)
    model = ov.Core().read_model(folder / MODEL)
    result, constants = _read(about["result"], network)
    return Graph(model, frozenset(about["layers"]), result, constants, int(about["largest"]), [])


def fingerprint(network: nn.Module) -> str:
    """Return a digest of the network's quantization: every layer's scheme, scales and zero points, and the size of its codes."""
    digest = hashlib.sha256()
    for path, layer in quantized_layers(network):
        digest.update(f"{path} {layer.scheme} {layer.weight_shape}".encode())
        for name in ("weight_scale", "weight_zero_point", "input_scale", "input_zero_point", "kept_output"):
            numbers = getattr(layer, name, None)
            if numbers is not None:
                digest.update(numbers.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: Any = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(str(folder), "a folder that `halftone export` wrote", type(error).__name__) from error
    if not isinstance(about, dict) or about.get("version") != _VERSION or not isinstance(about.get("sha256"), dict):
        got = about.get("version") if isinstance(about, dict) else type(about).__name__
        raise ArtifactError(str(folder / ABOUT), f"version {_VERSION}", str(got), "Export again.")
    return about


def _calls(general: General) -> dict[str, Any]:
    """Return the kind of calls, JSON-safe."""
    rest = general.rest
    return {
        "names": list(rest.names),
        "dtypes": [str(dtype).removeprefix("torch.") for dtype in rest.dtypes],
        "shapes": [list(shape) for shape in general.shapes],
        "constants": [[place, value] for place, value in rest.constants],
    }


def _written(value: Any, numbers: Any) -> Any:
    """Return what a network returns, JSON-safe, with the numbers of outputs in place of tensors."""
    if isinstance(value, torch.Tensor):
        return next(numbers)
    if isinstance(value, OrderedDict):  # diffusers' outputs
        return {
            "class": type(value).__name__,
            "fields": {name: _written(each, numbers) for name, each in value.items()},
        }
    if isinstance(value, list | tuple):
        return [_written(each, numbers) for each in value]
    if value is None:
        return None
    raise ArtifactError(f"what a network returns ({type(value).__name__})", "tensors, tuples and diffusers' outputs")


def _read(written: Any, network: nn.Module) -> tuple[Any, dict[int, Any]]:
    """Return the tree that was written, and its leaves that are no tensors."""
    leaves, spec = pytree.tree_flatten(_built(written, sys.modules[type(network).__module__]))
    return spec, {place: None for place, leaf in enumerate(leaves) if not isinstance(leaf, int)}


def _built(written: Any, home: Any) -> Any:
    if isinstance(written, list):
        return tuple(_built(each, home) for each in written)
    if not isinstance(written, dict):
        return written
    # Of the module that defines the network, and an output: a file does not say what is imported.
    kind = getattr(home, str(written.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, OrderedDict)):
        raise ArtifactError(f"{ABOUT}, result", f"an output of {home.__name__}", _short(written.get("class")))
    return kind(**{name: _built(each, home) for name, each in written["fields"].items()})


def _short(value: Any) -> str:
    return json.dumps(value)[:300]
