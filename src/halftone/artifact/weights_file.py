"""Safetensors files: headers checked before anything is loaded, tensors read one at a time into memory of their own."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from halftone.artifact.checksum import DTYPES
from halftone.foundation.errors import ArtifactError

AGAIN = "It may be half downloaded or half copied: fetch it again."
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the format
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
_TORCH = {name: dtype for dtype, name in DTYPES.items()}
_BITS |= {"I64": 64, "U64": 64, "F64": 64, "C64": 64}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: dtype as safetensors names it, shape, bytes, and where in the file they begin."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    offset: int


def read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name, without reading them.

    Raises:
        ArtifactError: truncated, longer than its header says, or not a safetensors file.
    """
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            size = int.from_bytes(start, "little")
            if len(start) < 8 or size > min(_LONGEST_HEADER, length - 8):
                raise ArtifactError(
                    str(path), "a whole safetensors file", f"{length} bytes that do not hold its header", AGAIN
                )
            header = json.loads(file.read(size))
    except OSError as error:
        raise ArtifactError(str(path), "a readable file", error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(str(path), "a safetensors header", "bytes that are not JSON") from error
    if not isinstance(header, dict):
        raise ArtifactError(str(path), "a safetensors header", type(header).__name__)
    begin = 8 + size
    stored = {name: _entry(path, name, data, begin) for name, data in header.items() if name != "__metadata__"}
    _check_offsets(path, header, length - 8 - size)
    return stored


def _entry(path: Path, name: str, data: Any, begin: int) -> Stored:
    where = f"{path}: tensor '{name[:200]}'"
    if not isinstance(data, dict) or data.keys() != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(where, "dtype, shape and data_offsets", "something else")
    shape, offsets = data["shape"], data["data_offsets"]
    if data["dtype"] not in list(_BITS):
        raise ArtifactError(where, "a known dtype", repr(data["dtype"])[:80])
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise ArtifactError(where, "a shape and two offsets of whole numbers", "something else")
    size = math.prod(shape) * _BITS[data["dtype"]] // 8
    if offsets[1] - offsets[0] != size:
        raise ArtifactError(where, "as many bytes as its shape needs", "another number")
    return Stored(data["dtype"], tuple(shape), size, begin + offsets[0])


class Tensors:
    """The tensors of some files by name. A mapped file would stay resident beside the copies that are made of it; read so, a model
    takes its own bytes while it is loaded and no more.

    Raises:
        ArtifactError: a file that is not safetensors, or a damaged one.
    """

    def __init__(self, files: Iterable[str | Path]) -> None:
        files = list(files)
        for file in files:
            if Path(file).suffix != ".safetensors":
                raise ArtifactError(str(file), "weights in safetensors", Path(file).suffix, "Pickle is not read.")
        self._places = {
            name: (Path(file), stored) for file in files for name, stored in read_header(Path(file)).items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places and self._places[name][1].dtype in _TORCH

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor that nobody else holds.

        Raises:
            ArtifactError: the file ends before the tensor does.
        """
        path, stored = self._places[name]
        tensor = torch.empty(stored.shape, dtype=_TORCH[stored.dtype], device="cpu")
        with FileIO(path) as file:
            file.seek(stored.offset)
            left = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
            while left:
                count = file.readinto(left)
                if not count:
                    raise ArtifactError(str(path), f"{stored.size} bytes of '{name[:200]}'", "the end of the file")
                left = left[count:]
        return tensor


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) < 64 and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _check_offsets(path: Path, header: dict[str, Any], length: int) -> None:
    spans = sorted(tuple(data["data_offsets"]) for name, data in header.items() if name != "__metadata__")
    end = 0
    for start, stop in spans:
        if start != end:
            raise ArtifactError(str(path), "tensors one after the other", "a gap or an overlap")
        end = stop
    if end != length:
        got = f"{length} (the file is truncated)" if length < end else f"{length}"
        raise ArtifactError(str(path), f"{end} bytes of tensors", got, "Get the file again.")
