"""Measure one row: how far the pictures are from the float model's, and whether they still show what the prompt names."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contenders import contender
from benchmarks.text_to_image.plan import Row
from benchmarks.text_to_image.workshop import Workshop, pooled
from halftone.artifact import component_sizes, sizes
from halftone.evaluate import paired
from halftone.evaluate.alignment import alignment
from halftone.evaluate.bench import Subject, bench
from halftone.evaluate.compare import pair
from halftone.evaluate.kernel_distance import kernel_distance
from halftone.evaluate.picture_features import Features, latent_features, squeezenet_features
from halftone.evaluate.sample import Samples
from halftone.foundation.build import plain
from halftone.models.denoiser import named_denoiser
from halftone.nn.layers import quantized_layers

_LATENCY_BATCHES = (2, 16)  # a guided picture, eight of them


def measure(row: Row, workshop: Workshop) -> dict[str, Any]:
    """Return the metrics of a row."""
    if row.section == "latency":
        return _latency(row, workshop)
    against = workshop.float_samples(row.use)
    if row.recipe is None:
        return {"seen": _seen(against, workshop)}
    pipe, facts = workshop.quantized(row)
    drawn = workshop.quantized_samples(row)
    name, module = named_denoiser(pipe)
    mine, theirs = pooled(drawn), pooled(against)
    return {
        "paired": plain(pair(mine, theirs)),
        "image_mse": [float(f"{error:.4g}") for error in paired.mse(mine.images, theirs.images)],
        "seen": _seen(drawn, workshop),
        "engine": sorted({layer.choice().name for _, layer in quantized_layers(module)}),
        "sizes": sizes(module, workshop.artifact_of(row) / "model" / name),
        "components": component_sizes(pipe),
        "quantize": facts,
    }


def _seen(drawn: list[Samples], workshop: Workshop) -> list[dict[str, Any]]:
    """Return what networks see in the pictures: alignment with the prompts, and the kernel distance to real pictures."""
    known = workshop.known
    wanted = [known.concept(text) for text in known.prompts]
    vae: Any = workshop.load_float().vae
    looks: dict[str, tuple[Features, np.ndarray]] = {
        f"{workshop.model['name']} latents": (latent_features(vae), known.features)
    }
    if workshop.settings.squeezenet is not None:
        network, size = squeezenet_features(workshop.settings.squeezenet), drawn[0].images.shape[-1]
        looks["SqueezeNet"] = network, network(_real(workshop.settings.squeezenet, size))
    found = []
    for name, (look, reference) in looks.items():
        features = [look(each.images) for each in drawn]
        right = alignment(name, features, wanted, reference, known.concepts)
        far = kernel_distance(name, np.concatenate(features), reference)
        found.append({"alignment": asdict(right), "kernel": asdict(far)})
    return found


def _real(weights: Path, size: int) -> np.ndarray:
    """Return the real pictures, which lie beside SqueezeNet's weights, ``[M, 3, S, S]`` in [0, 1]."""
    from halftone.zoo.emoji_data import read

    data = read(weights.parent, size)
    return (data.pixels(torch.arange(len(data.emoji))) / 2 + 0.5).numpy()


def _latency(row: Row, workshop: Workshop) -> dict[str, Any]:
    """Time float and integer U-Nets in one run, taking turns."""
    workshop.quantized(row)
    folder = workshop.artifact_of(row) / "model"
    part = named_denoiser(workshop.load_float())[0]
    places = {"float32": workshop.folder / part, "W4A8": folder / part}
    subjects = {name: Subject(str(workshop.folder), name) for name in ("float32", "bfloat16")}
    subjects["W4A8"] = Subject(str(folder), "torch")
    found = {}
    for batch in _LATENCY_BATCHES:
        contenders = [
            contender("float32", workshop.folder, torch.float32, batch),
            contender("bfloat16", workshop.folder, torch.bfloat16, batch),
            contender("W4A8", folder, torch.float32, batch),
        ]
        asked = subjects if batch == _LATENCY_BATCHES[0] else None
        found[str(batch)] = bench(
            contenders, asked, places, batch, workshop.settings.rounds, progress=workshop.progress
        )
    return {"bench": found}
