"""Transformer blocks of a U-Net whose norms and gates write codes, and whose sums are made before an output is written.

The same arithmetic up to rounding in float32, and the same modules: whatever is hooked, tapped, wrapped (an adapter) or
of another kind takes diffusers' own way. So does a compiler.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from halftone.kernels import Fuses, TakesCodes
from halftone.kernels.input_codes import encode
from halftone.kernels.native import loops
from halftone.nn.attended import attended
from halftone.nn.fusion import coded, idle, product


class QuantizedTransformerBlock(BasicTransformerBlock):
    """diffusers' block in products: codes from the norms, codes from the gate, sums with the input before an output is written."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the block's output ``[N, L, C]`` for ``hidden_states`` ``[N, L, C]``; the arguments are diffusers'."""
        if not self._plain(hidden_states, cross_attention_kwargs):
            given = attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, cross_attention_kwargs
            return super().forward(hidden_states, *given, *args, **kwargs)
        context = encoder_hidden_states if self.only_cross_attention else None
        hidden = attended(self.attn1, self.norm1, hidden_states, context, attention_mask)
        if self.attn2 is not None:
            hidden = attended(self.attn2, self.norm2, hidden, encoder_hidden_states, encoder_attention_mask)
        return self._fed(hidden)

    def _fed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``hidden`` plus what the feed-forward makes of it."""
        ways = self._feed_forward()
        if ways is None:
            return self.ff(self.norm3(hidden)) + hidden
        first, second = ways
        codes = loops.normalise_rows(hidden, self.norm3, first.grid)
        codes = encode(self.norm3(hidden), first.grid) if codes is None else codes
        gated = first.gated(codes, second.grid)
        if gated is None:
            up, gate = first.from_codes(codes, hidden.dtype).chunk(2, dim=-1)
            gated = encode(up * nn.functional.gelu(gate), second.grid)
        return product(second, gated, hidden.dtype, added=hidden)

    def _plain(self, x: torch.Tensor, more: dict[str, Any] | None) -> bool:
        """Whether the forward is the three steps that it is in a U-Net, and nobody wants to see or to differentiate them."""
        kind = self.norm_type == "layer_norm" and self.pos_embed is None and self._chunk_size is None and not more
        quiet = (
            not self.training
            and not torch.compiler.is_compiling()
            and not (torch.is_grad_enabled() and x.requires_grad)
        )
        return kind and quiet and x.ndim == 3

    def _feed_forward(self) -> tuple[Fuses, TakesCodes] | None:
        """Return the calls of the two products, or None where something else may be between them."""
        ff = self.ff
        if type(ff) is not FeedForward or len(ff.net) != 3 or type(self.norm3) is not nn.LayerNorm:
            return None
        gate, dropout, last = ff.net
        if (
            type(gate) is not GEGLU
            or type(dropout) is not nn.Dropout
            or not idle(self.norm3, ff, gate, dropout, ff.net)
        ):
            return None
        first, second = coded(gate.proj), coded(last)
        return None if not isinstance(first, Fuses) or second is None else (first, second)


class QuantizedTransformer2DModel(Transformer2DModel):
    """diffusers' transformer on an image: codes from its norm, tokens without a copy, the sum in its last convolution."""

    def _operate_on_continuous_inputs(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, int]:
        call = coded(self.proj_in) if self._open(hidden_states) and idle(self.norm) else None
        if call is None or type(self.norm) is not nn.GroupNorm or self.use_linear_projection:
            return super()._operate_on_continuous_inputs(hidden_states)
        codes = loops.normalise(hidden_states.detach(), self.norm, False, call.grid)
        if codes is None:
            return super()._operate_on_continuous_inputs(hidden_states)
        found = call.from_codes(codes, hidden_states.dtype)
        width = found.shape[1]
        return found.permute(0, 2, 3, 1).reshape(found.shape[0], -1, width), width

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> torch.Tensor:
        call = coded(self.proj_out) if self._open(hidden_states) and not self.use_linear_projection else None
        if call is None:
            return super()._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
        # diffusers copies tokens into planes here; they are an image with its channels last as they lie.
        image = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        return product(call, encode(image, call.grid), hidden_states.dtype, added=residual)

    def _open(self, x: torch.Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and not self.training
            and not (torch.is_grad_enabled() and x.requires_grad)
        )
