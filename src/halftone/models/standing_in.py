"""Another function in place of a network's own, while a context lasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


@contextmanager
def standing_in(network: nn.Module, forward: Callable) -> Iterator[None]:
    """Let ``network`` answer with ``forward``; what was there before (accelerate puts one of its own there) is put back."""
    own = vars(network).get("forward")
    network.forward = forward
    try:
        yield
    finally:
        if own is None:
            del network.forward
        else:
            network.forward = own


def copied(said: Any) -> Any:
    """Return an answer again, in tensors of its own: a scheduler may change in place what it is given."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, said)
