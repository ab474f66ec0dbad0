"""What tells one set of weights from another."""

import hashlib

import torch
from torch import nn

from halftone.models.precision import as_float


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of all parameters and buffers, sorted by name."""
    return _digest(module, exact=True)


def source_fingerprint(module: nn.Module) -> str:
    """Return the sha256 over names, shapes and values of all parameters and buffers, sorted by name.

    16-bit floats count as the float32 numbers they are, so that a model is known again in whichever dtype it is loaded, as long
    as that lost nothing.
    """
    return _digest(module, exact=False)


def _digest(module: nn.Module, exact: bool) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu()
        value = (value if exact else as_float(value)).contiguous()
        dtype = f"{value.dtype}:" if exact else ""
        digest.update(f"{name}:{dtype}{list(value.shape)};".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
