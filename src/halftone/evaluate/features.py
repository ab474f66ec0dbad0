"""Feature networks by name, and real images' statistics in their features: what a Fréchet distance is measured with.

A network is an entry of ``NETWORKS``. Its reference is a pair of files: statistics (safetensors) and a card (JSON) with
the floor, that is the distance of real images to themselves, which no model can be expected to beat. ``python -m
halftone.evaluate.features --data FASHION_MNIST.npz`` measures them again.
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from halftone.evaluate.frechet import Statistics, accumulate, distance, statistics
from halftone.foundation.errors import ArtifactError, ConfigError, suggest
from halftone.foundation.files import sha256_of, write_atomically
from halftone.zoo import fashion_classifier, fashion_unet

_SUBSETS = (128, 256, 512, 1000, 2000, 5000, 10000)
_DRAWS = 20


class Extractor(Protocol):
    """A network that gives features ``[N, D]`` of images ``[N, C, H, W]`` in [-1, 1]."""

    def features(self, x: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class FeatureNetwork:
    """A network, and where its reference is.

    Attributes:
        name: ``FD(<name>)`` is what the distance is called.
        image: the shape ``(C, H, W)`` it takes.
        load: returns the network in evaluation mode.
        weights: the file whose SHA-256 identifies it.
        reference: the statistics file; the card is beside it, with ``.json``.
        real: reads ``(data, split)`` as images ``[N, C, H, W]`` in [-1, 1].
    """

    name: str
    image: tuple[int, int, int]
    load: Callable[[], Extractor]
    weights: Path
    reference: Path
    real: Callable[[Path, str], torch.Tensor]

    @property
    def distance_name(self) -> str:
        """What a Fréchet distance in these features is called."""
        return f"FD({self.name})"


def fashion_network(folder: Path) -> FeatureNetwork:
    """Return the fashion classifier whose weights and reference lie in ``folder``."""
    weights = folder / fashion_classifier.FILE
    return FeatureNetwork(
        name=fashion_classifier.NAME,
        image=(1, fashion_unet.IMAGE_SIZE, fashion_unet.IMAGE_SIZE),
        load=functools.partial(fashion_classifier.load, weights),
        weights=weights,
        reference=folder / "fashion_reference.safetensors",
        real=fashion_unet.images,
    )


NETWORKS: Mapping[str, FeatureNetwork] = {fashion_classifier.NAME: fashion_network(fashion_classifier.WEIGHTS.parent)}


@dataclass(frozen=True)
class Floor:
    """The Fréchet distance of ``samples`` training images to all of them: mean and deviation over random choices."""

    samples: int
    mean: float
    std: float
    draws: int


@dataclass(frozen=True)
class Reference:
    """Real images in one network's features.

    Attributes:
        train, test: statistics of both splits.
        test_distance: between the two: the floor for unseen images.
        floors: subsets of the training set of several sizes against all of it.
        network_sha256: the weights they were measured with.
    """

    train: Statistics
    test: Statistics
    test_distance: float
    floors: tuple[Floor, ...]
    network_sha256: str

    def floor(self, samples: int) -> Floor:
        """Return the floor measured at the size nearest (in ratio) to ``samples``."""
        return min(self.floors, key=lambda floor: abs(math.log(floor.samples / samples)))


def network(name: str) -> FeatureNetwork:
    """Return the entry called ``name``.

    Raises:
        ConfigError: there is none.
    """
    if name not in NETWORKS:
        raise ConfigError("feature network", "a known name", f"'{name}'", suggest(name, NETWORKS))
    return NETWORKS[name]


def network_for(image: tuple[int, ...]) -> FeatureNetwork | None:
    """Return the only network that takes images of the shape ``(C, H, W)``; None where there is none, or a choice."""
    fitting = [entry for entry in NETWORKS.values() if entry.image == tuple(image)]
    return fitting[0] if len(fitting) == 1 else None


@torch.no_grad()
def extract(images: np.ndarray | torch.Tensor, using: FeatureNetwork, batch: int = 500) -> Iterator[np.ndarray]:
    """Yield features ``[n, D]`` of ``images`` ``[N, C, H, W]`` in [0, 1], a batch at a time."""
    pixels = torch.as_tensor(images)
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != using.image or not pixels.is_floating_point():
        expected = f"floating point images [N, {', '.join(map(str, using.image))}] in [0, 1]"
        raise ConfigError(using.distance_name, expected, f"{list(pixels.shape)} {pixels.dtype}")
    model = using.load()
    for part in pixels.split(batch):
        yield model.features(part.float() * 2 - 1).numpy()


def feature_statistics(images: np.ndarray | torch.Tensor, name: str, batch: int = 500) -> Statistics:
    """Return the statistics of ``images`` ``[N, C, H, W]`` in [0, 1] in the features of the network called ``name``."""
    return accumulate(extract(images, network(name), batch))


@functools.cache
def reference(name: str) -> Reference:
    """Return the shipped reference of the network called ``name``.

    Raises:
        ArtifactError: a file is absent or damaged, or was measured with other weights than those installed.
    """
    entry = network(name)
    fix = "Measure it again: python -m halftone.evaluate.features --data FASHION_MNIST.npz"
    try:
        arrays = {key: value.numpy() for key, value in load_file(entry.reference).items()}
        card = json.loads(entry.reference.with_suffix(".json").read_text(encoding="utf-8"))
        train, test = (
            Statistics(arrays[f"{split}.mean"], arrays[f"{split}.covariance"], int(arrays[f"{split}.count"]))
            for split in ("train", "test")
        )
        floors = tuple(Floor(**floor) for floor in card["floors"])
        found = Reference(train, test, float(card["test_distance"]), floors, card["network_sha256"])
        installed = sha256_of(entry.weights)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(str(entry.reference), "reference statistics and their card", str(error), fix) from error
    if found.network_sha256 != installed:
        got = f"those of {found.network_sha256[:12]}"
        raise ArtifactError(str(entry.reference), f"statistics of the network {installed[:12]}", got, fix)
    return found


def build_reference(
    entry: FeatureNetwork, data: Path, out: Path | None = None, seed: int = 0, say: Callable[[str], None] = print
) -> Reference:
    """Measure the reference of a network on the data set at ``data`` and write both its files.

    Args:
        out: the statistics file; None means ``entry.reference``.
        seed: of the random subsets.
    """
    out = out or entry.reference
    features = {s: np.concatenate(list(extract((entry.real(data, s) + 1) / 2, entry))) for s in ("train", "test")}
    train, test = statistics(features["train"]), statistics(features["test"])
    random, floors = np.random.default_rng(seed), []
    for size in (size for size in _SUBSETS if size < train.count):
        picks = [random.choice(train.count, size, replace=False) for _ in range(_DRAWS)]
        found = [distance(statistics(features["train"][pick]), train) for pick in picks]
        floors.append(Floor(size, float(np.mean(found)), float(np.std(found, ddof=1)), _DRAWS))
        say(f"{entry.distance_name} of {size} training images: {floors[-1].mean:.4f} +- {floors[-1].std:.4f}")
    result = Reference(train, test, distance(test, train), tuple(floors), sha256_of(entry.weights))
    say(f"{entry.distance_name} of the test split: {result.test_distance:.4f}")
    arrays = {}
    for split, whole in (("train", train), ("test", test)):
        arrays[f"{split}.mean"] = torch.from_numpy(whole.mean)
        arrays[f"{split}.covariance"] = torch.from_numpy(whole.covariance)
        arrays[f"{split}.count"] = torch.tensor(whole.count)
    card = {
        "name": entry.distance_name,
        "network": entry.name,
        "network_sha256": result.network_sha256,
        "command": f"python -m halftone.evaluate.features --network {entry.name} --data FASHION_MNIST.npz --seed {seed}",
        "train": train.count,
        "test": test.count,
        "features": int(train.mean.size),
        "total_variance": train.total_variance,
        "test_distance": result.test_distance,
        "floors": [asdict(floor) for floor in floors],
    }
    write_atomically(out, save(arrays))
    write_atomically(out.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the reference statistics of a feature network.")
    parser.add_argument("--network", default=fashion_classifier.NAME, choices=sorted(NETWORKS))
    parser.add_argument("--data", type=Path, required=True, help="fashion_mnist.npz")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    build_reference(network(asked.network), asked.data, asked.out, asked.seed)
