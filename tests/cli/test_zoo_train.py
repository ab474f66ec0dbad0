"""``halftone zoo train``: what it writes and where, and what it refuses."""

import functools
import json
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline
from tests.emoji import SMALL, write_emoji

from halftone.cli import zoo_fashion
from halftone.cli.zoo import _trainers
from halftone.foundation.files import sha256_of
from halftone.zoo import catalog, fashion_classifier

from .conftest import Halftone


@pytest.fixture
def garments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Fashion-MNIST of four black images, and an architecture to match."""
    from halftone.zoo import fashion_unet

    small = {**fashion_unet.UNET, "block_out_channels": (16, 16, 16, 16), "attention_head_dim": 16}
    monkeypatch.setattr(fashion_unet, "UNET", small)
    data = {f"{s}_images": np.zeros((4, 28, 28), np.uint8) for s in ("train", "test")}
    data |= {f"{s}_labels": np.zeros(4, np.uint8) for s in ("train", "test")}
    np.savez(tmp_path / "data.npz", **data)
    return tmp_path / "data.npz"


def test_zoo_train(halftone: Halftone, garments: Path, tmp_path: Path) -> None:
    how = ("--data", garments, "--minutes", 0, "--samples", 2, "-o", tmp_path / "out")
    done = halftone("zoo", "train", "fashion-unet", *how, "--json")
    assert done.code == 0, done.err
    assert done.json["name"] == "fashion-unet" and done.json["distribution"]["name"] == "FD(fashion-classifier)"
    assert {"card.json", "README.md", "samples.png", "unet"} <= {p.name for p in (tmp_path / "out").iterdir()}
    machine = json.loads((tmp_path / "out.work" / "facts.json").read_text())["machine"]
    assert done.json["machine"] == machine and machine["threads"] == torch.get_num_threads()
    assert f"{machine['processor']}, {machine['threads']} threads" in (tmp_path / "out" / "README.md").read_text()
    DDIMPipeline.from_pretrained(tmp_path / "out")
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    assert "no test_images" in halftone("zoo", "train", "fashion-unet", "--data", tmp_path / "other.npz").err


def test_the_cards_command_works_as_printed_from_anywhere(
    halftone: Halftone, garments: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    how = ("--data", garments, "--minutes", 0, "--samples", 2, "--seed", 3)
    done = halftone("zoo", "train", "fashion-unet", *how)
    assert done.code == 0, done.err
    assert {path.name for path in Path().iterdir()} == {"fashion-unet", "fashion-unet.work"}
    card = json.loads(Path("fashion-unet", "card.json").read_text())
    line = card["command"].replace("FASHION_MNIST.npz", str(garments))
    again = halftone(*shlex.split(line)[1:])
    assert again.code == 2 and "one that holds files" in again.err and "--overwrite" in again.err
    (tmp_path / "another").mkdir()
    monkeypatch.chdir(tmp_path / "another")
    done = halftone(*shlex.split(line)[1:])
    assert done.code == 0, done.err
    repeated = json.loads(Path("fashion-unet", "card.json").read_text())
    assert repeated["command"] == card["command"] and repeated["distribution"] == card["distribution"]


def test_the_classifier_goes_to_a_folder_like_all_others(
    halftone: Halftone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = {path: sha256_of(path) for path in fashion_classifier.WEIGHTS.parent.iterdir()}
    assert len(shipped) == 4
    quick = functools.partial(fashion_classifier.ClassifierTraining, epochs=1, batch=16)
    monkeypatch.setattr(fashion_classifier, "ClassifierTraining", quick)
    monkeypatch.chdir(tmp_path)
    random, data = np.random.default_rng(0), tmp_path / "data.npz"
    parts = {f"{s}_images": random.integers(0, 256, (n, 28, 28), np.uint8) for s, n in (("train", 144), ("test", 8))}
    np.savez(data, **parts, train_labels=np.arange(144) % 10, test_labels=np.arange(8))
    how = ("zoo", "train", "fashion-classifier", "--data", data)
    done = halftone(*how, "--seed", 2, "--json")
    assert done.code == 0, done.err
    folder = Path("fashion-classifier")
    assert {path.name for path in folder.iterdir()} == {path.name for path in shipped}
    card = json.loads((folder / "fashion_classifier.json").read_text())
    assert card == done.json and card["command"].endswith("--seed 2") and card["machine"]["threads"] > 0
    reference = json.loads((folder / "fashion_reference.json").read_text())
    assert reference["network_sha256"] == card["sha256"] == sha256_of(folder / fashion_classifier.FILE)
    assert [floor["samples"] for floor in reference["floors"]] == [128]
    assert halftone(*how).code == 2
    assert halftone(*how, "--overwrite", "--seed", 2).code == 0
    assert card["sha256"] == sha256_of(folder / fashion_classifier.FILE)
    assert shipped == {path: sha256_of(path) for path in shipped}


def test_each_model_of_the_zoo_can_be_trained() -> None:
    assert sorted(_trainers()) == catalog.names()


def test_the_distance_is_measured_on_the_way(
    halftone: Halftone, garments: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zoo_fashion, "_COARSE_SAMPLES", 2)
    monkeypatch.setattr(zoo_fashion, "_COARSE_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    how = ("--data", garments, "--samples", 2, "--minutes", 60, "--measure-every", 1e-6, "--patience", 1)
    done = halftone("zoo", "train", "fashion-unet", *how, "--json")
    assert done.code == 0, done.err
    card = done.json
    assert card["stopped"] == "the distance had not improved in 1 measurement"
    assert card["command"].endswith("--minutes 60 --samples 2 --measure-every 1e-06 --patience 1 --seed 0")
    distances = [point["distance"] for point in card["curve"]]
    assert len(distances) == card["steps"] >= 2 and distances[-1] >= distances[-2]
    assert card["watch"]["samples"] == 2 and "FD(fashion-classifier)" in done.err
    readme = Path("fashion-unet", "README.md").read_text()
    assert card["stopped"] in readme and f"| {distances[-1]:.2f} |" in readme


def test_an_interrupted_training_goes_on_with_the_line_it_prints(
    halftone: Halftone,
    garments: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    from halftone.zoo import denoiser_training

    # A test run started in the background by a shell inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.chdir(tmp_path)
    original = denoiser_training.denoising_loss

    def interrupting(*given):
        signal.raise_signal(signal.SIGINT)
        return original(*given)

    how = ("zoo", "train", "fashion-unet", "--data", garments, "--samples", 2, "--minutes", 0.0001)
    with monkeypatch.context() as patch:
        patch.setattr(denoiser_training, "denoising_loss", interrupting)
        stopped = halftone(*how)
    assert stopped.code == 130 and "interrupted at step 1" in stopped.err and not Path("fashion-unet").exists()
    other = halftone(*how, "--seed", 1)
    assert other.code == 2 and "expected seed 0, as in this checkpoint, got seed 1" in other.err
    with np.load(garments) as archive:
        np.savez(tmp_path / "other.npz", **{name: 1 - array for name, array in archive.items()})
    other = halftone(*how, "--data", tmp_path / "other.npz")
    assert other.code == 2 and "checkpoint.pt: expected data " in other.err
    done = halftone(*shlex.split(stopped.err.strip().splitlines()[-1])[1:])
    assert done.code == 0 and "resumed at step 1" in done.err, done.err


def test_a_training_without_checkpoints_names_no_line(
    halftone: Halftone, garments: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fashion_classifier, "train", interrupt)
    monkeypatch.chdir(tmp_path)
    stopped = halftone("zoo", "train", "fashion-classifier", "--data", garments)
    assert stopped.code == 130 and stopped.err.strip().endswith("error: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


def test_patience_needs_measurements(halftone: Halftone, garments: Path, tmp_path: Path) -> None:
    how = ("--data", garments, "--measure-every", 0, "--patience", 2, "-o", tmp_path / "out")
    done = halftone("zoo", "train", "fashion-unet", *how)
    assert done.code == 2 and "--patience: expected measurements to wait for, got 2 with --measure-every 0" in done.err


@pytest.mark.parametrize("option", ["--minutes", "--work", "--samples"])
def test_options_that_a_training_does_not_have(halftone: Halftone, option: str, tmp_path: Path) -> None:
    done = halftone("zoo", "train", "fashion-classifier", "--data", tmp_path, option, 3)
    assert done.code == 2 and f"error: {option}: expected one of --data, --seed, --output" in done.err


def test_zoo_emoji_is_not_there_until_it_is_trained(
    halftone: Halftone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(catalog, "WEIGHTS", tmp_path)
    absent = halftone("generate", "zoo:emoji-sd", "--prompt", "red heart", "-o", tmp_path / "a.png")
    assert absent.code == 2 and "got none. Train it: halftone zoo train emoji-sd --data FOLDER" in absent.err
    assert absent.err.rstrip().endswith(f"-o {tmp_path / 'emoji-sd'}")  # else zoo:emoji-sd would still not be there
    listed = {each["name"]: each for each in halftone("zoo", "--json").json["models"]}
    assert listed["emoji-sd"]["installed"] is False
    done = halftone("zoo", "train", "emoji-sd", "--data", tmp_path, "--work", tmp_path / "work")
    assert done.code == 2 and "noto_emoji_captions.jsonl, got no noto_emoji_128.zip" in done.err


def test_zoo_train_emoji(halftone: Halftone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from halftone.zoo import emoji_sd

    monkeypatch.setattr(emoji_sd, "STANDARD", SMALL)
    data, out = write_emoji(tmp_path / "data"), tmp_path / "out"
    how = ("--data", data, "--minutes", 0.02, "--samples", 4, "--work", tmp_path / "work", "-o", out)
    done = halftone("zoo", "train", "emoji-sd", *how, "--json")
    assert done.code == 0, done.err
    assert done.json["name"] == "emoji-sd" and done.json["denoiser"]["steps"] > 0
    (measured,) = done.json["alignment"]
    assert (
        measured["features"] == "emoji-sd latents" and measured["prompts"] == 4 and len(measured["top1_by_seed"]) == 2
    )
    assert 0 <= measured["top1"] <= measured["top5"] <= 1
    made = {p.name for p in out.iterdir()}
    assert {"card.json", "README.md", "samples.png", "alignment.safetensors", "prompts.txt"} <= made
    others = (out / "prompts.txt").read_text().splitlines()
    assert len(others) == 3, "of seven concepts four are evaluated"
    assert "Data: Noto emoji, 9 images of 7 concepts" in (out / "README.md").read_text()
    assert {"vocab.json", "merges.txt"} <= {p.name for p in (out / "tokenizer").iterdir()}
    drawn = halftone("generate", out, "-n", 2, "--prompt", "red circle", "--steps", 2, "-o", tmp_path / "grid.png")
    assert drawn.code == 0, drawn.err
