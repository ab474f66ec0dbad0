"""``halftone zoo train fashion-unet`` and ``fashion-classifier``: training, then cards with what was measured."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halftone.cli.zoo_training import Described, Request, finish, machine_line, png
from halftone.foundation.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from halftone.foundation.progress import Progress
    from halftone.zoo.watch import Watch

_STEPS, _BATCH = 50, 64
# On the way, where the course matters and not the value: a minute or so in every half hour.
_COARSE_SAMPLES, _COARSE_STEPS = 320, 20
_ROWS = 12  # of the loss, in the card for readers


def train_unet(request: Request, progress: "Progress") -> dict[str, Any]:
    """Train from Fashion-MNIST, write the pipeline with card and samples, and return the card.

    Raises:
        ConfigError: ``request.data`` is something else, or ``request.work`` belongs to another training.
        ArtifactError: there is no reference to measure a distance to.
    """
    from halftone.zoo import fashion_unet
    from halftone.zoo.denoiser_training import Training, train

    fashion_unet.check(request.data)
    watch = _watch(request, progress)
    pipe = fashion_unet.build(request.seed)
    training = Training(minutes=request.options["minutes"], seed=request.seed)
    facts = train(pipe, fashion_unet.images(request.data), training, request.work, request.device, progress.say, watch)
    return finish(pipe, [pipe.unet], lambda: _described(pipe, facts, request, progress), request)


def train_classifier(request: Request, progress: "Progress") -> dict[str, Any]:
    """Train the feature network, measure the reference statistics in its features, write both, and return the card.

    Raises:
        ConfigError: ``request.data`` is not Fashion-MNIST.
        OutputError: the folder exists and may not be overwritten.
    """
    from halftone.evaluate.features import build_reference, fashion_network
    from halftone.foundation.files import staged_folder
    from halftone.zoo import fashion_classifier as classifier
    from halftone.zoo import fashion_unet

    fashion_unet.check(request.data)
    how = classifier.ClassifierTraining(seed=request.seed)
    # Together or not at all: a reference only fits the weights that it was measured with.
    with staged_folder(request.output, request.overwrite) as stage:
        card = classifier.train(request.data, stage / classifier.FILE, how, progress.say)
        build_reference(fashion_network(stage), request.data, say=progress.say)
    return card


def _watch(request: Request, progress: "Progress") -> "Watch | None":
    """Return how the training is measured; None where it shall not be.

    Raises:
        ConfigError: patience without measurements.
        ArtifactError: there is no reference to measure a distance to.
    """
    from halftone.evaluate import features
    from halftone.evaluate.compare import distribution
    from halftone.evaluate.sample import sample
    from halftone.zoo import fashion_classifier, fashion_unet
    from halftone.zoo.watch import Watch

    minutes, patience = request.options.get("measure-every", 30.0), request.options.get("patience")
    if not minutes and patience:
        raise ConfigError("--patience", "measurements to wait for", f"{patience} with --measure-every 0")
    entry = features.network(fashion_classifier.NAME)
    features.reference(entry.name)  # missing files are told of before the work, not after it
    if not minutes:
        return None
    # A pipeline of its own: the one in training must not notice.
    spare = fashion_unet.build().to(request.device)
    spare.unet.eval()

    def measure(weights: "Mapping[str, torch.Tensor]") -> float:
        spare.unet.load_state_dict(weights)
        drawn = sample(spare, _COARSE_SAMPLES, _COARSE_STEPS, request.seed, _BATCH, progress)
        return distribution(drawn, entry).value

    protocol = {"samples": _COARSE_SAMPLES, "steps": _COARSE_STEPS, "seed": request.seed}
    return Watch(entry.distance_name, measure, minutes, None if patience is None else int(patience), protocol)


def _described(pipe: "DiffusionPipeline", facts: dict[str, Any], request: Request, progress: "Progress") -> Described:
    from halftone.evaluate.compare import judge
    from halftone.evaluate.sample import sample

    drawn = sample(pipe, int(request.options.get("samples", 2000)), _STEPS, request.seed, _BATCH, progress)
    judged = judge(drawn).plain()
    card = {
        "name": request.entry.name,
        "data": "Fashion-MNIST, 60,000 training images; https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, Zalando SE (data); Apache-2.0 (weights)",
        "command": request.command,
        "parameters": sum(parameter.numel() for parameter in pipe.unet.parameters()),
        "distribution": judged["distribution"],
        "protocol": judged["protocol"],
        **facts,
    }
    return Described(card, _readme(card), png(drawn.images[:64]))


def _readme(card: dict[str, Any]) -> str:
    """Return the card for readers, with the header that model hubs read."""
    far, how = card["distribution"], card["protocol"]
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
- Made with `{card["command"]}`: {card["steps"]} steps, {card["images"]} images, {card["seconds"] / 60:.0f} minutes;
  {card["stopped"]}
- Machine: {machine_line(card["machine"])}
- {measured}

![samples](samples.png)

{_course(card)}
"""


def _course(card: dict[str, Any]) -> str:
    """Return the table of losses, and of the distances measured on the way where there are any."""
    curve, watch = card["curve"], card.get("watch")
    every = max(1, len(curve) // _ROWS)
    points = [point for number, point in enumerate(curve) if number % every == 0 or "distance" in point]
    rows = [[f"{point[key]}" for key in ("step", "minutes", "loss")] for point in points]
    headings = ["step", "minutes", "loss"]
    if watch and any("distance" in point for point in points):
        headings += [f"{watch['name']}, {watch['samples']} samples, {watch['steps']} steps"]
        rows = [
            [*row, f"{point['distance']:.2f}" if "distance" in point else ""]
            for row, point in zip(rows, points, strict=True)
        ]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
