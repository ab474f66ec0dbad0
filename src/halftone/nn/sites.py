"""Activation sites: the named tensors of a module that may be quantized on their way through it."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from halftone.formats import Affine, fake_quantize
from halftone.formats.segments import along_input
from halftone.quant import QuantSpec

Tap = Callable[[torch.Tensor], torch.Tensor]


class SiteOwner(nn.Module):
    """Mixin of modules with activation sites.

    A site ``s`` has a :class:`QuantSpec` in ``site_specs`` (its format once it is quantized) and, when it is quantized,
    the buffers ``{s}_scale`` (float32 ``[S]``) and, where the zero mode is asymmetric, ``{s}_zero_point`` (uint8 ``[S]``,
    the zero point's code). ``taps[s]``, set only while calibrating, replaces the quantization: it sees the tensor and
    returns what flows on.
    """

    site_specs: dict[str, QuantSpec]
    site_segments: dict[str, tuple[int, ...]]
    taps: dict[str, Tap]

    def _init_sites(self) -> None:
        self.site_specs, self.site_segments, self.taps = {}, {}, {}

    def is_quantized(self, site: str) -> bool:
        """Return whether the site rounds what passes it. A static site does once it has its scale."""
        return getattr(self, f"{site}_scale", None) is not None

    def site_affine(self, site: str) -> Affine | None:
        """Return the site's affine ``[S]``, or None while it is float."""
        if not self.is_quantized(site):
            return None
        scale = getattr(self, f"{site}_scale")
        stored = getattr(self, f"{site}_zero_point", None)
        if stored is not None:
            return Affine(scale, self.site_specs[site].number_format.decode(stored))
        # Not stored where the spec fixes it.
        return Affine(scale, self.site_specs[site].affine(scale, scale).zero_point)

    def set_site_affine(self, site: str, affine: Affine | None) -> None:
        """Quantize the site with ``affine`` ``[S]`` from now on; None makes it float again."""
        for suffix in ("scale", "zero_point"):
            if f"{site}_{suffix}" in self._buffers:
                del self._buffers[f"{site}_{suffix}"]
        if affine is not None:
            self.register_buffer(f"{site}_scale", affine.scale.detach().float().clone())
            if self.site_specs[site].zero == "asymmetric":
                # As its code: the zero point of a signed format may be negative.
                zero_point = self.site_specs[site].number_format.encode(affine.zero_point.detach())
                self.register_buffer(f"{site}_zero_point", zero_point)
        self.refresh()

    def refresh(self) -> None:
        """Forget whatever was prepared from the numbers; called when they change."""

    def pass_through(self, site: str, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """Return ``x`` as it leaves the site: tapped, quantized, or unchanged. ``dim`` is the axis that segments cut.

        Tokens that the site's spec keeps are left out, and leave unchanged.
        """
        kept = self.site_specs[site].keep if site in self.site_specs else 0
        if kept:
            first, rest = x.tensor_split([kept], dim=-2)
            return torch.cat([first, self._through(site, rest, dim)], dim=-2)
        return self._through(site, x, dim)

    def _through(self, site: str, x: torch.Tensor, dim: int) -> torch.Tensor:
        if site in self.taps:
            return self.taps[site](x)
        affine = self.site_affine(site)
        if affine is None:
            return x
        segments = self.site_segments.get(site, (0,))
        return fake_quantize(x, along_input(affine, segments, x.ndim, dim), self.site_specs[site].number_format)


def sites(module: nn.Module) -> Iterator[tuple[str, SiteOwner, str]]:
    """Yield ``(module path, owner, site)`` for every activation site with a spec inside ``module``, in registration order."""
    for path, child in module.named_modules():
        if isinstance(child, SiteOwner):
            for site in child.site_specs:
                yield path, child, site
