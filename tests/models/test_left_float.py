"""Nothing stays float in silence: weights without a role are listed, and so are denoisers beside the quantized one."""

import torch
from diffusers import DDIMPipeline, DDIMScheduler, WanTransformer3DModel
from tests.tiny import tiny_unet
from torch import nn

from halftone.models.denoiser import named_denoiser, other_denoisers
from halftone.models.left_float import LeftFloat, float_denoisers, without_role
from halftone.models.roles import architecture
from halftone.models.surgery import replace_layers
from halftone.nn import Scheme
from halftone.quant import QuantSpec


class TwoExperts(DDIMPipeline):
    """As Wan 2.2: a second denoiser takes over at the low noise levels."""

    _optional_components = ("unet_2",)

    def __init__(self, unet: nn.Module, scheduler: DDIMScheduler, unet_2: nn.Module | None = None) -> None:
        super().__init__(unet, scheduler)
        self.register_modules(unet_2=unet_2)


class Odd(nn.Module):
    """One of each: what has a role, what a kernel could be written for, and what has one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.placed = nn.Linear(4, 4)
        self.video = nn.Conv3d(2, 3, (1, 2, 2))
        self.sound = nn.Conv1d(2, 3, 3)
        self.up = nn.ConvTranspose2d(2, 3, 2, dtype=torch.bfloat16)
        self.labels = nn.Embedding(10, 4)
        self.attention = nn.MultiheadAttention(4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.positions = nn.Parameter(torch.zeros(1, 5, 4))
        self.counts = nn.Parameter(torch.zeros(2, 2, dtype=torch.int32), requires_grad=False)


def test_weights_without_a_role() -> None:
    found = without_role(Odd(), {"placed"})
    assert {each.path: (each.kind, each.shape) for each in found} == {
        "positions": ("Odd", (1, 5, 4)),
        "video.weight": ("Conv3d", (3, 2, 1, 2, 2)),
        "sound.weight": ("Conv1d", (3, 2, 3)),
        "up.weight": ("ConvTranspose2d", (2, 3, 2, 2)),
        "labels.weight": ("Embedding", (10, 4)),
        "attention.in_proj_weight": ("MultiheadAttention", (12, 4)),
        "attention.out_proj.weight": ("NonDynamicallyQuantizableLinear", (4, 4)),
    }
    assert {each.path: each.bytes for each in found}["up.weight"] == 2 * 3 * 2 * 2 * 2


def test_a_video_denoiser_and_an_image_denoiser() -> None:
    with torch.device("meta"):
        wan = WanTransformer3DModel(num_layers=1, num_attention_heads=2, attention_head_dim=12, ffn_dim=16, text_dim=8)
    listed = {each.path: each.kind for each in without_role(wan, architecture(wan).roles)}
    assert listed["patch_embedding.weight"] == "Conv3d"
    assert set(listed) <= {"patch_embedding.weight", "scale_shift_table", "blocks.0.scale_shift_table"}
    unet = tiny_unet()
    assert without_role(unet, architecture(unet).roles) == ()


def test_a_second_denoiser() -> None:
    first, second = tiny_unet(), tiny_unet(1)
    pipe = TwoExperts(first, DDIMScheduler(), second)
    assert named_denoiser(pipe) == ("unet", first)
    assert other_denoisers(pipe) == {"unet_2": second}
    size = 4 * sum(parameter.numel() for parameter in second.parameters())
    assert float_denoisers(pipe) == (LeftFloat("unet_2", "UNet2DModel", (), size),)
    assert float_denoisers(TwoExperts(first, DDIMScheduler())) == ()
    replace_layers(second, ["conv_in"])["conv_in"].allocate(Scheme(QuantSpec("uint4", "channel")))
    assert float_denoisers(pipe) == ()
