"""A folder with every record, small and made by hand, and a reader that checks a page's tags."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BAND = {"minimum": [-1.0, -2.0], "low": [-0.5, -1.0], "high": [0.5, 1.0], "maximum": [1.0, 2.5]}
SHORTCUT = "up_blocks.0.resnets.0.conv_shortcut"
VOID = {"meta", "br", "img", "input", "link", "hr"}


def records() -> dict[str, Any]:
    """Return a fresh set of records by name, as their makers write them."""
    layers = {
        "conv_in": {"role": "conv_in", "inferred": False, "kept": True},
        SHORTCUT: {"role": "resnet.shortcut", "inferred": True, "kept": False, "weight_error": 0.0625},
    }
    steps = {
        "split": {
            "layers": {SHORTCUT: {"parts": [4, 4], "score_db": 1.5, "split": True, "ranges": [[-1, 1], [-9, 9]]}}
        },
        "reconstruct": {"layers": {SHORTCUT: {"error_nearest": 0.5, "error": 0.25}}, "notes": ["a note"]},
    }
    return {
        "quantize": {
            "recipe": {"name": "toy-w4a8", "title": "A toy recipe", "steps": {"reconstruct": {"method": "toy"}}},
            "trajectory": {
                "scheduler": "DDIMScheduler",
                "steps": 2,
                "samples": 4,
                "seed": 0,
                "select": {"name": "uniform"},
            },
            "steps": steps,
            "seconds": {"reconstruct": 75.0},
            "layers": layers,
            "left_float": ["the component 'second' stays float"],
            "budget": "demo",
            "seed": 0,
        },
        "evaluation": _evaluation(),
        "bench": _bench(),
        "ranges": {
            "timesteps": [9, 0],
            "layers": {"conv_in": BAND, SHORTCUT: BAND},
            "concatenations": {SHORTCUT: {"channels": [4, 4], "parts": [BAND, BAND], "bimodality": 1.4}},
        },
        "inspection": {
            "layers": [
                {
                    "path": SHORTCUT,
                    "kernel": "toy_int8",
                    "arithmetic": "integer",
                    "refused": {"toy_int4": "odd channels"},
                    "difference": 1e-6,
                }
            ],
            "operands": [{"path": "a", "site": "q"}],
        },
    }


def _evaluation() -> dict[str, Any]:
    estimate = {"value": 20.0, "low": 19.0, "high": 21.0, "confidence": 0.95}
    return {
        "protocol": {"scheduler": "DDIMScheduler", "samples": 3, "steps": 2, "seed": 0},
        "engine": "torch",
        "against": "toy",
        "distribution": {
            "name": "FD(toy)",
            "value": 12.5,
            "floor": {"samples": 128, "mean": 2.5, "std": 0.5, "draws": 20},
            "test_distance": 0.3,
        },
        "paired": {"psnr": estimate, "mean_psnr": ".inf", "ssim": None, "mse": estimate, "latent_mse": estimate},
        "expectations": [{"expected": "psnr>=25", "value": 20.0, "met": False}],
        "trail": {"samples": 2, "timesteps": [9, 0], "eps_mse": [0.0, 0.2], "x_mse": [0.1, 0.2]},
    }


def _bench() -> dict[str, Any]:
    return {
        "machine": {"processor": "toy", "threads": 1, "torch": "2"},
        "protocol": {"batch": 1, "rounds": 3},
        "rows": [
            {"name": "bfloat16", "median": 20.0, "p10": 19.0, "p90": 21.0, "speedup": {}, "disk_bytes": 2000},
            {
                "name": "torch",
                "median": 10.0,
                "p10": 9.0,
                "p90": 11.0,
                "speedup": {"bfloat16": {"value": 2.04, "low": 1.9, "high": 2.1}},
                "memory": {"peak": 5_000_000, "libraries": 1, "device": None},
            },
        ],
    }


def put(folder: Path, found: dict[str, Any], samples: bool = True) -> Path:
    """Write records where ``write_report`` looks for them."""
    room = folder / "halftone"
    room.mkdir(parents=True, exist_ok=True)
    for name, record in found.items():
        (room / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    if samples:
        pictures = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
        np.savez(room / "samples.npz", quantized=pictures, float=np.roll(pictures, 1, axis=3))
    return folder


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps the attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def everything() -> dict[str, Any]:
    return records()


@pytest.fixture
def write() -> Callable[..., Path]:
    return put


@pytest.fixture
def read() -> type[Reader]:
    return Reader
