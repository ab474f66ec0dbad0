"""The rank of the right concept."""

import numpy as np
import pytest

from halftone.evaluate.alignment import alignment, concept_ranks
from halftone.foundation.errors import CalibrationError, ConfigError

REFERENCES = np.array([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])
CONCEPTS = ["right", "up", "left", "down"]


def test_real_pictures_are_nearest_to_themselves() -> None:
    random = np.random.default_rng(0)
    pictures = random.normal(size=(50, 8))
    names = [f"c{n}" for n in range(50)]
    assert not concept_ranks(pictures, names, pictures, names).any()
    measured = alignment("any", [pictures, pictures + 1e-3], names, pictures, names)
    assert (measured.top1, measured.top5, measured.prompts, measured.concepts) == (1.0, 1.0, 50, 50)


def test_ranks_count_nearer_concepts() -> None:
    generated = np.array([[1.0, 0.1], [0.1, 1.0], [1.0, 0.1]])
    assert concept_ranks(generated, ["right", "right", "left"], REFERENCES, CONCEPTS).tolist() == [0, 1, 3]
    measured = alignment("any", [generated], ["right", "right", "left"], REFERENCES, CONCEPTS)
    assert measured.top1 == pytest.approx(1 / 3) and measured.top5 == 1.0 and measured.top1_by_seed == (measured.top1,)


def test_a_concept_is_as_near_as_its_nearest_picture() -> None:
    concepts = ["hand", "up", "hand", "down"]
    assert concept_ranks(np.array([[-1.0, 0.1]]), ["hand"], REFERENCES, concepts).tolist() == [0]


def test_ties_count_against_the_picture() -> None:
    same = np.zeros((1, 2))
    assert concept_ranks(same, ["up"], REFERENCES, CONCEPTS).tolist() == [3]


def test_what_does_not_fit_is_refused() -> None:
    one = REFERENCES[:1]
    with pytest.raises(ConfigError, match="one network"):
        concept_ranks(np.zeros((1, 3)), ["up"], REFERENCES, CONCEPTS)
    with pytest.raises(ConfigError, match="one concept for each"):
        concept_ranks(one, ["up", "left"], REFERENCES, CONCEPTS)
    with pytest.raises(ConfigError, match="sideways"):
        concept_ranks(one, ["sideways"], REFERENCES, CONCEPTS)
    with pytest.raises(CalibrationError):
        concept_ranks(one * np.nan, ["up"], REFERENCES, CONCEPTS)
    with pytest.raises(ConfigError, match="one seed"):
        alignment("any", [], [], REFERENCES, CONCEPTS)
