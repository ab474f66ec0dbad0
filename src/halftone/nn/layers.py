"""Quantized layers: ordinary ``nn.Linear`` / ``nn.Conv2d`` until they are given codes.

They stay subclasses so that PEFT finds them, and can be constructed as float layers, which is how PEFT builds its adapters.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, Literal

import torch
from torch import nn

from halftone.formats import Affine, pack, packed_size, quantize, unpack
from halftone.formats.segments import along_weight
from halftone.foundation.errors import ConfigError
from halftone.kernels import Choice, HoldsCodes, Operands, Operation, Prepared, TakesCodes, choose
from halftone.kernels.library.reference import dequantized_weight
from halftone.kernels.machine import tell_simulated
from halftone.kernels.select import AUTO
from halftone.nn.sites import SiteOwner
from halftone.quant import QuantSpec
from halftone.quant.weights import weight_affine

# Held while codes move between a layer and its kernel: threads that call one model for the first time would take each other's away.
_CHANGING = RLock()


@dataclass(frozen=True)
class Scheme:
    """How a layer is quantized.

    Attributes:
        input: None for weight-only.
        segments: input-channel groups with scales of their own; ``()`` means one group.
    """

    weight: QuantSpec
    input: QuantSpec | None = None
    segments: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.weight.bits > 8:
            raise ConfigError(
                "weight format", "at most 8 bits", self.weight.format, "Wider formats are for activations."
            )
        if self.weight.keep:
            raise ConfigError("keep of a weight", "none: tokens are an activation's", str(self.weight.keep))


class QuantizedLayer(SiteOwner):
    """The part that linears and convolutions share.

    Two states. *Float* (``scheme`` is None): the plain layer. *Quantized*: ``weight`` holds packed codes, uint8
    ``[out, packed_size(in / groups * kernel)]``, of a convolution with two more axes of one, because PEFT tells
    convolutions by the axes of their weight; ``weight_scale`` float32 ``[S, out]``; ``weight_zero_point`` uint8
    ``[S, out]`` (codes of the zero points) when asymmetric; the site ``input`` has its own buffers.

    Where :attr:`weights` says so, the codes move into the kernel's own form when it is prepared, and ``weight`` is left without
    memory; whoever asks for codes, a state dict, a copy or another device gets them back from there.

    While calibrating, ``weight_trial`` (a callable that returns a float weight) and ``taps`` take the place of the stored numbers.
    """

    kind: str
    kept_input: torch.Tensor
    kept_output: torch.Tensor
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_scale: torch.Tensor
    channel_axis: int
    scheme: Scheme | None
    engine: str
    weights: Literal["ready", "packed"] | None
    weight_trial: Callable[[], torch.Tensor] | None

    def _init_quantized(self) -> None:
        self._init_sites()
        self.scheme, self.weight_trial, self.engine = None, None, "auto"
        self.weights = None
        self._moved = False
        self._prepared: Prepared | None = None
        self._choice: Choice | None = None

    # The shape of the layer.

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the unpacked weight."""
        raise NotImplementedError

    @property
    def in_width(self) -> int:
        """Input channels or features."""
        return self.weight_shape[1] * getattr(self, "groups", 1)

    @property
    def segments(self) -> tuple[int, ...]:
        return self.scheme.segments if self.scheme and self.scheme.segments else (self.in_width,)

    def operation(self) -> Operation:
        """Return what this quantized layer computes."""
        raise NotImplementedError

    def compute(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the float layer's output with ``weight`` in place of its own."""
        raise NotImplementedError

    # Its numbers.

    def allocate(self, scheme: Scheme) -> None:
        """Enter the quantized state with empty tensors of the right shapes, for a loader to fill."""
        device = self.weight.device
        out, *rest = self.weight_shape
        row = packed_size(torch.Size(rest).numel(), scheme.weight.bits)
        self._enter(scheme, torch.empty(out, row, dtype=torch.uint8, device=device))
        count = len(scheme.segments) or 1
        self.register_buffer("weight_scale", torch.empty(count, out, dtype=torch.float32, device=device))
        if scheme.weight.zero == "asymmetric":
            self.register_buffer("weight_zero_point", torch.empty(count, out, dtype=torch.uint8, device=device))
        if scheme.input is not None:
            self.register_buffer("input_scale", torch.empty(count, dtype=torch.float32, device=device))
            if scheme.input.zero == "asymmetric":
                self.register_buffer(
                    "input_zero_point", torch.empty(count, dtype=scheme.input.number_format.code_dtype, device=device)
                )

    def hold(self, codes: torch.Tensor, affine: Affine, scheme: Scheme) -> None:
        """Enter the quantized state: ``codes`` uint8 of :attr:`weight_shape`, weight ``affine`` ``[S, out]``.

        Where the scheme says of the input what it said before, the site ``input`` keeps its numbers. Otherwise it is float until
        :meth:`set_site_affine` gives it a scale.
        """
        same = self.scheme and (self.scheme.input, self.scheme.segments) == (scheme.input, scheme.segments)
        site = self.site_affine("input") if same else None
        self._enter(scheme, pack(codes.flatten(1), scheme.weight.bits))
        self.set_site_affine("input", site)
        self.register_buffer("weight_scale", affine.scale.detach().float().clone())
        if scheme.weight.zero == "asymmetric":
            # As its code: the zero point of a signed format may be negative.
            code = scheme.weight.number_format.encode(affine.zero_point.detach())
            self.register_buffer("weight_zero_point", code)

    def hold_nearest(self, weight: torch.Tensor, scheme: Scheme, estimator: str | Mapping[str, Any]) -> None:
        """Enter the quantized state with ``weight`` rounded to nearest, its ranges from a range estimator."""
        affine = weight_affine(weight, scheme.segments or (weight.shape[1],), scheme.weight, estimator)
        broadcast = along_weight(affine, scheme.segments or (weight.shape[1],), weight.ndim)
        self.hold(quantize(weight, broadcast, scheme.weight.number_format), affine, scheme)

    def _enter(self, scheme: Scheme, packed: torch.Tensor) -> None:
        for name in ("weight_scale", "weight_zero_point", "input_scale", "input_zero_point"):
            self._buffers.pop(name, None)
        axes = [1] * (len(self.weight_shape) - 2)
        self.weight = nn.Parameter(packed.view(*packed.shape, *axes), requires_grad=False)
        self.scheme = scheme
        self.site_specs = {"input": scheme.input} if scheme.input else {}
        self.site_segments = {"input": self.segments}
        self.refresh()

    def release(self, weight: torch.Tensor) -> None:
        """Return to the float state with ``weight``."""
        for name in ("weight_scale", "weight_zero_point", "input_scale", "input_zero_point"):
            self._buffers.pop(name, None)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scheme, self.site_specs, self.site_segments = None, {}, {}
        self.refresh()

    def weight_affine(self) -> Affine:
        """Return the weight's affine ``[S, out]``."""
        assert self.scheme is not None
        scale = self.weight_scale
        stored = getattr(self, "weight_zero_point", None)
        if stored is not None:
            return Affine(scale, self.scheme.weight.number_format.decode(stored))
        # Not stored where the spec fixes it.
        return Affine(scale, self.scheme.weight.affine(scale, scale).zero_point)

    def codes(self) -> torch.Tensor:
        """Return the weight's codes, uint8 of :attr:`weight_shape`."""
        assert self.scheme is not None
        with _CHANGING:
            if self._moved:
                assert isinstance(self._prepared, HoldsCodes)
                return self._prepared.codes().view(self.weight_shape)
        count = torch.Size(self.weight_shape[1:]).numel()
        return unpack(self.weight.data.flatten(1), self.scheme.weight.bits, count).view(self.weight_shape)

    def operands(self) -> Operands:
        """Return the numbers a kernel needs."""
        bias = None if self.bias is None else self.bias.detach()
        return Operands(self.codes(), self.weight_affine(), self.site_affine("input"), bias, self.weights or "ready")

    def dequantized_weight(self) -> torch.Tensor:
        """Return the float32 weight that the codes stand for."""
        return dequantized_weight(self.operation(), self.operands())

    # Running.

    def refresh(self) -> None:
        with _CHANGING:
            self._bring_back()
            self._prepared = self._choice = None

    def _packed(self) -> torch.Tensor:
        """Return the packed codes, shaped as ``weight``, wherever they are."""
        assert self.scheme is not None
        return pack(self.codes().flatten(1), self.scheme.weight.bits).view(self.weight.shape)

    def _move(self) -> None:
        """Leave the codes to the kernel alone, if it can give them back."""
        if self.weights is not None and isinstance(self._prepared, HoldsCodes) and not self._moved:
            # One byte, seen as many: whoever looks at shape, dtype or device sees what was there.
            hollow = torch.zeros(1, dtype=torch.uint8, device=self.weight.device).expand(self.weight.shape)
            self.weight, self._moved = nn.Parameter(hollow, requires_grad=False), True

    def _bring_back(self) -> None:
        if self._moved:
            packed = self._packed()
            self.weight, self._moved = nn.Parameter(packed, requires_grad=False), False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._moved:
            destination[prefix + "weight"] = self._packed()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.refresh()  # what was prepared is of the old numbers
        super()._load_from_state_dict(*args, **kwargs)

    def choice(self) -> Choice:
        """Return the kernel chosen for this layer under :attr:`engine`, with the refusals of faster ones."""
        if self._choice is None:
            self._choice = choose(self.engine, self._computed(), self.operands())
        return self._choice

    def _computed(self) -> Operation:
        """Return the operation as it is computed now: on a float input until the site has a scale."""
        operation = self.operation()
        return operation if self.is_quantized("input") else replace(operation, input_format=None)

    @property
    def calibrating(self) -> bool:
        """Whether something is on trial in place of the stored numbers."""
        return self.weight_trial is not None or bool(self.taps)

    def rounded_part(self, x: torch.Tensor) -> torch.Tensor:
        """Return what of the layer's input ``x`` its codes and ranges are for: all but kept tokens."""
        return x

    def forward(self, x: torch.Tensor, *unused: Any, **also_unused: Any) -> torch.Tensor:
        if self.calibrating:
            return self._calibrating(x)
        if self.scheme is None:
            return super().forward(x)
        return self._run(x)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the chosen kernel computes of the rounded part of the input."""
        return self._for_once(x) if self._visits() else self.prepared()(x)

    def _visits(self) -> bool:
        """Return whether accelerate brings the layer's numbers to the device for each call alone, and takes them away again."""
        hook = getattr(self, "_hf_hook", None)
        return hook is not None and any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))

    def _for_once(self, x: torch.Tensor) -> torch.Tensor:
        """Run and forget what was prepared: kept, it would fill the device that offloading is to spare."""
        with _CHANGING:
            # Unless nobody has brought the codes, which the kernel alone has then.
            if not self._moved or self.weight.untyped_storage().nbytes() >= self.weight.nbytes:
                self._prepared, self._choice, self._moved = None, None, False
        try:
            return self.prepared()(x)
        finally:
            if not self._moved:
                self._prepared = self._choice = None

    def prepared(self) -> Prepared:
        """Return the chosen kernel's call for this layer."""
        if torch.compiler.is_compiling() or self._prepared is None:
            self._prepare()
        assert self._prepared is not None
        return self._prepared

    # A compiler runs this while it traces, before it has looked at what is prepared: it must find the call, not its making.
    @torch.compiler.assume_constant_result
    def _prepare(self) -> None:
        with _CHANGING:
            if self._prepared is not None:
                return
            operation, operands = self._computed(), self.operands()
            if self._choice is None:
                self._choice = choose(self.engine, operation, operands)
            if self.engine == AUTO and self._choice.kernel.arithmetic == "simulated":
                tell_simulated(operands.codes.device.type)
            self._prepared = self._choice.kernel.prepare(operation, operands)
            if not self._visits():
                self._move()

    def prepared_for_codes(self) -> TakesCodes | None:
        """Return the call if it is all that the layer does with its input now, and takes codes; None otherwise."""
        hooked = self._forward_hooks or self._forward_pre_hooks or "forward" in self.__dict__
        if self.scheme is None or self.calibrating or hooked:
            return None
        call = self.prepared()
        return call if isinstance(call, TakesCodes) else None

    def _calibrating(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight_trial is not None:
            weight = self.weight_trial()
        elif self.scheme is None:
            weight = self.weight
        else:
            weight = self.dequantized_weight()
        return self.compute(self.pass_through("input", x, self.channel_axis), weight)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """Move, but never cast, the numbers of a quantized layer: ``.to(bfloat16)`` must not round scales or kept tokens."""
        with _CHANGING:
            self._bring_back()
            exact = {name: b for name, b in self._buffers.items() if b is not None and b.dtype == torch.float32}
            super()._apply(fn, recurse)
            for name, before in exact.items():
                moved = self._buffers[name]
                if moved is not None and moved.dtype != before.dtype:
                    self._buffers[name] = before.to(moved.device)
            self.refresh()
        return self

    def __getstate__(self) -> dict:
        # Prepared calls hold opaque packed weights that neither pickle nor copy; they are made again on demand.
        with _CHANGING:
            state = {**self.__dict__, "_prepared": None, "_choice": None, "_moved": False}
            if self._moved:  # the copy gets codes; this layer's stay where they are
                weight = nn.Parameter(self._packed(), requires_grad=False)
                state["_parameters"] = {**self._parameters, "weight": weight}
        return state


class QuantLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc] # each base types its own weight
    """A linear layer ``[..., in] -> [..., out]`` that may hold codes.

    Where the spec of its input keeps leading tokens, which are the same whatever the prompt, their outputs are stored:
    ``kept_output`` float32 ``[keep, out]``, made with the float weight, takes their place. ``kept_input`` ``[keep, in]`` is what
    they were made of.
    """

    kind, channel_axis = "linear", -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._init_quantized()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)

    def operation(self) -> Operation:
        assert self.scheme is not None
        input_format = self.scheme.input.number_format if self.scheme.input else None
        return Operation(
            "linear",
            self.in_features,
            self.out_features,
            self.segments,
            self.scheme.weight.number_format,
            input_format,
            input_scale=self.scheme.input.scale if self.scheme.input else "static",
        )

    @property
    def kept(self) -> int:
        """How many leading tokens have stored outputs."""
        rows = getattr(self, "kept_output", None)
        return 0 if rows is None else len(rows)

    def keep_tokens(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Store the outputs ``[keep, out]`` of the leading tokens ``inputs`` ``[keep, in]``."""
        self.register_buffer("kept_input", inputs.detach().float().clone())
        self.register_buffer("kept_output", outputs.detach().float().clone())

    def allocate(self, scheme: Scheme) -> None:
        super().allocate(scheme)
        keep = scheme.input.keep if scheme.input else 0
        if keep:
            for name, width in (("kept_input", self.in_features), ("kept_output", self.out_features)):
                self.register_buffer(name, torch.empty(keep, width, dtype=torch.float32, device=self.weight.device))

    def release(self, weight: torch.Tensor) -> None:
        for name in ("kept_input", "kept_output"):
            self._buffers.pop(name, None)
        super().release(weight)

    def rounded_part(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., self.kept :, :] if self.kept else x

    def prepared_for_codes(self) -> TakesCodes | None:
        # Codes say nothing of the tokens that are kept.
        return None if self.kept else super().prepared_for_codes()

    # Both parents have one.
    def forward(self, x: torch.Tensor, *unused: Any, **also_unused: Any) -> torch.Tensor:  # type: ignore[override]
        if not self.kept or self.scheme is None:
            return super().forward(x)
        out = self._calibrating(x)[..., self.kept :, :] if self.calibrating else self._run(self.rounded_part(x))
        first = self.kept_output.to(out.dtype).expand(*out.shape[:-2], -1, -1)
        return torch.cat([first, out], dim=-2)

    def compute(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, weight.to(x.dtype), self.bias)


class QuantConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc]
    """A convolution ``[N, in, H, W] -> [N, out, H', W']`` that may hold codes."""

    kind, channel_axis = "conv2d", 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._init_quantized()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def operation(self) -> Operation:
        assert self.scheme is not None
        return Operation(
            kind="conv2d",
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            segments=self.segments,
            weight_format=self.scheme.weight.number_format,
            input_format=self.scheme.input.number_format if self.scheme.input else None,
            kernel_size=_pair(self.kernel_size),
            stride=_pair(self.stride),
            padding=self.padding if isinstance(self.padding, str) else _pair(self.padding),
            dilation=_pair(self.dilation),
            groups=self.groups,
            padding_mode=self.padding_mode,
            input_scale=self.scheme.input.scale if self.scheme.input else "static",
        )

    def compute(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, weight.to(x.dtype), self.bias)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    height, width = value
    return height, width


def quantized_layers(module: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Yield ``(path, layer)`` for each layer that holds codes, in registration order."""
    for path, child in module.named_modules():
        if isinstance(child, QuantizedLayer) and child.scheme is not None:
            yield path, child
