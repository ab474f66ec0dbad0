"""Tiny denoisers, quantized by nearest rounding with exact numbers, so that nothing depends on a random generator."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DConditionModel, UNet2DModel
from tests.tiny import pipeline, tiny_conditional_unet, tiny_unet
from torch import nn

from halftone.artifact import attach, register, save_pipeline
from halftone.formats import Affine, quantize
from halftone.formats.segments import along_weight
from halftone.models.surgery import replace_layers
from halftone.nn import Scheme
from halftone.nn.attention import can_hold_operands, install_operands
from halftone.nn.layers import QuantizedLayer
from halftone.quant import QuantSpec

WEIGHT = QuantSpec("uint4", "channel")
INPUT = QuantSpec("uint8")
PROBS = QuantSpec("uint8", zero="none")
RECIPE = {"name": "nearest", "steps": []}
WIDTHS = (16, 32)  # of the golden file's denoiser
TRAJECTORY = {"scheduler": "DDIMScheduler", "steps": 10}

register()


def range_of(low: float, high: float, spec: QuantSpec, count: int = 1) -> Affine:
    return spec.affine(torch.full([count], low), torch.full([count], high))


def hold(layer: QuantizedLayer, scheme: Scheme, low: float = -3.0, high: float = 5.0) -> None:
    """Round the layer's weight to nearest under ``scheme``; the input range is ``[low, high]``."""
    weight, segments = layer.weight.detach(), scheme.segments or (layer.in_width,)
    cut = list(segments) if scheme.segments else [weight.shape[1]]
    parts = [part.flatten(1) for part in weight.split(cut, dim=1)]
    lows = torch.stack([part.amin(1) for part in parts])
    affine = scheme.weight.affine(lows, torch.stack([part.amax(1) for part in parts]))
    codes = quantize(weight, along_weight(affine, tuple(cut), weight.ndim), scheme.weight.number_format)
    layer.hold(codes, affine, scheme)
    if scheme.input is not None:
        layer.set_site_affine("input", range_of(low, high, scheme.input, len(cut)))


def quantize_denoiser(denoiser: nn.Module, keep: tuple[str, ...] = ("conv_in", "conv_out")) -> None:
    """Quantize all layers but ``keep``, shortcuts of the up path in two segments, and all attention operands."""
    chosen = (nn.Linear, nn.Conv2d)
    paths = [path for path, module in denoiser.named_modules() if isinstance(module, chosen) and path not in keep]
    for path, layer in replace_layers(denoiser, paths).items():
        split = "up_blocks" in path and path.endswith("conv_shortcut")
        segments = (layer.in_width - 16, 16) if split else ()
        hold(layer, Scheme(WEIGHT, INPUT, segments))
    for module in list(denoiser.modules()):
        if can_hold_operands(module):
            operands = install_operands(module, {"q": INPUT, "k": INPUT, "v": INPUT, "probs": PROBS})
            for site, spec in operands.site_specs.items():
                operands.set_site_affine(site, range_of(-2.0 if site != "probs" else 0.0, 1.0, spec))


def fill(denoiser: nn.Module) -> None:
    """Give every parameter numbers that are exact in binary and the same on every machine."""
    for number, parameter in enumerate(denoiser.parameters()):
        values = (torch.arange(parameter.numel()) * 7 + number) % 33
        parameter.data = ((values.float() - 16) / 64).view(parameter.shape)


def float_unet() -> UNet2DModel:
    unet = tiny_unet(block_out_channels=WIDTHS)
    fill(unet)
    return unet


def quantized_unet() -> UNet2DModel:
    unet = float_unet()
    quantize_denoiser(unet)
    attach(unet, RECIPE, TRAJECTORY, {"trials": []})
    return unet


@pytest.fixture
def plain_unet() -> UNet2DModel:
    """A float UNet."""
    return float_unet()


@pytest.fixture
def unet() -> UNet2DModel:
    """The same, quantized and attached."""
    return quantized_unet()


@pytest.fixture
def quantized() -> Callable[[nn.Module], None]:
    """Quantize a denoiser in place."""
    return quantize_denoiser


@pytest.fixture
def conditional_unet() -> UNet2DConditionModel:
    """A quantized UNet with cross-attention, which takes adapters through diffusers."""
    unet = tiny_conditional_unet(block_out_channels=WIDTHS)
    fill(unet)
    quantize_denoiser(unet)
    attach(unet, RECIPE)
    return unet


@pytest.fixture
def pipe(unet: UNet2DModel) -> DDIMPipeline:
    return pipeline(unet)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a pipeline; not to be changed."""
    return save_pipeline(pipeline(quantized_unet()), tmp_path_factory.mktemp("artifact") / "original")


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A pipeline folder."""
    return shutil.copytree(original, tmp_path / "saved")


@pytest.fixture
def call() -> Callable[[nn.Module], torch.Tensor]:
    """Run a denoiser on one fixed input."""
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    context = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))

    def run(denoiser: nn.Module) -> torch.Tensor:
        arguments = [sample, torch.tensor([5, 500])]
        if isinstance(denoiser, UNet2DConditionModel):
            arguments.append(context)
        with torch.no_grad():
            return denoiser(
                *[part.to(denoiser.dtype) if part.is_floating_point() else part for part in arguments]
            ).sample

    return run
