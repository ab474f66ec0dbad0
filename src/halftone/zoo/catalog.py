"""The models that come with Halftone, and where their files lie."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from halftone.foundation.errors import ConfigError, suggest

WEIGHTS = Path(__file__).parent / "weights"
_INDEX = "model_index.json"


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        kind: ``pipeline`` (a diffusers folder), ``features`` (a network that a Fréchet distance is measured with), ``lora`` or
            ``controlnet`` (for a pipeline of the zoo).
        data: what it was trained on, with the licence.
        source: what ``halftone zoo train NAME --data`` takes to make it.
        options: those of ``halftone zoo train`` that its training has, besides the ones that all have.
        minutes: the training time where none is given; None for a training that has no such option.
    """

    name: str
    kind: Literal["pipeline", "features", "lora", "controlnet"]
    title: str
    data: str
    source: str = "FASHION_MNIST.npz"
    options: tuple[str, ...] = ()
    minutes: float | None = None

    @property
    def path(self) -> Path:
        """The folder of its files, where they ship."""
        return WEIGHTS / self.name

    @property
    def installed(self) -> bool:
        """Whether the weights are there."""
        return (self.path / _INDEX).is_file() if self.kind == "pipeline" else any(self.path.glob("*.safetensors"))


_WORDS = {"pipeline": "a pipeline", "features": "a feature network", "lora": "a LoRA", "controlnet": "a ControlNet"}
_EMOJI = "Noto emoji (Apache-2.0) with CLDR names and keywords (Unicode License V3)"
_FASHION = "Fashion-MNIST (MIT, Zalando SE)"

CATALOG = (
    Entry(
        "fashion-unet",
        "pipeline",
        "unconditional 32x32 DDPM of garments, UNet2DModel",
        _FASHION,
        options=("minutes", "work", "samples", "measure-every", "patience"),
        minutes=240.0,
    ),
    Entry(
        "fashion-classifier",
        "features",
        "names garments; its features are those of FD(fashion-classifier)",
        _FASHION,
    ),
    Entry(
        "emoji-sd",
        "pipeline",
        "text to image, 64x64 emoji, StableDiffusionPipeline",
        _EMOJI,
        "FOLDER",
        ("minutes", "work", "samples"),
        240.0,
    ),
    Entry(
        "emoji-style-lora",
        "lora",
        "makes every emoji of emoji-sd a print in one ink",
        _EMOJI,
        "FOLDER",
        ("minutes", "work", "samples", "base"),
        30.0,
    ),
    Entry(
        "emoji-controlnet",
        "controlnet",
        "puts an emoji of emoji-sd where a coarse mask is",
        _EMOJI,
        "FOLDER",
        ("minutes", "work", "samples", "base"),
        36.0,
    ),
)


def names() -> list[str]:
    """Return the names of all models, sorted."""
    return sorted(entry.name for entry in CATALOG)


def entry(name: str) -> Entry:
    """Return the model called ``name``.

    Raises:
        ConfigError: there is none.
    """
    for each in CATALOG:
        if each.name == name:
            return each
    raise ConfigError(f"zoo:{name}", "a model of the zoo", f"'{name}'", suggest(name, names()))


def folder(name: str, kind: str = "pipeline") -> Path:
    """Return the folder of the model called ``name``, which is of ``kind``.

    Raises:
        ConfigError: there is no such model, it is of another kind, or its weights are not there.
    """
    found = entry(name)
    if found.kind != kind:
        those = ", ".join(each.name for each in CATALOG if each.kind == kind)
        raise ConfigError(f"zoo:{name}", f"{_WORDS[kind]} ({those})", _WORDS[found.kind])
    if not found.installed:
        where = shlex.quote(str(found.path))
        fix = f"Train it: halftone zoo train {name} --data {found.source} -o {where}"
        raise ConfigError(f"zoo:{name}", "its weights in this installation", "none", fix)
    return found.path
