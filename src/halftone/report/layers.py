"""What each layer became: joined from the quantization's record, the artifact and the inspection."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halftone.artifact.folder import read_json
from halftone.artifact.schema import METHOD, Description, parse
from halftone.artifact.weights_file import Stored, read_header
from halftone.report.pieces import Pieces, mapping, number


@dataclass(frozen=True)
class Layer:
    """One linear or convolution; None stands for what no record says.

    Attributes:
        parts: channels of the parts with scales of their own, 0 or 1 of them when it is not split.
        bytes: of its tensors on disk.
        kernel: what runs it, with its arithmetic: ``onednn_int8 (integer)``.
        difference: greatest difference of the kernel from the definition, relative to the largest output.
        error: norm of the weight's error relative to the weight's.
    """

    path: str
    role: str
    inferred: bool
    kept: bool
    weight_bits: int | None
    input_bits: int | None
    parts: tuple[int, ...]
    kernel: str
    bytes: int | None
    difference: float | None
    error: float | None

    @property
    def bits(self) -> str:
        """``W4A8``, ``W4`` for float activations, ``float``."""
        if self.kept:
            return "float"
        if self.weight_bits is None:
            return ""
        return f"W{self.weight_bits}" + (f"A{self.input_bits}" if self.input_bits else "")


@dataclass(frozen=True)
class Sizes:
    """Bytes of the denoiser's tensors on disk by purpose, and of the same weights in float."""

    codes: int
    scales: int
    floats: int
    elements: int

    @property
    def total(self) -> int:
        return self.codes + self.scales + self.floats


@dataclass(frozen=True)
class Model:
    """The denoiser as it lies in the folder.

    Attributes:
        sizes: None when the folder holds only records.
        left_float: what the recipe could not quantize, in sentences.
    """

    layers: list[Layer]
    sizes: Sizes | None
    left_float: tuple[str, ...] = ()

    @property
    def bits(self) -> str:
        """The widths of most layers, such as ``W4A8``; empty when nobody knows."""
        found = [layer.bits for layer in self.layers if not layer.kept and layer.bits]
        return max(set(found), key=found.count) if found else ""


def read_model(pieces: Pieces) -> Model:
    """Return what is known about each layer.

    Raises:
        ArtifactError: the artifact is damaged.
    """
    description, tensors = _artifact(pieces.folder)
    schemes = dict(description.schemes) if description else {}
    spent: dict[str, int] = {}
    for name, stored in tensors.items():
        owner = name.rpartition(".")[0]
        spent[owner] = spent.get(owner, 0) + stored.size
    inspected = inspected_layers(pieces.inspection)
    layers = []
    for path, facts in mapping(pieces.quantize, "layers").items():
        known, scheme = mapping(facts), schemes.get(path)
        layers.append(
            Layer(
                path=path,
                role=str(known.get("role", "")),
                inferred=bool(known.get("inferred")),
                kept=bool(known.get("kept")),
                weight_bits=scheme.weight.bits if scheme else None,
                input_bits=scheme.input.bits if scheme and scheme.input else None,
                parts=tuple(scheme.segments) if scheme else (),
                kernel=_kernel(inspected.get(path, {})),
                bytes=spent.get(path),
                difference=number(inspected.get(path, {}).get("difference")),
                error=number(known.get("weight_error")),
            )
        )
    said = (description.notes if description else pieces.quantize).get("left_float")
    left_float = tuple(map(str, said)) if isinstance(said, list) else ()
    return Model(layers, _sizes(description, tensors) if description else None, left_float)


def _artifact(folder: Path) -> tuple[Description | None, dict[str, Stored]]:
    """Return the description and the tensors of the folder's Halftone component, or nothing."""
    for file in sorted(folder.glob("*/config.json")):
        config = read_json(file)
        if mapping(config, "quantization_config").get("quant_method") != METHOD:
            continue
        tensors: dict[str, Stored] = {}
        for weights in sorted(file.parent.glob("*.safetensors")):
            tensors |= read_header(weights)
        return parse(config["quantization_config"]), tensors
    return None, {}


def _sizes(description: Description, tensors: dict[str, Stored]) -> Sizes:
    codes = scales = floats = elements = 0
    for name, stored in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "weight" and owner in description.schemes:
            codes += stored.size
            # A row is padded to whole bytes, so this can be a few weights too many.
            elements += stored.size * 8 // description.schemes[owner].weight.bits
        elif leaf.endswith(("_scale", "_zero_point")):
            scales += stored.size
        else:
            floats += stored.size
            count = 1
            for length in stored.shape:
                count *= length
            elements += count
    return Sizes(codes, scales, floats, elements)


def inspected_layers(inspection: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the inspection's facts by layer."""
    listed = inspection.get("layers")
    rows = [mapping(row) for row in listed] if isinstance(listed, list) else []
    return {str(row.get("path")): row for row in rows}


def _kernel(facts: dict[str, Any]) -> str:
    kernel, arithmetic = facts.get("kernel"), facts.get("arithmetic")
    return f"{kernel} ({arithmetic})" if kernel and arithmetic else str(kernel or "")
