"""The shipped classifier, and its training on a few images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from halftone.foundation.errors import ArtifactError, ConfigError
from halftone.zoo.fashion_classifier import (
    CLASSES,
    FEATURES,
    TOTAL_VARIANCE,
    WEIGHTS,
    ClassifierTraining,
    accuracy,
    augment,
    fingerprint,
    labels,
    load,
    train,
)
from halftone.zoo.fashion_unet import images

# Beside the checkout; absent from a clone, and then the shipped card is all there is to check.
DATA = Path(__file__).parents[3] / "shared" / "data" / "fashion_mnist.npz"


def test_the_shipped_weights_fit_the_card() -> None:
    card = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["sha256"] == fingerprint()
    assert card["test_accuracy"] >= 0.93
    assert WEIGHTS.stat().st_size < 2e6
    assert tuple(card["classes"]) == CLASSES


def test_features_lead_to_the_logits() -> None:
    model = load()
    x = torch.rand((4, 1, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
    pooled = model.features(x)
    assert pooled.shape == (4, FEATURES) and not model.training
    torch.testing.assert_close(model.head(pooled / model.scale), model(x))
    torch.testing.assert_close(model.features(x[1:2]), pooled[1:2])  # no dependence on the neighbours
    with pytest.raises(ConfigError):
        model(torch.zeros(1, 1, 28, 28))


@pytest.mark.skipif(not DATA.exists(), reason="Fashion-MNIST is not here")
def test_it_names_test_images() -> None:
    model = load()
    assert accuracy(model, images(DATA, "test")[:500], labels(DATA, "test")[:500]) > 0.89


def test_augmentation_only_mirrors_and_moves() -> None:
    batch = torch.full((64, 1, 8, 8), -1.0)
    batch[:, 0, 3, 2] = 1.0
    moved = augment(batch, 1, torch.Generator().manual_seed(0))
    assert moved.shape == batch.shape
    places = moved[:, 0].flatten(1).argmax(1)
    rows, columns = places // 8, places % 8
    assert (moved == 1).flatten(1).sum(1).eq(1).all()
    assert set(rows.tolist()) == {2, 3, 4}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5, 6}  # 5 mirrors 2
    assert torch.equal(augment(batch, 0, torch.Generator().manual_seed(0)).amax(3), batch.amax(3))


def test_training_writes_weights_and_card(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 64)
    pixels = (truth[:, None, None] * 200 + random.integers(0, 50, (64, 28, 28))).astype(np.uint8)
    np.savez(
        tmp_path / "data.npz", train_images=pixels, train_labels=truth, test_images=pixels[:8], test_labels=truth[:8]
    )
    out = tmp_path / "net.safetensors"
    card = train(tmp_path / "data.npz", out, ClassifierTraining(epochs=2, batch=32), say=lambda line: None)
    assert card == json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    x = images(tmp_path / "data.npz")
    assert load(out).features(x).var(dim=0).sum().item() == pytest.approx(TOTAL_VARIANCE, rel=1e-3)
    out.write_bytes(out.read_bytes()[:100])
    with pytest.raises(ArtifactError):
        load(out)
