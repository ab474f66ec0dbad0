"""``zoo:fashion-classifier``: a small residual network that names Fashion-MNIST garments.

Its pooled features are what ``FD(fashion-classifier)`` is measured in (``halftone.evaluate.features``). Weights and
card ship in ``weights/fashion-classifier``; ``train`` makes them again from the data set.
"""

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from halftone.foundation.errors import ArtifactError, ConfigError
from halftone.foundation.files import sha256_of, write_atomically
from halftone.kernels.machine import machine
from halftone.zoo.fashion_unet import IMAGE_SIZE, images

NAME = "fashion-classifier"
FILE = "fashion_classifier.safetensors"
WEIGHTS = Path(__file__).parent / "weights" / NAME / FILE
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FEATURES = 128
# The features are scaled so that their variances over the training set add up to this. A Fréchet distance then reads in
# thousandths of the data's own spread, whatever the network's weights happened to grow to.
TOTAL_VARIANCE = 1000.0


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut; a stride averages the shortcut down."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(inner + self.shortcut(x))


class FashionClassifier(nn.Module):
    """382 thousand parameters, 17 million multiply-adds an image.

    ``forward`` maps ``[N, 1, 32, 32]`` in [-1, 1] to logits ``[N, 10]`` in the order of ``CLASSES``; ``features`` to
    the averaged last activations ``[N, 128]``, scaled to a total variance of 1000 over the training set.
    """

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(_Block(32, 32, 1), _Block(32, 64, 2), _Block(64, 64, 1), _Block(64, FEATURES, 2))
        self.head = nn.Linear(FEATURES, len(CLASSES))
        self.register_buffer("scale", torch.ones(()))

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or tuple(x.shape[1:]) != (1, IMAGE_SIZE, IMAGE_SIZE):
            raise ConfigError(NAME, f"images [N, 1, {IMAGE_SIZE}, {IMAGE_SIZE}]", str(list(x.shape)))
        return self.blocks(self.stem(x)).mean(dim=(2, 3))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[N, 128]`` features of ``x`` ``[N, 1, 32, 32]`` in [-1, 1]."""
        return self._pooled(x) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self._pooled(x))


@dataclass(frozen=True)
class ClassifierTraining:
    """Hyper-parameters: one cycle of SGD with Nesterov momentum, label smoothing, flips, shifts, averaged weights."""

    epochs: int = 10
    batch: int = 256
    lr: float = 0.2  # the peak
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    shift: int = 1  # pixels, each way
    ema: float = 0.995
    seed: int = 0


def fingerprint(weights: Path = WEIGHTS) -> str:
    """Return the SHA-256 of a weights file, the identity of the feature network in it."""
    return sha256_of(weights)


def load(weights: Path = WEIGHTS) -> FashionClassifier:
    """Return the trained network in evaluation mode.

    Raises:
        ArtifactError: the file is absent, damaged, or holds another network.
    """
    model = FashionClassifier()
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        where = shlex.quote(str(weights.parent))
        fix = f"Run: halftone zoo train {NAME} --data FASHION_MNIST.npz -o {where} --overwrite"
        raise ArtifactError(str(weights), "the fashion classifier's weights", str(error), fix) from error
    return model.eval().requires_grad_(False)


def labels(data: Path, split: str = "train") -> torch.Tensor:
    """Read ``{split}_labels`` from a Fashion-MNIST npz as int64 ``[N]``."""
    with np.load(data) as archive:
        return torch.from_numpy(archive[f"{split}_labels"].astype(np.int64))


def augment(batch: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of ``batch`` ``[N, 1, H, W]`` and move each image up to ``shift`` pixels, filling with black (-1)."""
    count, _, height, width = batch.shape
    padded = nn.functional.pad(batch, [shift] * 4, value=-1.0)[:, 0]
    offset = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
    rows = offset[0] + torch.arange(height)
    columns = offset[1] + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picked = padded[torch.arange(count).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]
    return picked.unsqueeze(1)


@torch.no_grad()
def accuracy(model: nn.Module, pictures: torch.Tensor, truth: torch.Tensor, batch: int = 1000) -> float:
    """Return the share of ``pictures`` ``[N, 1, 32, 32]`` whose class is named right."""
    named = torch.cat([model(part).argmax(1) for part in pictures.split(batch)])
    return (named == truth).double().mean().item()


def _fit(
    pictures: torch.Tensor, truth: torch.Tensor, how: ClassifierTraining, say: Callable[[str], None]
) -> FashionClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = FashionClassifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(how.seed)
    optimizer = torch.optim.SGD(model.parameters(), how.lr, momentum=0.9, nesterov=True, weight_decay=how.weight_decay)
    per_epoch = len(pictures) // how.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, total_steps=how.epochs * per_epoch, pct_start=0.2)
    began, done = time.monotonic(), 0
    for epoch in range(how.epochs):
        order = torch.randperm(len(pictures), generator=generator)[: per_epoch * how.batch]
        total = 0.0
        for part in order.split(how.batch):
            batch = augment(pictures[part], how.shift, generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch)
            loss = nn.functional.cross_entropy(logits.float(), truth[part], label_smoothing=how.smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            keep = min(how.ema, (1 + done) / (10 + done))
            for name, value in model.state_dict().items():
                # Counters of batches are integers and are not averaged.
                average[name].lerp_(value, 1 - keep) if value.is_floating_point() else average[name].copy_(value)
            total, done = total + loss.item(), done + 1
        left = (time.monotonic() - began) / done * (how.epochs * per_epoch - done)
        say(f"epoch {epoch + 1}/{how.epochs}  loss {total / per_epoch:.4f}  ETA {left / 60:.1f} min")
    model.load_state_dict(average)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _set_scale(model: FashionClassifier, pictures: torch.Tensor) -> None:
    pooled = torch.cat([model.features(part) for part in pictures.split(1000)]).double()
    model.scale.copy_((TOTAL_VARIANCE / pooled.var(dim=0).sum()).sqrt())


def train(
    data: Path,
    out: Path,
    training: ClassifierTraining | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """Train on the Fashion-MNIST npz ``data`` and write ``out`` and its card (``out`` with ``.json``).

    The test split is read once, at the end, for the accuracy in the card, which is returned. Twelve minutes on
    one core; the network is too small to gain from many (``OMP_NUM_THREADS=1``).
    """
    how = training or ClassifierTraining()
    pictures, began = images(data), time.monotonic()
    model = _fit(pictures, labels(data), how, say)
    seconds = time.monotonic() - began
    _set_scale(model, pictures)
    score = accuracy(model, images(data, "test"), labels(data, "test"))
    write_atomically(out, save({k: v.contiguous() for k, v in model.state_dict().items()}))
    card = {
        "name": NAME,
        "data": "Fashion-MNIST, 60,000 training images; https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, Zalando SE (data); Apache-2.0 (weights)",
        "input": f"[N, 1, {IMAGE_SIZE}, {IMAGE_SIZE}] in [-1, 1], padded with black",
        "classes": list(CLASSES),
        "features": FEATURES,
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_accuracy": score,
        "sha256": fingerprint(out),
        "command": f"halftone zoo train {NAME} --data FASHION_MNIST.npz --seed {how.seed}",
        "training": asdict(how),
        "seconds": round(seconds),
        "machine": machine(),
    }
    write_atomically(out.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    say(f"test accuracy {100 * score:.2f} %, {seconds / 60:.1f} min")
    return card
