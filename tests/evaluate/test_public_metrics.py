"""FID, LPIPS and CLIP score: with programs and a CLIP small enough to follow, in the interfaces of the public ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.stable_diffusion import PROMPTS
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from halftone.evaluate.frechet import distance, statistics
from halftone.evaluate.public_metrics import CLIP, INCEPTION, VGG, pictures, public_metrics
from halftone.foundation.errors import ArtifactError, ConfigError
from halftone.zoo import emoji_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Inception(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8 and return_features
        return torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, [2, 1]).flatten(1)


class Vgg(torch.nn.Module):
    def forward(self, x: torch.Tensor, resize_images: bool = True, return_lpips: bool = False) -> torch.Tensor:
        assert x.dtype == torch.float32 and return_lpips and not resize_images
        return (x / 255).flatten(1)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name, network in ((INCEPTION, Inception()), (VGG, Vgg())):
        torch.jit.save(torch.jit.script(network), str(folder / name))
    return folder


@pytest.fixture
def clip(weights: Path) -> Path:
    words = emoji_tokenizer.train(3 * PROMPTS, 600, weights / "tokenizer")
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, **ids, "vocab_size": 600, "max_position_embeddings": 77},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    model.visual_projection.weight.data.neg_()  # these random pictures and words would point away from each other
    model.save_pretrained(weights / CLIP)
    looks = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(looks, words).save_pretrained(weights / CLIP)
    return weights


def images(seed: int, count: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (count, channels, 16, 16)).astype(np.float32)


def photos(folder: Path, count: int = 60) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(1000 + number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_fid_is_the_frechet_distance_in_the_programs_features(weights: Path, tmp_path: Path) -> None:
    mine, theirs = images(0), images(1) * 0.8
    found = public_metrics(mine, theirs, folder=weights, real=photos(tmp_path / "photos")).fid
    assert found is not None

    def features(pixels: np.ndarray) -> np.ndarray:
        whole = torch.from_numpy((pixels * 255).round() / 255)
        return torch.nn.functional.adaptive_avg_pool2d(whole, (2, 1)).flatten(1).double().numpy()

    wanted = distance(statistics(features(mine)), statistics(features(theirs)))
    assert found.to_float == pytest.approx(wanted, rel=1e-3)
    assert (found.samples, found.real) == (40, 60)
    assert found.to_real is not None and found.float_to_real is not None and found.floor is not None
    assert found.floor < found.to_real < found.float_to_real, "these are darker"
    again = public_metrics(mine, mine, folder=weights).fid
    assert again is not None and again.to_float == pytest.approx(0, abs=1e-6) and again.to_real is None


def test_lpips_is_between_pairs(weights: Path) -> None:
    mine = images(0)
    same = public_metrics(mine, mine, folder=weights).lpips
    assert same is not None and same.value == 0
    brighter = np.clip(mine + 0.1, 0, 1)
    found = public_metrics(mine, brighter, folder=weights).lpips
    pixels = [(each * 255).round() / 255 for each in (mine, brighter)]
    wanted = np.square(pixels[0] - pixels[1]).reshape(len(mine), -1).sum(1).mean()
    assert found is not None and found.value == pytest.approx(wanted, rel=1e-3) and found.low < found.value < found.high


def test_grey_images_are_looked_at_in_colour(weights: Path) -> None:
    mine = images(0, channels=1)
    found = public_metrics(mine, mine[::-1].copy(), folder=weights)
    assert found.fid is not None and found.lpips is not None and found.lpips.value > 0


def test_the_clip_score_is_of_each_picture_and_its_prompt(clip: Path) -> None:
    mine, prompts = images(0), [PROMPTS[number % len(PROMPTS)] for number in range(40)]
    found = public_metrics(mine, images(1), prompts, clip)
    assert found.clip is not None and found.float_clip is not None and found.missing == ()
    assert 0 <= found.clip.value <= 100
    turned = public_metrics(mine, None, prompts[1:] + prompts[:1], clip).clip
    assert turned is not None and turned.value != found.clip.value, "other prompts, other scores"


def test_what_is_missing_is_said(weights: Path, tmp_path: Path) -> None:
    (weights / VGG).unlink()
    found = public_metrics(images(0), images(1), ["a"] * 40, weights)
    assert found.fid is not None and found.lpips is None and found.clip is None
    lpips, clip = found.missing
    assert lpips.startswith("no LPIPS: it needs vgg16.pt, which") and clip.startswith("no CLIP score: it needs clip")
    alone = public_metrics(images(0), folder=weights)
    assert [sentence.partition(":")[0] for sentence in alone.missing] == ["no FID", "no LPIPS", "no CLIP score"]


def test_damage_and_strange_programs_are_errors(weights: Path, clip: Path) -> None:
    (weights / INCEPTION).write_bytes(b"no program")
    with pytest.raises(ArtifactError, match="a TorchScript program"):
        public_metrics(images(0), images(1), folder=weights)
    (weights / INCEPTION).write_bytes((weights / VGG).read_bytes())
    with pytest.raises(ArtifactError, match="return_features"):
        public_metrics(images(0), images(1), folder=weights)
    (weights / INCEPTION).unlink()
    (weights / VGG).unlink()
    kept = {k: v for k, v in load_file(weights / CLIP / "model.safetensors").items() if "text" in k}
    save_file(kept, weights / CLIP / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="weights of every layer.*none for"):
        public_metrics(images(0), None, ["a"] * 40, weights)
    (weights / CLIP / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="a CLIP model of transformers"):
        public_metrics(images(0), None, ["a"] * 40, weights)


def test_real_pictures_are_cropped_and_scaled(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 3)
    (part,) = pictures(folder, (8, 16))
    assert part.shape == (3, 3, 16, 8) and part.dtype == torch.uint8
    (tmp_path / "empty").mkdir()
    for place, words in ((tmp_path / "empty", "0 of them"), (tmp_path / "nowhere", "no folder")):
        with pytest.raises(ConfigError, match=words):
            next(pictures(place, (8, 8)))
