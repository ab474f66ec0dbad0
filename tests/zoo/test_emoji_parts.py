"""A LoRA and a ControlNet for a tiny text-to-image model: their data and their training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from tests.emoji import SMALL, write_base

from halftone.foundation.errors import ConfigError
from halftone.zoo import emoji_controlnet, emoji_style_lora
from halftone.zoo.denoiser_training import Training
from halftone.zoo.emoji_data import EmojiData, read

LOOP = Training(steps=4, batch=4, warmup=1, checkpoint_minutes=0.0, lr=1e-2)
STYLE = emoji_style_lora.StyleTraining(loop=LOOP, rank=2)
CONTROL = emoji_controlnet.ControlTraining(loop=LOOP)


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and the pipeline ``base``."""
    return write_base(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def data(place: Path) -> EmojiData:
    return read(place / "data", SMALL.image_size)


@pytest.fixture
def pipe(place: Path) -> StableDiffusionPipeline:
    return DiffusionPipeline.from_pretrained(place / "base")


def test_a_print_is_in_the_style_and_a_picture_is_not(data: EmojiData) -> None:
    pixels = data.pixels(torch.arange(len(data.emoji)))
    prints = emoji_style_lora.printed(pixels)
    assert prints.shape == pixels.shape
    assert emoji_style_lora.style_share(prints / 2 + 0.5) == 1.0
    assert emoji_style_lora.style_share(pixels / 2 + 0.5) < 0.9
    black_and_white = torch.stack([-torch.ones(3, 2, 2), torch.ones(3, 2, 2)])
    dark, white = emoji_style_lora.printed(black_and_white) / 2 + 0.5
    assert torch.allclose(dark[:, 0, 0], torch.tensor(emoji_style_lora.INK)) and torch.allclose(white, torch.ones(()))


def test_masks_are_coarse_silhouettes_without_holes() -> None:
    ring = torch.ones(1, 3, 32, 32)
    ring[:, :, 4:28, 4:28] = 0.5
    ring[:, :, 12:20, 12:20] = 1.0  # the hole
    (mask,) = emoji_controlnet.masks(ring)
    wanted = torch.zeros(32, 32)
    wanted[4:28, 4:28] = 1.0
    assert mask.shape == (3, 32, 32) and torch.equal(mask[0], wanted) and torch.equal(mask[0], mask[2])
    assert emoji_controlnet.overlap(ring, mask[None]) == 1.0
    assert emoji_controlnet.overlap(torch.ones_like(ring), mask[None]) == 0.0
    shifted = torch.zeros(1, 3, 32, 32)
    shifted[..., 4:28, 0:16] = 1.0
    assert emoji_controlnet.overlap(ring, shifted) == pytest.approx((24 * 12) / (24 * 28))


def test_pictures_are_placed_elsewhere_and_brought_back() -> None:
    square = torch.ones(1, 3, 64, 64)
    square[..., 16:48, 16:48] = 0.0
    where = torch.tensor([[0.5, 0.5, -0.5]])  # half a side, to the right, at the top
    elsewhere = emoji_controlnet.placed(square, where)
    found = emoji_controlnet.silhouettes(elsewhere)[0].nonzero().float()
    assert torch.allclose(found.mean(0), torch.tensor([15.5, 47.5]), atol=0.6)
    assert 15 <= found[:, 0].max() - found[:, 0].min() <= 18
    assert float((emoji_controlnet.restored(elsewhere, where) - square).abs().mean()) < 0.05
    assert torch.allclose(emoji_controlnet.placed(square, torch.tensor([[1.0, 0.0, 0.0]])), square, atol=1e-5)
    drawn = emoji_controlnet.places(500, torch.Generator().manual_seed(0))
    edges = drawn[:, 1:].abs() + drawn[:, :1]
    assert 0.5 < float(drawn[:, 0].min()) < 0.6 and float(edges.max()) <= 1 + 1e-6, "nothing leaves the canvas"


def test_only_the_adapters_learn(pipe: StableDiffusionPipeline, data: EmojiData, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    facts = emoji_style_lora.train(pipe, data, STYLE, tmp_path, say=silent)
    after = pipe.unet.state_dict()
    kept = {name.replace(".base_layer", ""): name for name in after if "lora_" not in name}
    assert kept.keys() == before.keys() and all(torch.equal(after[kept[name]], before[name]) for name in before)
    moved = [name for name in after if "lora_B" in name and after[name].abs().max() > 0]
    assert any("conv1" in name for name in moved) and any("to_q" in name for name in moved)
    assert facts["steps"] == 4 and facts["rank"] == 2


def test_a_stopped_training_ends_with_the_same_bits(
    place: Path, data: EmojiData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learned(work: Path, steps: int) -> dict[str, torch.Tensor]:
        pipe = DiffusionPipeline.from_pretrained(place / "base")
        how = replace(STYLE, loop=replace(LOOP, steps=4))
        calls = 0
        original = emoji_style_lora.conditional_loss

        def limited(*given):
            loss = original(*given)

            def counted(generator):
                nonlocal calls
                calls += 1
                if calls > steps:
                    raise KeyboardInterrupt
                return loss(generator)

            return counted

        with monkeypatch.context() as patch:
            patch.setattr(emoji_style_lora, "conditional_loss", limited)
            emoji_style_lora.train(pipe, data, how, work, say=silent)
        return pipe.unet.state_dict()

    whole = learned(tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path / "cut", 2)
    again = learned(tmp_path / "cut", 4)
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


def test_checkpoints_of_another_base_are_refused(
    pipe: StableDiffusionPipeline, data: EmojiData, tmp_path: Path
) -> None:
    emoji_controlnet.train(pipe, data, CONTROL, tmp_path, say=silent)
    pipe.unet.conv_in.bias.data += 1
    with pytest.raises(ConfigError, match="base"):
        emoji_controlnet.train(pipe, data, CONTROL, tmp_path, say=silent)


def test_a_controlnet_learns_and_leaves_the_pipeline_alone(
    pipe: StableDiffusionPipeline, data: EmojiData, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    net, _ = emoji_controlnet.train(pipe, data, CONTROL, tmp_path, say=silent)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert all(block.weight.abs().max() > 0 for block in net.controlnet_down_blocks), "they began at zero"
