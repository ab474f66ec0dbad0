"""Haze: what is all but black is black, and the rest is what it was."""

import numpy as np
from benchmarks.q_diffusion.haze import LEVELS, brighter, hazeless, with_haze, without


def test_only_what_is_all_but_black_goes() -> None:
    levels = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16) / 255
    found = (without(levels) * 255).round().astype(int).flatten()
    assert found.tolist() == [0] * LEVELS + list(range(LEVELS, 256))


def test_images_without_a_feature_network_have_no_distance() -> None:
    assert hazeless(np.zeros((2, 3, 20, 20), dtype=np.float32)) is None


def test_a_haze_on_the_real_thing_does_not_count() -> None:
    """Pictures with and without a haze of seven levels where they are black are as far from the real ones."""
    random = np.random.default_rng(0)
    images = random.uniform(LEVELS / 255, 1, (16, 1, 32, 32)).astype(np.float32)
    images[:, :, :, 16:] = 0
    hazy = np.where(images == 0, np.float32((LEVELS - 1) / 255), images)
    assert hazeless(images) is not None
    assert hazeless(images) == hazeless(hazy)


def test_how_much_brighter_a_background_is() -> None:
    random = np.random.default_rng(0)
    images = random.uniform(LEVELS / 255, 1, (16, 1, 32, 32)).astype(np.float32)
    images[:, :, :, 16:] = 2 / 255
    other = images + np.float32(0.5 / 255)
    other[:, :, :, :16] += 0.1
    assert abs(brighter(other, images) - 0.5) < 1e-3
    assert brighter(images[..., :16], images[..., :16]) == 0
    hazy = np.where(images == images[0, 0, 0, 31], np.float32(3 / 255), images)
    found = with_haze(images, 1.0)
    assert found is not None
    # The same pictures, made in another way: rounding apart.
    assert abs(found - with_haze(hazy, 0.0)) < 1e-2 * found
