"""What networks see in the pictures: whether they show what the prompt names, and how far all of them are from real ones."""

import io
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.records import digest_of
from benchmarks.text_to_image.uses import Use, positions
from benchmarks.text_to_image.workshop import Workshop
from halftone.evaluate.alignment import alignment, concept_ranks
from halftone.evaluate.kernel_distance import kernel_distance
from halftone.evaluate.picture_features import Features, latent_features, squeezenet_features
from halftone.evaluate.sample import Samples
from halftone.foundation.files import sha256_of, write_atomically
from halftone.models.fingerprint import fingerprint
from halftone.zoo.emoji_controlnet import overlap, restored
from halftone.zoo.emoji_style_lora import printed, style_share


class Looks:
    """Networks that look, and what they saw in the real pictures, once for all rows."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self._known: dict[tuple[str, bool], np.ndarray] = {}

    def seen(self, drawn: list[Samples], use: Use) -> list[dict[str, Any]]:
        """Return, for each network: alignment with the prompts, rank of the right concept by seed and picture, kernel distance.

        With an adapter, real pictures in its style stand beside the others where they are at hand: at half its strength a picture
        may be near either. The kernel distance is that to one picture of each concept, as no prompt asks for a skin tone, in the
        style if there is one; ``floor`` is that of one half of them to the other. What a ControlNet has put elsewhere is brought
        back to the middle, where real pictures are.
        """
        known = self.workshop.known
        wanted = [known.concept(text) for text in known.prompts]
        found = []
        for name, look in self._networks.items():
            kinds = [self._references(name, styled) for styled in ((False, True) if use.lora is not None else (False,))]
            references, concepts = np.concatenate(kinds), known.concepts * len(kinds)
            features = [look(_in_the_middle(each.images, use)) for each in drawn]
            right = alignment(name, features, wanted, references, concepts)
            ranks = [concept_ranks(each, wanted, references, concepts).tolist() for each in features]
            plain = kinds[-1][known.plain]
            far = kernel_distance(name, np.concatenate(features), plain)
            floor = kernel_distance(name, plain[::2], plain[1::2])
            facts = {"alignment": asdict(right), "ranks": ranks, "kernel": asdict(far), "floor": asdict(floor)}
            found.append(facts)
        return found

    def moved(self, mine: np.ndarray, theirs: np.ndarray) -> list[float]:
        """Return how far each picture is from the other model's in what the first network sees: 1 - the cosine, ``[N]``."""
        name, look = next(iter(self._networks.items()))
        centre = self._references(name, styled=False).mean(axis=0)
        units = [_unit(look(images) - centre) for images in (mine, theirs)]
        return [float(f"{value:.4g}") for value in 1 - (units[0] * units[1]).sum(1)]

    @cached_property
    def _networks(self) -> dict[str, Features]:
        """The model's own encoder first: every latent model brings one."""
        vae: Any = self.workshop.load_float().vae
        found = {f"{self.workshop.model['name']} latents": latent_features(vae)}
        weights = self.workshop.settings.squeezenet
        return found if weights is None else {**found, "SqueezeNet": squeezenet_features(weights)}

    def _references(self, name: str, styled: bool) -> np.ndarray:
        weights = self.workshop.settings.squeezenet
        styled = styled and weights is not None
        if (name, styled) not in self._known:
            if weights is None or (name != "SqueezeNet" and not styled):
                self._known[name, styled] = self.workshop.known.features
            else:
                self._known[name, styled] = self._looked_at(name, styled, weights)
        return self._known[name, styled]

    def _looked_at(self, name: str, styled: bool, weights: Path) -> np.ndarray:
        """Return features of the real pictures, kept in the cache: looking at all of them takes minutes."""
        vae: Any = self.workshop.load_float().vae
        own = fingerprint(vae), *(sha256_of(file) for file in sorted(weights.parent.glob("noto_emoji*")))
        key = digest_of([self.workshop.model["name"], name, styled, sha256_of(weights), *own])
        file = self.workshop.settings.cache / "references" / f"{key}.npy"
        if not file.exists():
            content = io.BytesIO()
            np.save(content, self._networks[name](self._real(weights, styled)))
            write_atomically(file, content.getvalue())
        found: np.ndarray = np.load(file)
        return found

    def _real(self, weights: Path, styled: bool) -> np.ndarray:
        """Return the real pictures, which lie beside SqueezeNet's weights, ``[M, 3, S, S]`` in [0, 1]."""
        from halftone.zoo.emoji_data import read

        sample: Any = self.workshop.load_float().unet.config
        scale = 2 ** (len(self.workshop.load_float().vae.config.block_out_channels) - 1)
        data = read(weights.parent, sample.sample_size * scale)
        pixels = data.pixels(torch.arange(len(data.emoji)))
        return ((printed(pixels) if styled else pixels) / 2 + 0.5).numpy()


def obeyed(drawn: list[Samples], each: list[dict[str, list]], use: Use) -> dict[str, float]:
    """Return how well what was put on the model is followed: the style's share of pixels, the overlap with the masks."""
    images = torch.from_numpy(np.concatenate([samples.images for samples in drawn]))
    found = {}
    if use.lora is not None:
        found["style_share"] = style_share(images)
    if use.kind == "controlnet":
        given = [np.moveaxis(np.asarray(image), -1, 0) for call in each for image in call["image"]]
        found["overlap"] = overlap(images, torch.from_numpy(np.stack(given)).float() / 255)
    return {name: round(value, 4) for name, value in found.items()}


def _in_the_middle(images: np.ndarray, use: Use) -> np.ndarray:
    if use.kind != "controlnet":
        return images
    return restored(torch.from_numpy(images), positions(len(images))).clamp(0, 1).numpy()


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
