"""How one tensor is quantized, and the scale that follows from a range."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from halftone.formats import AbstractFormat, Affine, parse
from halftone.foundation.build import UNSAID_BY_DEFAULT
from halftone.foundation.errors import ConfigError

ScaleSource = Literal["static", "dynamic", "per_step"]

# Scales below this would overflow their reciprocal in float32; a group of zeros or denormals gets it.
SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class QuantSpec:
    """Format, granularity and zero mode of one tensor.

    Attributes:
        format: name of a number format, e.g. ``uint4``.
        granularity: ``tensor`` (one scale) or ``channel`` (one for each output channel; weights only).
        zero: ``asymmetric`` (zero point from the range), ``symmetric`` (fixed at the grid's middle), or ``none`` (zero is code 0;
            for softmax outputs, which must represent 0 exactly and are never negative).
        scale: where the scale comes from: ``static`` (found once, stored), ``dynamic`` (from the tensor itself, each time) or
            ``per_step`` (a stored table over the timestep). Dynamic scales and tables are reserved words: not built yet.
        bins: rows of a table of scales over the timestep; reserved.
        keep: leading tokens of an activation ``[..., tokens, channels]`` that stay float, such as CLIP's begin-of-sentence token.
        group: input channels that share a scale, 0 for all of them (or for those of a segment); reserved.

    Raises:
        ConfigError: a format that cannot serve the zero mode, or a word that is reserved.
    """

    format: str = "uint8"
    granularity: Literal["tensor", "channel"] = "tensor"
    zero: Literal["asymmetric", "symmetric", "none"] = "asymmetric"
    scale: ScaleSource = field(default="static", metadata=UNSAID_BY_DEFAULT)
    keep: int = field(default=0, metadata=UNSAID_BY_DEFAULT)
    bins: int = field(default=1, metadata=UNSAID_BY_DEFAULT)
    group: int = field(default=0, metadata=UNSAID_BY_DEFAULT)

    def __post_init__(self) -> None:
        for name, built in (("scale", "static"), ("bins", 1), ("group", 0)):
            if getattr(self, name) != built:
                fix = "The word is reserved: files and kernels know it, but nothing computes it."
                raise ConfigError(f"{name} of a spec", f"{built}", f"{getattr(self, name)}, not built yet", fix)
        if self.keep < 0:
            raise ConfigError("keep of a spec", "a number of tokens", str(self.keep))
        # Once: the registry of formats looks at files, where no compiler can follow.
        object.__setattr__(self, "_number_format", parse(self.format))
        if not self.number_format.low <= 0 <= self.number_format.high:
            raise ConfigError(f"format '{self.format}'", "a grid that holds zero")
        if self.number_format.high - self._fixed_zero_point() <= 0:
            raise ConfigError(
                f"format '{self.format}'", f"a grid with a level above zero, for the zero mode {self.zero}"
            )

    @property
    def number_format(self) -> AbstractFormat:
        return self._number_format  # type: ignore[attr-defined]

    @property
    def bits(self) -> int:
        return self.number_format.bits

    def _fixed_zero_point(self) -> float:
        """Return the zero point that does not follow from a range (asymmetric: the lowest there may be)."""
        grid = self.number_format
        if self.zero == "symmetric":
            return grid.middle
        return grid.low if self.zero == "asymmetric" else 0.0

    def affine(self, low: torch.Tensor, high: torch.Tensor) -> Affine:
        """Return the affine map whose grid covers ``[low, high]`` (and zero); all tensors of one shape, float32.

        Zero is always inside the range, so that padding and pruned weights stay exact and the zero point fits the grid
        (the official code leaves it out of ``delta`` but not of the zero point, research 1.2; here both agree).
        """
        grid = self.number_format
        low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
        if self.zero == "symmetric":
            middle = self._fixed_zero_point()
            scale = torch.maximum(-low, high) / (grid.high - middle)
            scale = scale.clamp(min=SMALLEST_SCALE)
            return Affine(scale, torch.full_like(scale, middle))
        if self.zero == "none":
            below = low / grid.low if grid.low < 0 else torch.zeros_like(low)
            scale = torch.maximum(high / grid.high, below).clamp(min=SMALLEST_SCALE)
            return Affine(scale, torch.zeros_like(scale))
        # Divided before subtracting: the width of a huge range overflows float32.
        levels = grid.high - grid.low
        scale = torch.where((high - low).isinf(), high / levels - low / levels, (high - low) / levels)
        scale = scale.clamp(min=SMALLEST_SCALE)
        zero_point = grid.round(grid.low - low / scale)
        return Affine(scale, zero_point)
