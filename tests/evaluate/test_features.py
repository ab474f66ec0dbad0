"""Feature networks and their references."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from halftone.evaluate import features
from halftone.evaluate.features import NETWORKS, build_reference, feature_statistics, network, network_for, reference
from halftone.evaluate.frechet import distance
from halftone.foundation.errors import ArtifactError, ConfigError


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_each_reference_is_at_no_distance_from_itself_and_above_its_floor(name: str) -> None:
    real = reference(name)
    assert distance(real.train, real.train) == pytest.approx(0, abs=1e-6)
    assert real.test_distance == pytest.approx(distance(real.test, real.train), rel=1e-6)
    means = [floor.mean for floor in sorted(real.floors, key=lambda floor: floor.samples)]
    assert means == sorted(means, reverse=True)  # more images, nearer
    assert real.floor(2100).samples == 2000


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_each_network_gives_features_of_the_references_width(name: str) -> None:
    images = np.random.default_rng(0).random((5, *network(name).image), dtype=np.float32)
    found = feature_statistics(images, name, batch=2)
    assert found.count == 5
    assert found.mean.shape == reference(name).train.mean.shape
    assert distance(found, reference(name).train) > reference(name).test_distance


def test_wrong_input_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        network("fashion-clasifier")
    with pytest.raises(ConfigError, match="FD"):
        feature_statistics(np.zeros((2, 3, 8, 8), np.float32), "fashion-classifier")
    assert network_for((3, 999, 999)) is None


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> features.FeatureNetwork:
    """A feature network that is added as data: the mean of each channel."""

    class Toy(torch.nn.Module):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    def real(data: Path, split: str) -> torch.Tensor:
        return torch.rand((300, 2, 4, 4), generator=torch.Generator().manual_seed(len(split))) * 2 - 1

    (tmp_path / "toy.bin").write_bytes(b"weights")
    entry = features.FeatureNetwork("toy", (2, 4, 4), Toy, tmp_path / "toy.bin", tmp_path / "ref.safetensors", real)
    monkeypatch.setattr(features, "NETWORKS", {"toy": entry})
    features.reference.cache_clear()
    return entry


def test_a_reference_is_measured_written_and_read(toy: features.FeatureNetwork) -> None:
    made = build_reference(toy, Path("unused"), say=lambda line: None)
    read = reference("toy")
    np.testing.assert_array_equal(read.train.covariance, made.train.covariance)
    assert read.floors == made.floors and [floor.samples for floor in read.floors] == [128, 256]
    assert json.loads(toy.reference.with_suffix(".json").read_text())["name"] == "FD(toy)"


def test_a_reference_of_other_weights_is_refused(toy: features.FeatureNetwork) -> None:
    build_reference(toy, Path("unused"), say=lambda line: None)
    toy.weights.write_bytes(b"others")
    with pytest.raises(ArtifactError, match="statistics of the network"):
        reference("toy")
    toy.reference.write_bytes(b"damaged")
    with pytest.raises(ArtifactError):
        reference("toy")
    assert dataclasses.replace(toy, name="x").distance_name == "FD(x)"
