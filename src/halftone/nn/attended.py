"""Attention with the norm before it and the sum after it: one norm writes the codes of q, k and v, the last product adds the input.

Keys and values of a text are made once and hold for all the calls that bring the same numbers.
"""

from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import nn

from halftone.kernels import Grid, TakesCodes
from halftone.kernels.input_codes import encode
from halftone.kernels.native import loops
from halftone.nn.attention import QuantizedAttention
from halftone.nn.fusion import coded, idle, product


def attended(
    attn: Any, norm: Any, x: torch.Tensor, context: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return ``x + attn(norm(x), context)`` for tokens ``x`` ``[N, L, C]``; the way of diffusers' block where no other is open.

    Args:
        attn: diffusers' ``Attention``.
        context: ``[N, T, D]``; None attends to ``norm(x)`` itself.
    """
    ways = _Ways.of(attn, norm, x, context) if mask is None else None
    if ways is None:
        return attn(norm(x), encoder_hidden_states=context, attention_mask=mask) + x
    if context is None:
        q, k, v = _projected((ways.query, ways.key, ways.value), norm, x)
    else:
        (q,) = _projected((ways.query,), norm, x)
        k, v = _keys_and_values(attn, ways, context, x.dtype)
    mixed = attn.processor.mix(attn, q, k, v)
    return product(ways.last, encode(mixed, ways.last.grid), x.dtype, added=x)


def _projected(calls: tuple[TakesCodes, ...], norm: nn.LayerNorm, x: torch.Tensor) -> list[torch.Tensor]:
    """Return what each of ``calls`` makes of ``norm(x)``, whose codes are written once for all that read them on one grid."""
    known: dict[Grid, torch.Tensor] = {}
    for call in calls:
        if call.grid not in known:
            codes = loops.normalise_rows(x, norm, call.grid)
            known[call.grid] = encode(norm(x), call.grid) if codes is None else codes
    return [call.from_codes(known[call.grid], x.dtype) for call in calls]


@dataclass(frozen=True)
class _Ways:
    """The calls of the four projections, which take codes."""

    query: TakesCodes
    key: TakesCodes
    value: TakesCodes
    last: TakesCodes

    @classmethod
    def of(cls, attn: Any, norm: nn.Module, x: torch.Tensor, context: Any) -> "_Ways | None":
        """Return them, or None where something else may be between them, or somebody watches."""
        processor = getattr(attn, "processor", None)
        if not isinstance(processor, QuantizedAttention) or type(norm) is not nn.LayerNorm or not _plain(attn):
            return None
        last, dropout = attn.to_out
        if not idle(attn, norm, attn.to_out, dropout) or type(dropout) is not nn.Dropout:
            return None
        calls = [coded(layer) for layer in (attn.to_q, attn.to_k, attn.to_v, last)]
        if any(call is None for call in calls):
            return None
        ways = cls(*calls)  # type: ignore[arg-type] # none of them is None
        text = context is None or (type(context) is torch.Tensor and context.numel() > 0 and not attn.norm_cross)
        return ways if text and x.numel() > 0 and processor.serves(attn) else None


def _plain(attn: Any) -> bool:
    """Whether ``attn`` is projections and a softmax, and nothing else."""
    extras = (attn.spatial_norm, attn.group_norm)
    plain = not attn.residual_connection and attn.rescale_output_factor == 1.0
    return plain and all(extra is None for extra in extras) and len(attn.to_out) == 2


@dataclass(frozen=True)
class _Held:
    """Keys and values of a text.

    Attributes:
        text: what they were made of, a copy: whoever writes on the tensor itself does not change it.
        calls: by which calls; they hold weights, and are not kept alive for this.
    """

    text: torch.Tensor
    calls: tuple[ReferenceType[TakesCodes], ReferenceType[TakesCodes]]
    found: tuple[torch.Tensor, torch.Tensor]

    # By attention, outside of it: neither a copy nor a pickle of the model takes them along. Two texts, the latest first: guidance
    # may call once for each.
    of: ClassVar[WeakKeyDictionary[nn.Module, tuple["_Held", ...]]] = WeakKeyDictionary()
    # The text that was copied last, while somebody holds it: all attentions of a network read one.
    latest: ClassVar[ReferenceType[torch.Tensor] | None] = None

    def hold(self, text: torch.Tensor, calls: tuple[TakesCodes, TakesCodes], dtype: torch.dtype) -> bool:
        """Return whether they are those of ``text`` by ``calls``."""
        same = all(mine() is call for mine, call in zip(self.calls, calls, strict=True))
        return same and dtype == self.found[0].dtype and _equal(text, self.text)

    @classmethod
    def copied(cls, text: torch.Tensor) -> torch.Tensor:
        """Return a copy of ``text``, the one that another attention holds if there is one."""
        known = cls.latest() if cls.latest is not None else None
        if known is None or not _equal(text, known):
            known = text.detach().clone()
            cls.latest = ref(known)
        return known


def _equal(text: torch.Tensor, other: torch.Tensor) -> bool:
    return text.dtype == other.dtype and torch.equal(text, other)


def _keys_and_values(
    attn: nn.Module, ways: _Ways, context: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    calls, known = (ways.key, ways.value), _Held.of.get(attn, ())
    for held in known:
        if held.hold(context, calls, dtype):
            return held.found
    codes = encode(context, ways.key.grid)
    others = codes if ways.key.grid == ways.value.grid else encode(context, ways.value.grid)
    found = ways.key.from_codes(codes, dtype), ways.value.from_codes(others, dtype)
    _Held.of[attn] = (_Held(_Held.copied(context), (ref(ways.key), ref(ways.value)), found), *known[:1])
    return found
