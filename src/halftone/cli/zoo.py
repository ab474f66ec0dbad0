"""``halftone zoo``: the models that come with Halftone, and how they are made again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli.options import Json, Overwrite, Seed
from halftone.cli.output import emit, table, working
from halftone.foundation.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

    from halftone.foundation.progress import Progress

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def listing(context: typer.Context, json: Json = False) -> None:
    """List the zoo's models; `train NAME` makes one.

    \b
    Examples:
      halftone zoo
      halftone zoo train fashion-unet --data fashion_mnist.npz --minutes 240
      halftone zoo train emoji-sd --data FOLDER --minutes 360
    """
    if context.invoked_subcommand is not None:
        return
    with working():
        from halftone.zoo.catalog import CATALOG

        found = [
            {"name": e.name, "kind": e.kind, "title": e.title, "data": e.data, "installed": e.installed}
            for e in CATALOG
        ]
    rows = [[e["name"], e["kind"], "yes" if e["installed"] else "no", e["title"], e["data"]] for e in found]
    headings = ["name", "kind", "weights", "what it is", "data"]
    emit({"models": found}, json, lambda: table(headings, rows))


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A model of the zoo.")],
    data: Annotated[
        Path,
        typer.Option(help="Its data set: fashion_mnist.npz, or the folder with the emoji and captions."),
    ],
    minutes: Annotated[float, typer.Option(min=0.0, help="Training time; a pipeline's budget.")] = 240.0,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of checkpoints; the same command goes on with them. Default: OUTPUT.work, or NAME.work here."
        ),
    ] = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. Default: where the weights ship.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="What a card measures. Default: 2000 images for a distance, or 200 prompts, twice, for the alignment.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a zoo model from its data set and write weights and card.

    A pipeline's training that was killed goes on from its last checkpoint with the same command.

    \b
    Examples:
      halftone zoo train fashion-unet --data fashion_mnist.npz --minutes 240
      halftone zoo train emoji-sd --data FOLDER --minutes 360 --work emoji.work -o emoji
      halftone zoo train fashion-classifier --data fashion_mnist.npz
    """
    with working() as progress:
        from halftone.foundation.files import check_output
        from halftone.zoo.catalog import entry

        found = entry(name)
        if found.name != "emoji-sd":
            _check_data(data)
        if found.kind == "features":
            if output is not None:
                raise ConfigError("-o", "none", str(output), "Feature networks are used from where they ship.")
            card = _train_classifier(data, seed, progress)
            where = found.path
        else:
            where = output or found.path
            check_output(where, overwrite)
            place = work or Path(f"{output or name}.work")
            if found.name == "emoji-sd":
                from halftone.cli.zoo_emoji import train_emoji

                card = train_emoji(data, minutes, place, seed, where, samples or 200, overwrite, progress)
            else:
                card = _train_denoiser(name, data, minutes, place, seed, where, samples or 2000, overwrite, progress)
    emit(card, json, lambda: f"{where}: trained {name}; see its card")


def _check_data(data: Path) -> None:
    import zipfile

    import numpy as np

    wanted = {f"{split}_{part}" for split in ("train", "test") for part in ("images", "labels")}
    try:
        with np.load(data) as archive:
            missing = wanted - set(archive.files)
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise ConfigError(f"--data {data}", "a Fashion-MNIST npz", type(error).__name__) from error
    if missing:
        raise ConfigError(f"--data {data}", "arrays " + ", ".join(sorted(wanted)), "no " + ", ".join(sorted(missing)))


def _train_classifier(data: Path, seed: int, progress: "Progress") -> dict[str, Any]:
    from halftone.evaluate.features import build_reference
    from halftone.zoo import fashion_classifier as classifier

    card = classifier.train(data, training=classifier.ClassifierTraining(seed=seed), say=progress.say)
    build_reference(classifier.NAME, data, say=progress.say)
    return card


