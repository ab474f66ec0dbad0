"""Samples as data URIs, and the page's ornament: the samples printed as halftones in two inks."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from halftone.report.pieces import Pairs
from halftone.report.tables import Markup

_LARGEST = 512  # pixels a side; a page that shows 24 pictures should stay a few megabytes
_PITCH, _ANGLES = (
    0.032,
    (15.0, 75.0),
)  # of the screens: dots as a share of the picture's side, and the inks' angles in degrees
_LEVELS = 9  # dot sizes; dots of one size are one path

_SLICE = 'preserveAspectRatio="xMinYMid slice" aria-hidden="true"'


def data_uri(picture: np.ndarray) -> str:
    """Return uint8 ``[C, H, W]`` as a PNG in a data URI, scaled down if it is very large.

    Small pictures stay as they are: the page enlarges them without smoothing.
    """
    image = Image.fromarray(picture[0] if picture.shape[0] == 1 else np.moveaxis(picture, 0, -1))
    if max(image.size) > _LARGEST:
        image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def difference(quantized: np.ndarray, original: np.ndarray, gain: int) -> np.ndarray:
    """Return the absolute difference of two pictures times ``gain``, clipped, uint8."""
    apart = np.abs(quantized.astype(np.int16) - original.astype(np.int16)) * gain
    return apart.clip(0, 255).astype(np.uint8)


def print_strip(pairs: Pairs | None, count: int = 6) -> Markup:
    """Return an SVG of the first samples as halftone prints, the float model's in cyan, the quantized one's in magenta.

    Where the two agree, the inks make one picture; where they do not, one of them shows. Without samples a ramp is printed.
    """
    if pairs is None:
        ramp = np.tile(np.linspace(0.7, 0, 128), (8, 1))
        sets: Sequence[list[np.ndarray]] = ([ramp], [ramp])
    else:
        sets = [[_ink(picture) for picture in samples[:count]] for samples in (pairs.original, pairs.quantized)]
    plates, across = [], 0.0
    pitch = 100 * _PITCH * (1 if pairs else 4)  # the ramp is wide and low
    for kind, angle, pictures in zip(("cyan", "magenta"), _ANGLES, sets, strict=True):
        dots: dict[int, list[str]] = {}
        across = 0.0
        for picture in pictures:
            _screen(picture, across, angle, pitch, dots)
            across += 100 * picture.shape[1] / picture.shape[0] + 6
        paths = (
            f'<path stroke-width="{level * 1.2 * pitch / _LEVELS:.2f}" d="{"".join(places)}"/>'
            for level, places in sorted(dots.items())
        )
        plates.append(f'<g class="plate {kind}">{"".join(paths)}</g>')
    box = f"0 0 {across - 6:.0f} 100"
    # Where the page gives it a height of its own (a phone), the first pictures fill it and the last are cut off.
    return Markup(f'<svg class="print" viewBox="{box}" {_SLICE}>{"".join(plates)}</svg>')


def _ink(picture: np.ndarray) -> np.ndarray:
    """Return how much ink a picture ``[C, H, W]`` needs at each pixel, in [0, 1]; a dark ground is left unprinted."""
    light = picture.astype(np.float64).mean(0) / 255
    edge = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
    return light if edge.mean() < 0.5 else 1 - light


def _screen(ink: np.ndarray, left: float, angle: float, pitch: float, dots: dict[int, list[str]]) -> None:
    """Add a picture's dots to ``dots`` by size; the picture is 100 high and starts at ``left``."""
    height, width = ink.shape
    scale = 100 / height
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    reach = int(math.hypot(width * scale, 100) / pitch) + 1
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            x, y = pitch * (column * cos - row * sin), pitch * (column * sin + row * cos)
            if not (0 <= x < width * scale and 0 <= y < 100):
                continue
            # A dot's area, not its width, is in proportion to the ink.
            level = round(_LEVELS * math.sqrt(ink[int(y / scale), int(x / scale)]))
            # Smaller ones would print the noise of an empty ground.
            if level > 2:
                dots.setdefault(level, []).append(f"M{left + x:.1f},{y:.1f}h0")
