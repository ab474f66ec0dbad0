"""``halftone zoo``: the models that come with Halftone, and how they are made again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli.options import Json, Overwrite, Seed
from halftone.cli.output import emit, table, working

if TYPE_CHECKING:
    from halftone.cli.zoo_training import Request
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
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Training time; a pipeline's budget. Default: 240, of a LoRA 30, of a ControlNet 36."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints; the same command goes on with them. Default: OUTPUT.work."),
    ] = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. Default: NAME, in the current folder.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="What a card measures. Default: 2000 images for a distance, or 200 prompts, twice, for the alignment.",
        ),
    ] = None,
    measure_every: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="MINUTES",
            help="Training time from one Fréchet distance to the next; 0: none. Default: 30.",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many distances in a row without a new best. Default: never."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What a LoRA or ControlNet is for. Default: zoo:emoji-sd.")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train a zoo model from its data set and write a folder with weights and card.

    A pipeline's training that was killed goes on from its last checkpoint with the same command; Ctrl-C writes one first.
    On the way the distance of fashion-unet's averaged weights is measured; that takes time beside the budget.

    \b
    Examples:
      halftone zoo train fashion-unet --data fashion_mnist.npz --minutes 240
      halftone zoo train emoji-sd --data FOLDER --minutes 360 --work emoji.work -o emoji
      halftone zoo train emoji-style-lora --data FOLDER --minutes 30
      halftone zoo train fashion-classifier --data fashion_mnist.npz
    """
    with working() as progress:
        from halftone.cli.zoo_training import BASE, Request, check_options
        from halftone.foundation.files import check_output
        from halftone.zoo.catalog import entry

        found = entry(name)
        where = output or Path(name)
        asked = {"minutes": minutes, "samples": samples, "measure-every": measure_every, "patience": patience}
        given = {option: value for option, value in asked.items() if value is not None}
        check_options(found, [*given, *(["work"] if work else []), *(["base"] if base else [])])
        given = ({} if found.minutes is None else {"minutes": found.minutes}) | given
        check_output(where, overwrite)
        request = Request(found, data, where, work or Path(f"{where}.work"), seed, overwrite, given, base or BASE)
        card = _trainers()[name](request, progress)
    emit(card, json, lambda: f"{where}: trained {name}; see its card")


def _trainers() -> "dict[str, Callable[[Request, Progress], dict[str, Any]]]":
    """Return what trains each model of the zoo, writes its folder and returns its card."""
    from halftone.cli import zoo_emoji, zoo_emoji_parts, zoo_fashion

    return {
        "fashion-unet": zoo_fashion.train_unet,
        "fashion-classifier": zoo_fashion.train_classifier,
        "emoji-sd": zoo_emoji.train,
        "emoji-style-lora": zoo_emoji_parts.train_style,
        "emoji-controlnet": zoo_emoji_parts.train_controlnet,
    }