def _train_denoiser(
    name: str,
    data: Path,
    minutes: float,
    work: Path,
    seed: int,
    output: Path,
    samples: int,
    overwrite: bool,
    progress: "Progress",
) -> dict[str, Any]:
    import torch

    from halftone.artifact import save_pipeline
    from halftone.zoo import fashion_unet
    from halftone.zoo.denoiser_training import Training, train

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = fashion_unet.build(seed)
    facts = train(pipe, fashion_unet.images(data), Training(minutes=minutes, seed=seed), work, device, say=progress.say)
    # Half precision is what ships, so it is what the card measures.
    cast(pipe.unet, torch.float16)
    cast(pipe.unet, torch.float32)
    card, picture = _card(name, pipe, facts, samples, minutes, seed, device, progress)
    from json import dumps

    readme = _readme(card)
    cast(pipe.unet, torch.float16)
    beside: dict[str, bytes | str] = {
        "card.json": dumps(card, indent=1) + "\n",
        "README.md": readme,
        "samples.png": picture,
    }
    save_pipeline(pipe, output, overwrite, beside)
    return card


def cast(module: "nn.Module", dtype: "torch.dtype") -> None:
    """Change the type of all parameters in place."""
    # diffusers warns about `to(dtype)`, for models that must not be cast as a whole; this one may be.
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _card(
    name: str,
    pipe: "DiffusionPipeline",
    facts: dict[str, Any],
    samples: int,
    minutes: float,
    seed: int,
    device: str,
    progress: "Progress",
) -> tuple[dict[str, Any], bytes]:
    """Return the facts about a trained model, and a picture of its first samples."""
    import io

    from halftone.cli.generate import grid
    from halftone.evaluate.compare import judge
    from halftone.evaluate.sample import sample

    pipe.to(device)
    drawn = sample(pipe, samples, 50, seed, 64, progress)
    buffer = io.BytesIO()
    grid(drawn.images[:64]).save(buffer, format="PNG")
    judged = judge(drawn).plain()
    card = {
        "name": name,
        "data": "Fashion-MNIST, 60,000 training images; https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, Zalando SE (data); Apache-2.0 (weights)",
        "command": f"halftone zoo train {name} --data FASHION_MNIST.npz --minutes {minutes:g} --seed {seed}",
        "parameters": sum(parameter.numel() for parameter in pipe.unet.parameters()),
        "distribution": judged["distribution"],
        "protocol": judged["protocol"],
        **facts,
    }
    return card, buffer.getvalue()


def _readme(card: dict[str, Any]) -> str:
    """Return the card for readers, with the header that model hubs read."""
    far, how, curve, machine = card["distribution"], card["protocol"], card["curve"], card["machine"]
    cuda = f"{machine['cuda']}, " if machine["cuda"] else ""
    losses = "\n".join(
        f"| {point['step']} | {point['minutes']} | {point['loss']} |" for point in curve[:: max(1, len(curve) // 12)]
    )
    measured = "no reference for a Fréchet distance"
    if far:
        floor = far["floor"]
        measured = (
            f"{far['name']} {far['value']:.2f} on {how['samples']} samples ({how['scheduler']}, {how['steps']} steps, seed "
            f"{how['seed']}); floor {floor['mean']:.2f} on {floor['samples']} real images, test split {far['test_distance']:.2f}"
        )
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# {card["name"]}

An unconditional diffusion model of garments, 32x32, {card["parameters"] / 1e6:.1f} M parameters in half precision.

- Data: {card["data"]}; {card["licence"]}
- Made with `{card["command"]}`: {card["steps"]} steps, {card["images"]} images, {card["seconds"] / 60:.0f} minutes
- Machine: {cuda}{machine["processor"]}, {machine["threads"]} threads, torch {machine["torch"]}
- {measured}

![samples](samples.png)

| step | minutes | loss |
|---|---|---|
{losses}
"""
