"""One checksum over all tensors of a denoiser; a few lines compute it from the file alone (docs/artifact.md)."""

import hashlib
from collections.abc import Mapping

import torch

from halftone.foundation.errors import ArtifactError

# As safetensors writes them, so that the file alone is enough to compute the checksum.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensor_line(name: str, tensor: torch.Tensor) -> str:
    """Return one tensor's line: name, dtype, shape and the SHA-256 of its bytes, little-endian and row-major."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(flat.numpy().data).hexdigest()
    dtype = DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return f"{name} {dtype} [{','.join(map(str, tensor.shape))}] {digest}\n"


def combined(lines: Mapping[str, str]) -> str:
    """Return the checksum of tensors whose lines are given by name; their order does not matter."""
    ordered = "".join(lines[name] for name in sorted(lines))
    return "sha256:" + hashlib.sha256(ordered.encode()).hexdigest()


def check(model: str, lines: Mapping[str, str], expected: str) -> None:
    """Raise an ArtifactError unless the lines of the tensors of ``model`` have the checksum ``expected``."""
    found = combined(lines)
    if found != expected:
        fix = "The weights are damaged or belong to another config.json: get the files again."
        raise ArtifactError(f"weights of {model}", f"checksum {expected}", found, fix)


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return ``sha256:...`` over all ``tensors`` (a state dict)."""
    return combined({name: tensor_line(name, tensor) for name, tensor in tensors.items()})
