"""The operator that stands for a prepared integer product in the graphs of ``torch.compile``.

Inductor takes the weights of oneDNN's operators for constants of its graph and fails on weights that are packed already;
operators that it does not know, it calls as they are. This one names the product by a number: packed weights are opaque to a
graph, and which layout they need is known when it runs.

The result depends on the arguments only, its shape too: compiled graphs are kept on disk by their text.
"""

from collections.abc import Iterable
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import torch


class Product(Protocol):
    """What a prepared call does with its codes."""

    def multiplied(self, codes: Iterable[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return the output, ``dtype``, for the codes of each part of the input; writes on none of them."""


# Whoever made a product owns it: graphs hold numbers, and the entry goes with the product.
_PRODUCTS: WeakValueDictionary[int, Product] = WeakValueDictionary()
_NUMBERS = count()

torch.library.define(
    "halftone::product", "(Tensor[] codes, SymInt number, SymInt[] shape, ScalarType dtype, bool image) -> Tensor"
)


def enter(product: Product) -> int:
    """Return the number of ``product`` in this process, valid as long as it lives."""
    number = next(_NUMBERS)
    _PRODUCTS[number] = product
    return number


def product(
    codes: list[torch.Tensor], number: int, shape: tuple[int, ...], dtype: torch.dtype, image: bool
) -> torch.Tensor:
    """Return what the product of that number makes of ``codes``.

    Args:
        shape: of the output.
        image: whether the output's channels are last in memory.
    """
    found: torch.Tensor = torch.ops.halftone.product(codes, number, shape, dtype, image)
    return found


@torch.library.impl("halftone::product", "CPU")
def _computed(
    codes: list[torch.Tensor], number: int, shape: list[int], dtype: torch.dtype, image: bool
) -> torch.Tensor:
    return _PRODUCTS[number].multiplied(codes, dtype)


@torch.library.register_fake("halftone::product")
def _promised(
    codes: list[torch.Tensor], number: int, shape: list[int], dtype: torch.dtype, image: bool
) -> torch.Tensor:
    layout = torch.channels_last if image else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=codes[0].device, memory_format=layout)
