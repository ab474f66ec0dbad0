"""Synthetic emoji in the files that the real ones come in, and an architecture that trains in seconds."""

import io
import json
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw

from halftone.zoo import emoji_sd, emoji_tokenizer
from halftone.zoo.emoji_data import CAPTIONS, IMAGES
from halftone.zoo.emoji_sd import Architecture

SMALL = Architecture(
    image_size=16,
    vocabulary=600,
    autoencoder={"block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
    text={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    unet={
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
)
_COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220)}
_TONES = {"light skin tone": (250, 220, 190), "dark skin tone": (90, 60, 40)}


def write_base(folder: Path) -> Path:
    """Write synthetic emoji to ``folder / "data"`` and an untrained pipeline to ``folder / "base"``; return the folder."""
    write_emoji(folder / "data")
    words = emoji_tokenizer.train(["red circle", "blue square"] * 3, SMALL.vocabulary, folder / "tokenizer")
    parts = emoji_sd.autoencoder(SMALL), words, emoji_sd.text_encoder(SMALL, words), emoji_sd.unet(SMALL)
    emoji_sd.assemble(*parts).save_pretrained(folder / "base")
    return folder


def write_emoji(folder: Path) -> Path:
    """Write three circles and three squares, and a hand that has two skin tones, into ``folder``."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / IMAGES, "w") as archive:
        for shape in ("circle", "square"):
            for name, colour in _COLOURS.items():
                rows.append(_row(f"{name} {shape}", [name, shape, "geometric"], f"{name}-{shape}", False))
                archive.writestr(rows[-1]["file"], _picture(shape, colour))
        rows.append(_row("waving hand", ["hello", "hand"], "hand", False))
        archive.writestr(rows[-1]["file"], _picture("square", (250, 200, 0)))
        for tone, colour in _TONES.items():
            rows.append(_row(f"waving hand: {tone}", ["hello", "hand", tone], "hand", True))
            archive.writestr(rows[-1]["file"], _picture("square", colour))
    (folder / CAPTIONS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _row(caption: str, keywords: list[str], concept: str, toned: bool) -> dict:
    file = caption.replace(" ", "_").replace(":", "") + ".png"
    return {"file": file, "caption": caption, "keywords": keywords, "group": "", "skin_tone": toned, "concept": concept}


def _picture(shape: str, colour: tuple[int, int, int]) -> bytes:
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if shape == "circle" else draw.rectangle)((6, 6, 25, 25), fill=(*colour, 255))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
