"""The records of a quantized model's folder, from which a report is made.

Only ``quantize.json`` must exist; a report names what is absent, with the command that makes it. A record that is there but damaged
is an error.
"""

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from halftone.artifact.folder import read_json
from halftone.foundation.errors import ArtifactError, ConfigError

ROOM = "halftone"  # the sub-folder of a model's folder that holds the records
QUANTIZED = f"{ROOM}/quantize.json"
# What differs between two runs of the same request. Every other file of the folder is the same, bit by bit.
RUN = f"{ROOM}/run.json"

# Record -> what makes it.
COMMANDS = {
    "evaluation": "halftone evaluate DIR --against FLOAT_MODEL",
    "trail": "halftone evaluate DIR --against FLOAT_MODEL --trail 8",
    "samples": "halftone evaluate DIR --against FLOAT_MODEL",
    "bench": "halftone bench DIR --against FLOAT_MODEL",
    "inspection": "halftone inspect DIR",
    "ranges": "halftone evaluate DIR --against FLOAT_MODEL",
}


@dataclass(frozen=True)
class Pairs:
    """Samples of both models from the same noise, uint8 ``[N, C, H, W]`` with 1 or 3 channels; ``texts`` are their prompts."""

    quantized: np.ndarray
    original: np.ndarray
    texts: tuple[str, ...] = ()

    def psnr(self) -> list[float]:
        """Return each pair's PSNR in dB, infinite for equal ones."""
        difference = (self.quantized.astype(np.float64) - self.original) / 255
        errors = np.square(difference).reshape(len(difference), -1).mean(1)
        return [-10 * math.log10(e) if e > 0 else math.inf for e in errors.tolist()]


@dataclass(frozen=True)
class Pieces:
    """All records of one model; an absent one is empty (None for samples)."""

    folder: Path
    quantize: dict[str, Any]
    evaluation: dict[str, Any] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, Any] = field(default_factory=dict)
    inspection: dict[str, Any] = field(default_factory=dict)
    samples: Pairs | None = None


def read_pieces(folder: Path) -> Pieces:
    """Read the records in ``folder``.

    Raises:
        ConfigError: there is no ``halftone/quantize.json``.
        ArtifactError: a record is damaged.
    """
    room = folder / ROOM
    if not (folder / QUANTIZED).is_file():
        fix = "Make one: halftone quantize MODEL --recipe NAME -o DIR."
        raise ConfigError(str(folder), f"a model that Halftone has quantized ({QUANTIZED})", "none", fix)
    names = ("quantize", "evaluation", "bench", "ranges", "inspection")
    records = {name: read_json(room / f"{name}.json") for name in names if (room / f"{name}.json").is_file()}
    if (folder / RUN).is_file():
        # Apart, because only the times differ between two runs of one request.
        records["quantize"]["seconds"] = mapping(read_json(folder / RUN), "seconds")
    samples = room / "samples.npz"
    return Pieces(folder, samples=_read_pairs(samples) if samples.is_file() else None, **records)


def _read_pairs(path: Path) -> Pairs:
    try:
        # Without pickle, which is NumPy's default: nothing in a folder is executed.
        with np.load(path, allow_pickle=False) as archive:
            texts = archive["texts"].tolist() if "texts" in archive else []
            pairs = Pairs(archive["quantized"], archive["float"], tuple(map(str, texts)))
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ArtifactError(str(path), "the arrays 'quantized' and 'float'", str(error)[:200]) from error
    shape = pairs.quantized.shape
    ordinary = (
        len(pairs.texts) in (0, shape[0])
        and len(shape) == 4
        and shape[0] > 0
        and shape[1] in (1, 3)
        and pairs.original.shape == shape
    )
    if not ordinary or pairs.quantized.dtype != np.uint8 or pairs.original.dtype != np.uint8:
        got = f"{shape} {pairs.quantized.dtype} and {pairs.original.shape} {pairs.original.dtype}"
        raise ArtifactError(str(path), "two uint8 arrays [N, 1 or 3, H, W]", got)
    return pairs


def mapping(value: Any, *path: str) -> dict[str, Any]:
    """Return the object at ``path`` inside ``value``; an empty one where there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """Return a JSON number, or an infinity as :func:`halftone.foundation.build.plain` writes it; None for others."""
    if value in (".inf", "-.inf"):
        return math.inf if value == ".inf" else -math.inf
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def numbers(value: Any) -> list[float]:
    """Return a JSON list of numbers, NaN for what is none; an empty list for something else."""
    if not isinstance(value, list):
        return []
    found = [number(entry) for entry in value]
    return [math.nan if entry is None else entry for entry in found]
