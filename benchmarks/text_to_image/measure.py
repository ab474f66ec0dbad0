"""Measure one row: how far the pictures are from the float model's, and whether they still show what the prompt names."""

from typing import Any

import torch

from benchmarks.contenders import contender
from benchmarks.text_to_image.looking import Looks, obeyed
from benchmarks.text_to_image.plan import Row, timed
from benchmarks.text_to_image.uses import USES
from benchmarks.text_to_image.workshop import Workshop, pooled
from halftone.artifact import component_sizes, sizes
from halftone.evaluate import paired
from halftone.evaluate.bench import Subject, bench
from halftone.evaluate.compare import pair
from halftone.foundation.build import plain
from halftone.models.denoiser import named_denoiser
from halftone.nn.layers import quantized_layers

_LATENCY_BATCHES = (2, 16)  # a guided picture, eight of them


def measure(row: Row, workshop: Workshop, looks: Looks) -> dict[str, Any]:
    """Return the metrics of a row."""
    if row.section == "latency":
        return _latency(row, workshop)
    use = USES[row.use]
    against = workshop.float_samples(use.like or row.use)
    given = [workshop.given(use, number) for number in range(len(against))]
    if row.recipe is None:
        found = {"seen": looks.seen(against, use), "obeyed": obeyed(against, given, use)}
        if len(against) > 1:  # how far apart pictures of other noise are: what "another picture" means
            found["between_seeds"] = {"moved": looks.moved(against[0].images, against[1].images)}
        return found
    drawn = workshop.quantized_samples(row)
    mine, theirs = pooled(drawn), pooled(against)
    distances = plain(pair(mine, theirs))
    if use.kind == "inpaint":
        # What the sampler returns last still has the half in it that the pipeline puts back from the given picture.
        distances["latent_mse"] = None
    return {
        "paired": distances,
        "image_mse": [float(f"{error:.4g}") for error in paired.mse(mine.images, theirs.images)],
        "moved": looks.moved(mine.images, theirs.images),
        "seen": looks.seen(drawn, use),
        "obeyed": obeyed(drawn, given, use),
        **(_of_unet(row, workshop) if "unet" in use.parts else {"quantize": {}}),
    }


def _of_unet(row: Row, workshop: Workshop) -> dict[str, Any]:
    """Return what the quantized U-Net runs on, how large it is, and how it was made."""
    pipe, facts = workshop.quantized(row)
    name, module = named_denoiser(pipe)
    return {
        "engine": sorted({layer.choice().name for _, layer in quantized_layers(module)}),
        "sizes": sizes(module, workshop.artifact_of(row) / "model" / name),
        "components": component_sizes(pipe),
        "quantize": facts,
    }


def _latency(row: Row, workshop: Workshop) -> dict[str, Any]:
    """Time float and quantized U-Nets in one run, taking turns."""
    part = named_denoiser(workshop.load_float())[0]
    places, subjects = {"float32": workshop.folder / part}, {}
    models = {"float32": (workshop.folder, torch.float32), "bfloat16": (workshop.folder, torch.bfloat16)}
    for name in models:
        subjects[name] = Subject(str(workshop.folder), name)
    for each in timed(row):
        workshop.quantized(each)
        folder, name = workshop.artifact_of(each) / "model", f"{each.method}, {each.bits.upper()}"
        models[name], places[name], subjects[name] = (
            (folder, torch.float32),
            folder / part,
            Subject(str(folder), "torch"),
        )
    found = {}
    for batch in _LATENCY_BATCHES:
        contenders = [contender(name, *what, batch) for name, what in models.items()]
        asked = subjects if batch == _LATENCY_BATCHES[0] else None
        found[str(batch)] = bench(
            contenders, asked, places, batch, workshop.settings.rounds, progress=workshop.progress
        )
    return {"bench": found}
