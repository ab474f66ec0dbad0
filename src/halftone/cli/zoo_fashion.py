"""``halftone zoo train fashion-unet`` and ``fashion-classifier``: training, then cards with what was measured."""

from typing import TYPE_CHECKING, Any

from halftone.cli.zoo_training import Described, Request, finish, machine_line, png

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from halftone.foundation.progress import Progress

_STEPS, _BATCH = 50, 64
_ROWS = 12  # of the loss, in the card for readers


def train_unet(request: Request, progress: "Progress") -> dict[str, Any]:
    """Train from Fashion-MNIST, write the pipeline with card and samples, and return the card.

    Raises:
        ConfigError: ``request.data`` is something else, or ``request.work`` belongs to another training.
    """
    from halftone.zoo import fashion_unet
    from halftone.zoo.denoiser_training import Training, train

    fashion_unet.check(request.data)
    pipe = fashion_unet.build(request.seed)
    training = Training(minutes=request.options["minutes"], seed=request.seed)
    facts = train(pipe, fashion_unet.images(request.data), training, request.work, request.device, progress.say)
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
    far, how, curve = card["distribution"], card["protocol"], card["curve"]
    losses = "\n".join(
        f"| {point['step']} | {point['minutes']} | {point['loss']} |" for point in curve[:: max(1, len(curve) // _ROWS)]
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
- Machine: {machine_line(card["machine"])}
- {measured}

![samples](samples.png)

| step | minutes | loss |
|---|---|---|
{losses}
"""
