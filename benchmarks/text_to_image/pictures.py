"""Pictures beside each other: pairs that moved most, and what adapters do on the float and on the quantized model."""

import io
from typing import Any

import numpy as np

from benchmarks.text_to_image.looking import Looks
from benchmarks.text_to_image.plan import Row
from benchmarks.text_to_image.uses import PLAIN, USES
from benchmarks.text_to_image.workshop import Workshop, pooled
from halftone.cli.generate import grid

_PAIRS = 18  # six by six pictures
_ENLARGED = 2
_ADAPTED = 12  # prompts
# Uses whose pictures are shown: what is put on a model must be seen on the quantized one.
SHOWN = ("LoRA, strength 1", "ControlNet")


def moved_most(row: Row, workshop: Workshop, metrics: dict[str, Any], looks: Looks) -> bytes:
    """Return a PNG of the pairs whose contents moved most, the float model's picture first.

    Below a pair's second picture stands at which place the right concept was among the nearest, with the float model and with
    this one: 1 and 1 is as good a picture, and another one.
    """
    theirs = pooled(workshop.float_samples(row.use)).images
    mine = pooled(workshop.quantized_samples(row)).images
    texts = workshop.texts(USES[row.use]) * len(workshop.settings.seeds)
    order = np.argsort(metrics["moved"])[::-1][:_PAIRS]
    original = looks.seen(workshop.float_samples(row.use), USES[row.use])
    ours, floats = (np.concatenate(seen[0]["ranks"]) + 1 for seen in (metrics["seen"], original))
    labels = [label for number in order for label in (texts[number], f"{floats[number]} to {ours[number]}")]
    return _png(np.stack([each[number] for number in order for each in (theirs, mine)]), labels)


def adapted(row: Row, workshop: Workshop) -> bytes:
    """Return a PNG of a prompt's pictures: the float model's, the same with the adapter, the quantized model's with it."""
    columns = [
        workshop.float_samples(PLAIN)[0].images,
        workshop.float_samples(row.use)[0].images,
        workshop.quantized_samples(row)[0].images,
    ]
    texts = workshop.texts(USES[row.use])
    order = np.linspace(0, len(texts) - 1, min(_ADAPTED, len(texts))).round().astype(int)
    labels = [label for number in order for label in (texts[number], "float", row.bits.upper())]
    return _png(np.stack([each[number] for number in order for each in columns]), labels)


def _png(images: np.ndarray, labels: list[str]) -> bytes:
    buffer = io.BytesIO()
    grid(images.repeat(_ENLARGED, axis=2).repeat(_ENLARGED, axis=3), labels).save(buffer, format="PNG")
    return buffer.getvalue()
