"""A residual block whose norms and activations write codes, where the convolution behind them takes codes."""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from halftone.kernels import Fuses
from halftone.kernels.native import loops
from halftone.nn.fusion import hooked, idle, product
from halftone.nn.layers import QuantizedLayer


class QuantizedResnetBlock2D(ResnetBlock2D):
    """diffusers' block with less traffic: norm, SiLU and quantization in one go over memory, sums in place.

    The same arithmetic up to rounding in float32, and the same modules: whatever is hooked, tapped, wrapped (an adapter), of
    another kind or on another device takes diffusers' own way. So does a compiler, which fuses norms, SiLU and codes itself.
    """

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the block's output ``[N, out, H, W]`` for ``[N, in, H, W]`` and the time embedding ``[N, temb]``.

        Autoencoders have no time: their blocks neither get nor embed one.
        """
        if (
            args
            or kwargs
            or (temb is None) != (self.time_emb_proj is None)
            or torch.compiler.is_compiling()
            or not self._plain()
            or (torch.is_grad_enabled() and input_tensor.requires_grad)
        ):
            return super().forward(input_tensor, temb, *args, **kwargs)
        shift = None
        if temb is not None and self._shift_first():
            shift = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
        hidden = _normalised(self.norm1, self.nonlinearity, self.conv1, input_tensor, shift=shift)
        if hidden is None and shift is None:
            return super().forward(input_tensor, temb)
        if hidden is None:  # what is called once already is not called again
            assert shift is not None
            hidden = self.conv1(self.nonlinearity(self.norm1(input_tensor))) + shift[:, :, None, None]
        elif temb is not None and shift is None:
            shift = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
            # In place: the convolution has just made it.
            hidden = hidden.add_(shift[:, :, None, None])
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        total = _normalised(self.norm2, self.nonlinearity, self.conv2, hidden, added=shortcut)
        if total is None:
            # Perhaps an adapter, whose output is its own and not to be written on.
            total = shortcut + self.conv2(self.nonlinearity(self.norm2(hidden)))
        return total if self.output_scale_factor == 1.0 else total / self.output_scale_factor

    def _shift_first(self) -> bool:
        """Whether the convolution's kernel adds the time embedding: nothing may then be called twice."""
        plain = idle(self.norm1, self.nonlinearity) and isinstance(self.conv1, QuantizedLayer)
        return plain and isinstance(self.conv1.prepared_for_codes(), Fuses)

    def _plain(self) -> bool:
        """Whether nothing stands between the norms, the activation and the convolutions."""
        added = self.time_embedding_norm in ("default", "group")  # as autoencoders call having none
        return added and self.upsample is None and self.downsample is None and not self.training


def _normalised(
    norm: nn.Module,
    activation: nn.Module,
    layer: nn.Module,
    x: torch.Tensor,
    added: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return ``layer(activation(norm(x)))`` by way of codes, plus what is to be added, or None where that way is not open."""
    if type(norm) is not nn.GroupNorm or type(activation) is not nn.SiLU or not isinstance(layer, QuantizedLayer):
        return None
    if hooked(norm) or hooked(activation):
        return None
    call = layer.prepared_for_codes()
    codes = None if call is None else loops.normalise(x.detach(), norm, True, call.grid)
    if call is None or codes is None:
        return None
    return product(call, codes, x.dtype, added, shift)
