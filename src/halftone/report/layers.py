"""What each layer became: joined from the quantization's record, the artifact and the inspection."""

from dataclasses import dataclass
from typing import Any

from halftone.report.parts import Part, Sizes, read_parts, widths
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
        return widths(self.weight_bits, self.input_bits)


@dataclass(frozen=True)
class Model:
    """The denoiser as it lies in the folder.

    Attributes:
        sizes: None when the folder holds only records.
        parts: every network of the pipeline, the denoiser among them.
        left_float: what the recipe could not quantize, in sentences.
    """

    layers: list[Layer]
    sizes: Sizes | None
    left_float: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()

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
    denoiser, parts = read_parts(pieces.folder)
    description = denoiser.description if denoiser else None
    schemes = dict(description.schemes) if description else {}
    spent: dict[str, int] = {}
    for name, stored in denoiser.tensors.items() if denoiser else ():
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
    return Model(layers, denoiser.sizes if denoiser else None, left_float, tuple(parts))


def inspected_layers(inspection: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the inspection's facts by layer."""
    listed = inspection.get("layers")
    rows = [mapping(row) for row in listed] if isinstance(listed, list) else []
    return {str(row.get("path")): row for row in rows}


def _kernel(facts: dict[str, Any]) -> str:
    kernel, arithmetic = facts.get("kernel"), facts.get("arithmetic")
    return f"{kernel} ({arithmetic})" if kernel and arithmetic else str(kernel or "")
