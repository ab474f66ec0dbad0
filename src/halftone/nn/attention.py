"""Attention whose matrix-multiplication operands are activation sites: ``q``, ``k``, ``v`` and ``probs``.

PyTorch has no batched int8 matrix product on CPU, so these four are simulated on every engine (quantized, then multiplied in
float); ``inspect`` says so.
"""

from typing import Any

import torch
from torch import nn

from halftone.nn.sites import SiteOwner
from halftone.quant import QuantSpec

OPERANDS = ("q", "k", "v", "probs")


class AttentionOperands(SiteOwner):
    """The four operand sites of one attention layer, kept as its child ``operands`` so that their scales travel with it."""

    def __init__(self, specs: dict[str, QuantSpec]) -> None:
        super().__init__()
        self._init_sites()
        self.site_specs = dict(specs)

    def allocate(self) -> None:
        """Give every site empty buffers of the right shape, for a loader to fill."""
        for site, spec in self.site_specs.items():
            self.register_buffer(f"{site}_scale", torch.empty(1, dtype=torch.float32))
            if spec.zero == "asymmetric":
                self.register_buffer(f"{site}_zero_point", torch.empty(1, dtype=spec.number_format.code_dtype))

    @property
    def active(self) -> bool:
        """True once a site is quantized or tapped; until then the fused float attention may run."""
        return bool(self.taps) or any(map(self.is_quantized, self.site_specs))

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in exact.items():
            moved = self._buffers[name]
            if before is not None and moved is not None and moved.dtype != before.dtype:
                self._buffers[name] = before.to(moved.device)
        return self


class QuantizedAttention:
    """Attention processor for diffusers' ``Attention``; same arithmetic as its default one, plus the four sites.

    q and k are quantized after the head split and before the scaling by ``d ** -0.5`` (as Q-Diffusion's code does).
    """

    def __init__(self, plain: Any) -> None:
        self.plain = plain  # the processor in place before; runs while no site is active

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return what ``attn`` computes; ``hidden_states`` ``[N, L, C]`` or ``[N, C, H, W]``."""
        sites: AttentionOperands = attn.operands
        if not sites.active:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], context.shape[0])
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            context = hidden_states
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        mixed = self._mix(attn, sites, attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context), mask)
        mixed = attn.to_out[1](attn.to_out[0](mixed))
        if len(shape) == 4:
            mixed = mixed.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            mixed = mixed + residual
        return mixed / attn.rescale_output_factor

    @staticmethod
    def _mix(
        attn: Any,
        sites: AttentionOperands,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v))  # [N, heads, L, d]
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        q, k, v = sites.pass_through("q", q), sites.pass_through("k", k), sites.pass_through("v", v)
        scores = (q @ k.transpose(-1, -2)) * attn.scale
        if mask is not None:
            scores = scores + mask.unflatten(0, (-1, attn.heads))
        probs = sites.pass_through("probs", scores.float().softmax(-1).to(v.dtype))
        return (probs @ v).transpose(1, 2).flatten(2)


def can_hold_operands(module: nn.Module) -> bool:
    """Return whether ``module`` is a diffusers ``Attention`` with a processor this one reproduces."""
    processor = getattr(module, "processor", None)
    return type(module).__name__ == "Attention" and type(processor).__name__ in (
        "AttnProcessor",
        "AttnProcessor2_0",
        "QuantizedAttention",
    )


def install_operands(module: nn.Module, specs: dict[str, QuantSpec]) -> AttentionOperands:
    """Give a diffusers ``Attention`` its operand sites (none quantized yet) and return them."""
    operands = AttentionOperands(specs)
    module.operands = operands
    if not isinstance(module.processor, QuantizedAttention):
        module.set_processor(QuantizedAttention(module.processor))  # type: ignore[operator]
    return operands
