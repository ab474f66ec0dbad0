"""The pairs that moved most: often as good a picture as the float model's, but of something else."""

import io
from typing import Any

import numpy as np

from benchmarks.text_to_image.looking import Looks
from benchmarks.text_to_image.plan import Row
from benchmarks.text_to_image.uses import USES
from benchmarks.text_to_image.workshop import Workshop, pooled
from halftone.cli.generate import grid

_PAIRS = 18  # six by six pictures
_ENLARGED = 2


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
    images = np.stack([each[number] for number in order for each in (theirs, mine)])
    labels = [label for number in order for label in (texts[number], f"{floats[number]} to {ours[number]}")]
    buffer = io.BytesIO()
    grid(images.repeat(_ENLARGED, axis=2).repeat(_ENLARGED, axis=3), labels).save(buffer, format="PNG")
    return buffer.getvalue()
