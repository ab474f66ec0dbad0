"""Reading the emoji: white behind them, balance between concepts, prompts, and bad folders."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.emoji import write_emoji

from halftone.foundation.errors import ConfigError
from halftone.zoo.emoji_data import CAPTIONS, IMAGES, EmojiData, prompts, read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emoji(tmp_path_factory.mktemp("emoji"))


@pytest.fixture(scope="module")
def data(folder: Path) -> EmojiData:
    return read(folder, 16)


def test_images_lie_on_white(data: EmojiData) -> None:
    assert data.images.shape == (9, 3, 16, 16) and data.images.dtype == torch.uint8
    assert data.images[0, :, 0, 0].tolist() == [255, 255, 255] and data.images[0, :, 8, 8].tolist() == [220, 30, 30]
    pixels = data.pixels(torch.tensor([0, 1]))
    assert pixels.shape == (2, 3, 16, 16) and pixels.max() == 1.0 and pixels.min() >= -1.0


def test_every_concept_is_drawn_as_often(data: EmojiData) -> None:
    shares: Counter[str] = Counter()
    for emoji, weight in zip(data.emoji, data.weights.tolist(), strict=True):
        shares[emoji.concept] += weight
    assert all(share == pytest.approx(1 / 7) for share in shares.values())
    hand = [w for e, w in zip(data.emoji, data.weights.tolist(), strict=True) if e.concept == "hand"]
    assert hand == pytest.approx([1 / 14, 1 / 28, 1 / 28])  # half for the one without a tone
    drawn = data.draw(50, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, data.draw(50, torch.Generator().manual_seed(1)))


def test_prompts_are_names_keywords_or_nothing(data: EmojiData) -> None:
    red = data.emoji[0]
    texts = Counter(prompts([red] * 4000, 0.1, torch.Generator().manual_seed(0)))
    assert texts[""] / 4000 == pytest.approx(0.1, abs=0.02)
    assert texts["red circle"] / 4000 == pytest.approx(0.54, abs=0.03)
    for text in texts:
        first, *rest = text.split(", ")
        assert first in {"", "red circle", *red.keywords} and set(rest) <= set(red.keywords)
    assert prompts([red] * 5, 1.0, torch.Generator()) == [""] * 5


def test_a_bad_folder_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{IMAGES} and {CAPTIONS}, got no {IMAGES} and no {CAPTIONS}"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="got a file"):
        read(folder / CAPTIONS)
    (tmp_path / CAPTIONS).write_bytes((folder / CAPTIONS).read_bytes())
    (tmp_path / IMAGES).write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="PNG images"):
        read(tmp_path)
    with zipfile.ZipFile(tmp_path / IMAGES, "w") as archive:
        archive.writestr("red_circle.png", b"no image")
    with pytest.raises(ConfigError, match="PNG images"):
        read(tmp_path)
    with zipfile.ZipFile(tmp_path / IMAGES, "w") as archive:
        archive.writestr("other.png", b"")
    with pytest.raises(ConfigError, match="every captioned image"):
        read(tmp_path)
    for lines in (b"", b"{}\n", b"\xff\n", json.dumps([1]).encode()):
        (tmp_path / CAPTIONS).write_bytes(lines)
        with pytest.raises(ConfigError, match=CAPTIONS):
            read(tmp_path)
