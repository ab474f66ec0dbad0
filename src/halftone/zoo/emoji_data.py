"""The captioned Noto emoji: images on white, captions with keywords, and a sampling that is balanced by concept."""

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from halftone.foundation.errors import ConfigError
from halftone.foundation.files import sha256_of

IMAGES = "noto_emoji_128.zip"
CAPTIONS = "noto_emoji_captions.jsonl"
# Of a concept's draws, the share of the image without a skin tone: it is what a prompt without a tone asks for.
_PLAIN_SHARE = 0.5
# Shares of the prompts: the name alone; the name and some keywords; the rest is keywords alone.
_NAME_ALONE, _NAME_AND_KEYWORDS = 0.6, 0.3
_KEYWORDS = 3  # at most, in one prompt


@dataclass(frozen=True)
class Emoji:
    """One image's text: the CLDR short name, the CLDR keywords, and the concept that its skin tones share."""

    file: str
    caption: str
    keywords: tuple[str, ...]
    concept: str
    skin_tone: bool


@dataclass(frozen=True)
class EmojiData:
    """The whole set.

    Attributes:
        emoji: one entry an image.
        images: ``[N, 3, S, S]`` uint8, composited on white.
        weights: ``[N]`` float64, the probability with which each image is drawn: equal for all concepts, and inside a
            concept half for the image without skin tone and half for all others together.
        digest: identifies the files.
    """

    emoji: tuple[Emoji, ...]
    images: torch.Tensor
    digest: str = ""
    weights: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _balanced(self.emoji))

    @property
    def concepts(self) -> list[str]:
        """The concept of each image."""
        return [each.concept for each in self.emoji]

    def pixels(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the images numbered ``chosen`` as ``[B, 3, S, S]`` float32 in [-1, 1]."""
        return self.images[chosen].to(torch.float32).div(127.5).sub(1.0)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return the numbers ``[count]`` of images drawn with ``weights``."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)


def read(folder: Path, size: int = 64) -> EmojiData:
    """Read both files from ``folder``; images are composited on white and averaged down to ``size`` pixels a side.

    Raises:
        ConfigError: a file is absent or damaged, a line of the captions has no name, an image is missing.
    """
    emoji = _captions(folder / CAPTIONS) if _present(folder) else ()
    images = np.empty((len(emoji), 3, size, size), np.uint8)
    place = f"--data {folder}"
    try:
        with zipfile.ZipFile(folder / IMAGES) as archive:
            for number, each in enumerate(emoji):
                images[number] = _on_white(archive.read(each.file), size)
    except KeyError as error:
        raise ConfigError(place, f"every captioned image in {IMAGES}", str(error.args[0])) from error
    except (OSError, zipfile.BadZipFile, UnidentifiedImageError) as error:
        raise ConfigError(place, f"PNG images in {IMAGES}", f"{type(error).__name__}: {error}") from error
    digest = sha256_of(folder / IMAGES)[:16] + sha256_of(folder / CAPTIONS)[:16]
    return EmojiData(emoji, torch.from_numpy(images), digest)


def _present(folder: Path) -> bool:
    missing = [name for name in (IMAGES, CAPTIONS) if not (folder / name).is_file()]
    if missing:
        got = "a file" if folder.is_file() else "no " + " and no ".join(missing)
        raise ConfigError(f"--data {folder}", f"a folder with {IMAGES} and {CAPTIONS}", got)
    return True


def _captions(file: Path) -> tuple[Emoji, ...]:
    found: list[Emoji] = []
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            words = tuple(str(word) for word in row["keywords"])
            found.append(Emoji(row["file"], row["caption"], words, row["concept"], bool(row["skin_tone"])))
        except (ValueError, KeyError, TypeError) as error:
            expected = "a JSON object with file, caption, keywords, concept and skin_tone"
            raise ConfigError(f"{file}, line {number}", expected, f"{type(error).__name__}: {error}") from error
    if not found:
        raise ConfigError(str(file), "one line an image", "an empty file")
    return tuple(found)


def _on_white(content: bytes, size: int) -> np.ndarray:
    """Return PNG ``content`` as ``[3, size, size]`` uint8."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    # The mean of the pixels that fall together: no ringing around the outlines, as sharper filters would leave.
    small = white.convert("RGB").resize((size, size), Image.Resampling.BOX)
    return np.moveaxis(np.asarray(small), -1, 0)


def _balanced(emoji: tuple[Emoji, ...]) -> torch.Tensor:
    members: dict[str, list[int]] = {}
    for number, each in enumerate(emoji):
        members.setdefault(each.concept, []).append(number)
    weights = torch.zeros(len(emoji), dtype=torch.float64)
    for numbers in members.values():
        plain = [n for n in numbers if not emoji[n].skin_tone]
        toned = [n for n in numbers if emoji[n].skin_tone]
        share = (_PLAIN_SHARE if toned else 1.0) if plain else 0.0
        for group, part in ((plain, share), (toned, 1.0 - share)):
            weights[group] = part / max(1, len(group))
    return weights / weights.sum()


def prompts(chosen: list[Emoji], dropout: float, generator: torch.Generator) -> list[str]:
    """Return one prompt for each of ``chosen``: its name, often with keywords, sometimes keywords only.

    A share ``dropout`` of them is empty, which teaches the model the unconditional half of classifier-free guidance.
    """
    luck = torch.rand((len(chosen), 2 + _KEYWORDS), generator=generator).tolist()
    return [_prompt(each, dropout, row) for each, row in zip(chosen, luck, strict=True)]


def _prompt(emoji: Emoji, dropout: float, luck: list[float]) -> str:
    kind, amount, *picks = luck
    if kind < dropout:
        return ""
    kind = (kind - dropout) / (1 - dropout)
    words = list(emoji.keywords)
    wanted = min(1 + int(amount * _KEYWORDS), len(words))
    chosen = [words.pop(int(pick * len(words))) for pick in picks[:wanted]]
    if kind < _NAME_ALONE or not chosen:
        return emoji.caption
    if kind < _NAME_ALONE + _NAME_AND_KEYWORDS:
        return ", ".join([emoji.caption, *chosen])
    return ", ".join(chosen)
