"""The pairs that moved most: often as good a picture as the float model's, but of something else."""

import io

import numpy as np

from benchmarks.text_to_image.plan import Row
from benchmarks.text_to_image.uses import USES
from benchmarks.text_to_image.workshop import Workshop, pooled
from halftone.cli.generate import grid

_PAIRS = 18  # six by six pictures
_ENLARGED = 2


def moved_most(row: Row, workshop: Workshop, errors: list[float]) -> bytes:
    """Return a PNG of the pairs with the largest errors, the float model's picture first."""
    theirs = pooled(workshop.float_samples(row.use)).images
    mine = pooled(workshop.quantized_samples(row)).images
    texts = workshop.texts(USES[row.use]) * len(workshop.settings.seeds)
    order = np.argsort(errors)[::-1][:_PAIRS]
    images = np.stack([each[number] for number in order for each in (theirs, mine)])
    labels = [label for number in order for label in (texts[number], "")]
    buffer = io.BytesIO()
    grid(images.repeat(_ENLARGED, axis=2).repeat(_ENLARGED, axis=3), labels).save(buffer, format="PNG")
    return buffer.getvalue()
