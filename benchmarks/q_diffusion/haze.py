"""The Fréchet distance without the haze that models leave where real pictures are black.

Half of the pixels of Fashion-MNIST are exactly 0. The models leave a few grey levels there, which nobody sees and to which the
classifier's features answer strongly: every model's distance, the float one's first, is in large part that of its haze.
"""

import numpy as np

from halftone.evaluate import features
from halftone.evaluate.frechet import distance

LEVELS = 8  # grey levels of 255, the first that is kept


def without(images: np.ndarray) -> np.ndarray:
    """Return images in [0, 1] whose pixels below ``LEVELS`` grey levels are black."""
    return np.where(images < LEVELS / 255, np.float32(0), images)


def hazeless(images: np.ndarray) -> float | None:
    """Return the distance of the images without their haze, in the features for images of their shape; None without any."""
    return _distance(without(images))


def brighter(images: np.ndarray, against: np.ndarray) -> float:
    """Return how many grey levels brighter the images are on average where the float model's are all but black."""
    black = against < LEVELS / 255
    return 255 * float((images - against)[black].mean(dtype=np.float64)) if black.any() else 0.0


def with_haze(against: np.ndarray, levels: float) -> float | None:
    """Return the distance that the float model's own images have once their all but black pixels are ``levels`` brighter."""
    black = against < LEVELS / 255
    return _distance(np.where(black, np.clip(against + np.float32(levels / 255), 0, 1), against))


def _distance(images: np.ndarray) -> float | None:
    network = features.network_for(images.shape[1:])
    if network is None:
        return None
    found = features.feature_statistics(images, network.name)
    return distance(found, features.reference(network.name).train)
