"""oneDNN's quantized operators as PyTorch ships them: which there are, and the layouts of their weights."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# Shapes remembered for each layer.
_SHAPES = 32

_NEEDED = (
    ("qconv_prepack", "default"),
    ("qconv2d_pointwise", "default"),
    ("qconv2d_pointwise", "binary"),
    ("qlinear_prepack", "default"),
    ("qlinear_pointwise", "default"),
    ("qlinear_pointwise", "binary"),
)


@cache
def operator(name: str, overload: str = "default") -> Any:
    """Return an operator of the namespace ``onednn``.

    Raises:
        AttributeError: this PyTorch has none of that name.
    """
    return getattr(getattr(torch.ops.onednn, name), overload)


@cache
def missing() -> str | None:
    """Return what of PyTorch's oneDNN is absent here, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch is built without oneDNN"
    for name, overload in _NEEDED:
        try:
            operator(name, overload)
        except AttributeError:
            return f"PyTorch {torch.__version__} has no operator onednn::{name}.{overload}"
    if not hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md"):
        return f"PyTorch {torch.__version__} has no operator mkldnn::_get_mkldnn_serialized_md"
    return None


@cache
def bfloat16_output() -> bool:
    """Return whether the operators can write bfloat16 on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class ConvWeight:
    """An int8 convolution weight in the layouts that the shapes met so far are computed with.

    The operators reorder a weight in any other layout at every call: 10 ms for a 3x3 convolution of 384 to 192 channels
    that itself takes 0.1 ms. One layout serves most shapes, and only layouts in use are kept.
    """

    def __init__(self, pack: Callable[[torch.Tensor, list[int] | None], torch.Tensor], weight: torch.Tensor) -> None:
        self._pack = pack
        self._newest = weight  # plain until the first shape is met
        self._by_shape: dict[torch.Size, torch.Tensor] = {}

    def fit(self, shape: torch.Size) -> torch.Tensor:
        """Return the weight packed for codes of ``shape``."""
        found = self._by_shape.get(shape)
        return self._add(shape) if found is None else found

    def _add(self, shape: torch.Size) -> torch.Tensor:
        # Unpacked again rather than kept in plain form: that would be another byte for each weight.
        plain = self._newest.to_dense() if self._newest.is_mkldnn else self._newest
        packed = self._pack(plain, list(shape))
        for known in self._by_shape.values():
            if _layout(known) == _layout(packed):
                packed = known
                break
        if len(self._by_shape) >= _SHAPES:
            self._by_shape.clear()
        self._by_shape[shape] = self._newest = packed
        return packed


def _layout(packed: torch.Tensor) -> bytes:
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())
