"""A pipeline loaded in 16 bits is quantized in float32, and comes back in the dtype it had."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from tests.tiny import randomised, tiny_unet
from torch import nn

from halftone import quantize
from halftone.recipes import load


class Sampling(DiffusionPipeline):
    """What DDIM does, but for the picture at the end: NumPy has no bfloat16."""

    def __init__(self, unet: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, generator: list[torch.Generator], num_inference_steps: int = 3, output_type: str = "np"
    ) -> torch.Tensor:
        x = torch.cat([torch.randn(1, 1, 8, 8, generator=g) for g in generator]).to(self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
        return x.float()


def sampled(pipe: Sampling) -> torch.Tensor:
    return pipe([torch.Generator().manual_seed(i) for i in range(2)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_pipeline(shrunk: Callable[..., list[str]], tmp_path: Path, dtype: torch.dtype) -> None:
    unet = randomised(tiny_unet(), seed=7)
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype)
    pipe = Sampling(unet, DDIMScheduler())
    before, wanted = {name: value.clone() for name, value in unet.state_dict().items()}, sampled(pipe)

    overrides = shrunk(load("q-diffusion-w4a8"))
    result = quantize(pipe, "q-diffusion-w4a8", steps=3, budget="demo", overrides=overrides)
    assert result.report["trajectory"]["dtype"] == str(dtype).removeprefix("torch.")
    after = unet.state_dict()
    plain = {name for name in before if not name.endswith("weight") or f"{name}_scale" not in after}
    assert len(plain) > 20
    corrected = {name for name in plain if f"{name.removesuffix('bias')}weight_scale" in after}
    same = plain - corrected
    assert all(torch.equal(after[name], before[name]) for name in same), "what stayed float has changed"
    assert not all(torch.equal(after[name], before[name]) for name in corrected)
    assert {after[name].dtype for name in plain} == {dtype}
    assert {value.dtype for name, value in after.items() if name.endswith("_scale")} == {torch.float32}
    found = sampled(pipe)
    assert float(10 * torch.log10(wanted.square().mean() / (found - wanted).square().mean())) > 30

    unet.save_pretrained(tmp_path)
    again = UNet2DModel.from_pretrained(tmp_path, torch_dtype=dtype).eval()
    assert torch.equal(sampled(Sampling(again, DDIMScheduler())), found)
