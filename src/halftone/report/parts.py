"""The networks of a pipeline as they lie in its folder: read from configurations and headers, no weight is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path

from halftone.artifact.folder import INDEX, read_json
from halftone.artifact.schema import METHOD, Description, parse
from halftone.artifact.weights_file import Stored, read_header
from halftone.models.denoiser import name_of_denoiser
from halftone.report.pieces import mapping


@dataclass(frozen=True)
class Sizes:
    """Bytes of a network's tensors on disk by purpose, and how many weights they stand for."""

    codes: int
    scales: int
    floats: int
    elements: int

    @property
    def total(self) -> int:
        return self.codes + self.scales + self.floats


@dataclass(frozen=True)
class Part:
    """A network of the pipeline.

    Attributes:
        kind: its class.
        description: of what Halftone made of it; None for a float one.
        tensors: all that its files hold, by name.
    """

    name: str
    kind: str
    description: Description | None
    tensors: dict[str, Stored]

    @property
    def bits(self) -> str:
        """The widths of most layers, such as ``W4A8``; ``float`` where nothing is quantized."""
        schemes = self.description.schemes.values() if self.description else ()
        found = [widths(scheme.weight.bits, scheme.input.bits if scheme.input else None) for scheme in schemes]
        return max(set(found), key=found.count) if found else "float"

    @property
    def sizes(self) -> Sizes:
        schemes = self.description.schemes if self.description else {}
        codes = scales = floats = elements = 0
        for name, stored in self.tensors.items():
            owner, _, leaf = name.rpartition(".")
            if leaf == "weight" and owner in schemes:
                codes += stored.size
                # A row is padded to whole bytes, so this can be a few weights too many.
                elements += stored.size * 8 // schemes[owner].weight.bits
            elif schemes and leaf.endswith(("_scale", "_zero_point")):
                scales += stored.size
            else:
                floats += stored.size
                elements += math.prod(stored.shape)
        return Sizes(codes, scales, floats, elements)


def widths(weight: int, input_: int | None) -> str:
    """Return ``W4A8``, or ``W4`` for float activations."""
    return f"W{weight}" + (f"A{input_}" if input_ else "")


def read_parts(folder: Path) -> tuple[Part | None, list[Part]]:
    """Return the denoiser of the pipeline in ``folder``, and all of its networks; nothing where there is no pipeline.

    Raises:
        ArtifactError: a file is damaged.
        ConfigError: a pipeline without a denoiser.
    """
    if not (folder / INDEX).is_file():
        return None, []
    index = read_json(folder / INDEX)
    parts = {}
    for name in index:
        files = sorted((folder / name).glob("*.safetensors"))
        if not files or not (folder / name / "config.json").is_file():
            continue  # a scheduler, a tokenizer
        config = read_json(folder / name / "config.json")
        ours = mapping(config, "quantization_config").get("quant_method") == METHOD
        tensors: dict[str, Stored] = {}
        for file in files:
            tensors |= read_header(file)
        kind = config.get("_class_name") or next(iter(config.get("architectures") or []), "")
        parts[name] = Part(name, str(kind), parse(config["quantization_config"]) if ours else None, tensors)
    if not parts:
        return None, []
    return parts.get(name_of_denoiser(index, str(folder / INDEX))), list(parts.values())
