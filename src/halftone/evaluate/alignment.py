"""Does a picture show what its prompt names? The rank of the right concept among all known pictures, in any features.

Pure functions of feature vectors: whoever draws the pictures chooses the network that looks at them, and names the figure
after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halftone.foundation.errors import CalibrationError, ConfigError


@dataclass(frozen=True)
class Alignment:
    """How often the right concept is the nearest one, or among the five nearest.

    Attributes:
        features: the network's name.
        top1, top5: shares of all pictures of all seeds.
        top1_by_seed, top5_by_seed: the same for each seed; their spread is the noise of the measure.
        prompts, concepts: how many were drawn for each seed, and how many there were to choose from.
    """

    features: str
    top1: float
    top5: float
    top1_by_seed: tuple[float, ...]
    top5_by_seed: tuple[float, ...]
    prompts: int
    concepts: int


def concept_ranks(
    generated: np.ndarray, wanted: Sequence[str], references: np.ndarray, concepts: Sequence[str]
) -> np.ndarray:
    """Return, for each picture, how many concepts are nearer to it than the one its prompt names: int64 ``[N]``, 0 is right.

    Near means a small angle around the mean of the references. A concept is as near as the nearest of its pictures, so
    every skin tone of it counts; ties count against the picture.

    Args:
        generated: features ``[N, D]``.
        wanted: the concept that each prompt names, N of them.
        references: features ``[M, D]`` of the real pictures.
        concepts: the concept of each of those, M of them.

    Raises:
        ConfigError: shapes or counts do not fit, or a wanted concept is not among the references.
        CalibrationError: a feature is NaN or infinite.
    """
    _check(generated, wanted, references, concepts)
    centre = references.mean(axis=0, dtype=np.float64)
    near = _unit(generated - centre) @ _unit(references - centre).T
    names, columns = np.unique(np.asarray(concepts), return_inverse=True)
    best = np.full((len(names), len(generated)), -np.inf)
    np.maximum.at(best, columns, near.T)
    right = np.searchsorted(names, np.asarray(wanted))
    own = best[right, np.arange(len(generated))]
    return (best >= own).sum(axis=0) - 1


def alignment(
    features: str,
    generated: Sequence[np.ndarray],
    wanted: Sequence[str],
    references: np.ndarray,
    concepts: Sequence[str],
) -> Alignment:
    """Return the measure over several seeds; ``generated`` holds ``[N, D]`` for each, in the order of ``wanted``.

    Raises:
        ConfigError, CalibrationError: see :func:`concept_ranks`; or there is no seed.
    """
    if not generated:
        raise ConfigError("alignment", "pictures of at least one seed", "none")
    ranks = [concept_ranks(each, wanted, references, concepts) for each in generated]
    first = tuple(float((rank < 1).mean()) for rank in ranks)
    fifth = tuple(float((rank < 5).mean()) for rank in ranks)
    mean = (float(np.mean(first)), float(np.mean(fifth)))
    return Alignment(features, *mean, first, fifth, len(wanted), len(set(concepts)))


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(length, np.finfo(np.float64).tiny)


def _check(generated: np.ndarray, wanted: Sequence[str], references: np.ndarray, concepts: Sequence[str]) -> None:
    where = "alignment"
    if generated.ndim != 2 or references.ndim != 2 or generated.shape[1] != references.shape[1]:
        got = f"{list(generated.shape)} and {list(references.shape)}"
        raise ConfigError(where, "features [N, D] and [M, D] of one network", got)
    if (len(generated), len(references)) != (len(wanted), len(concepts)) or not len(generated):
        expected = "at least one picture, and one concept for each picture and reference"
        got = f"{len(generated)} and {len(references)} pictures, {len(wanted)} and {len(concepts)} concepts"
        raise ConfigError(where, expected, got)
    unknown = sorted(set(wanted) - set(concepts))
    if unknown:
        raise ConfigError(where, "wanted concepts that have a reference", ", ".join(unknown[:5]))
    for name, rows in (("generated", generated), ("references", references)):
        if not np.isfinite(rows).all():
            raise CalibrationError(where, f"finite features ({name})", "NaN or infinity")
