"""What tells one set of weights from another."""

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of all parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
