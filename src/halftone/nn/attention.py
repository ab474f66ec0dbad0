"""Attention whose matrix-multiplication operands are activation sites: ``q``, ``k``, ``v`` and ``probs``.

A kernel of ``kernels/attentions`` multiplies their codes, chosen like those of layers. What it does not serve (calls with a mask,
sites that are tapped, attentions that it refuses) is simulated: quantized, then multiplied in float. ``inspect`` says which.

Attention without quantized operands stays float. In bfloat16 it runs on the native loops if a quantized layer projects its queries,
which is how it has an engine; their result is as exact as PyTorch's.
"""

from typing import Any

import torch
from torch import nn

from halftone.kernels import Attend, Attention, AttentionChoice, Operand, choose_attention
from halftone.kernels.attention_contract import OPERANDS as OPERANDS
from halftone.kernels.attentions.reference import attend
from halftone.kernels.native.attention import attend_bfloat16, why_none
from halftone.kernels.select import AUTO
from halftone.nn.sites import SiteOwner
from halftone.quant import QuantSpec

_FUSED = "AttnProcessor2_0"  # diffusers' processor that computes what the native loops do
_NATIVE_ENGINES = (AUTO, "torch")


class AttentionOperands(SiteOwner):
    """The four operand sites of one attention layer, kept as its child ``operands`` so that their scales travel with it."""

    def __init__(self, specs: dict[str, QuantSpec]) -> None:
        super().__init__()
        self._init_sites()
        self.site_specs = dict(specs)
        self.engine = AUTO
        self.attention_scale = 1.0  # what the attention multiplies its scores with; set where these are installed
        self.refresh()

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

    def refresh(self) -> None:
        self._choice: AttentionChoice | None = None
        self._prepared: Attend | None = None

    def attention(self) -> Attention:
        """Return what is computed between the projections, as kernels are told it."""
        operands = {}
        for site, spec in self.site_specs.items():
            affine = self.site_affine(site)
            if affine is not None:
                operands[site] = Operand(spec.number_format, affine, spec.keep)
        return Attention(self.attention_scale, operands)

    def choice(self) -> AttentionChoice:
        """Return the kernel chosen under :attr:`engine`, with the refusals of faster ones."""
        if self._choice is None:
            self._choice = choose_attention(self.engine, self.attention())
        return self._choice

    def prepared(self) -> Attend | None:
        """Return the chosen kernel's call, or None where the sites do its work: for the reference, and while they are tapped."""
        if self.taps:
            return None
        if torch.compiler.is_compiling() or self._prepared is None:
            self._prepare()
        return None if self._choice is None or self._choice.name == "reference" else self._prepared

    # A compiler runs this while it traces; see QuantizedLayer.
    @torch.compiler.assume_constant_result
    def _prepare(self) -> None:
        if self._prepared is None:
            self._prepared = self.choice().kernel.prepare(self.attention())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in exact.items():
            moved = self._buffers[name]
            if before is not None and moved is not None and moved.dtype != before.dtype:
                self._buffers[name] = before.to(moved.device)
        self.refresh()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # What is prepared belongs to a process.
        return {**self.__dict__, "_choice": None, "_prepared": None}


class QuantizedAttention:
    """Attention processor for diffusers' ``Attention``; same arithmetic as its default one, plus the four sites."""

    def __init__(self, plain: Any) -> None:
        self.plain = (
            plain  # the processor in place before; runs while no site is active and the native loops do not serve
        )

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
        sites = _active(attn)
        if sites is None and not (attention_mask is None and self._native(attn, hidden_states)):
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
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        mixed = self.mix(attn, q, k, v, mask)
        mixed = attn.to_out[1](attn.to_out[0](mixed))
        if len(shape) == 4:
            mixed = mixed.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            mixed = mixed + residual
        return mixed if attn.rescale_output_factor == 1.0 else mixed / attn.rescale_output_factor

    def serves(self, attn: Any) -> bool:
        """Return whether :meth:`mix` computes what ``attn`` does between its projections, without a mask."""
        return _active(attn) is not None or type(self.plain).__name__ == _FUSED

    def _native(self, attn: Any, x: torch.Tensor) -> bool:
        """Whether the native loops compute what the plain processor does, of quantized projections that may use them."""
        # An adapter wraps the layer.
        engine = getattr(getattr(attn.to_q, "base_layer", attn.to_q), "engine", None)
        plain = type(self.plain).__name__ == _FUSED and attn.scale == (attn.to_q.out_features / attn.heads) ** -0.5
        eager = engine in _NATIVE_ENGINES and x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() > 0
        quiet = not (torch.is_grad_enabled() and x.requires_grad)
        return eager and plain and quiet and why_none("bfloat16") is None

    def mix(
        self, attn: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``[N, L, C]`` for the projections ``[N, tokens, C]``; without active sites there must be no mask."""
        sites, native = _active(attn), self._native(attn, q)
        q, k, v = (part.unflatten(-1, (attn.heads, -1)) for part in (q, k, v))  # [N, tokens, heads, d]
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        if sites is None and native:
            return attend_bfloat16(q, k, v, attn.scale).flatten(2)
        if sites is None:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        call = sites.prepared() if mask is None else None
        found = None if call is None else call(q, k, v)
        if found is None:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            mask = None if mask is None else mask.unflatten(0, (-1, attn.heads))
            found = attend(q, k, v, attn.scale, mask, sites.pass_through).transpose(1, 2)
        return found.flatten(2)


def _active(attn: Any) -> AttentionOperands | None:
    """Return the attention's sites, if one of them is quantized or tapped."""
    sites: AttentionOperands | None = getattr(attn, "operands", None)
    return sites if sites is not None and sites.active else None


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
    operands.attention_scale = float(module.scale)  # type: ignore[arg-type]
    module.operands = operands
    install_processor(module)
    return operands


def install_processor(module: nn.Module) -> None:
    """Let a diffusers ``Attention`` use the kernels of attention; what it computes stays what it was."""
    if not isinstance(module.processor, QuantizedAttention):
        module.set_processor(QuantizedAttention(module.processor))  # type: ignore[operator]
