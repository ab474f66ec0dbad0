"""``halftone zoo train emoji-style-lora`` and ``emoji-controlnet``: what is trained on top of a text-to-image model."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halftone.cli.models import open_model
from halftone.cli.zoo_emoji import BATCH, GUIDANCE, SHOWN, STEPS, alignment_prompts
from halftone.cli.zoo_training import Request, machine_line, png
from halftone.foundation.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline

    from halftone.foundation.progress import Progress
    from halftone.zoo.emoji_data import EmojiData

_ROWS = 12  # of the picture, each one prompt
_ENLARGED = 2
_LICENCE = "Apache-2.0 (images); Unicode License V3 (names and keywords); Apache-2.0 (weights)"


def train_style(request: Request, progress: "Progress") -> dict[str, Any]:
    """Train the LoRA, measure how much of the pictures is in its style at strengths 0, 0.5 and 1, and write its folder.

    Raises:
        ConfigError: no data, no base model, or checkpoints of another training.
    """
    import torch

    from halftone.evaluate.sample import sample
    from halftone.zoo.emoji_style_lora import style_share, train, training_for

    pipe, emoji = _begin(request)
    how = training_for(request.device, request.options["minutes"], request.seed)
    facts = train(pipe, emoji, how, request.work, request.device, progress.say)
    adapters = {name: part for name, part in pipe.unet.named_parameters() if "lora_" in name}
    _halve(adapters.values())
    texts = _texts(emoji, int(request.options.get("samples", 64)))
    shown, shares = [], {}
    for strength in (0.0, 0.5, 1.0):
        pipe.set_adapters("style", adapter_weights=strength)
        drawn = sample(
            pipe, len(texts), STEPS, request.seed, BATCH, progress, {"prompt": texts}, guidance_scale=GUIDANCE
        )
        shown.append(drawn.images)
        shares[f"{strength:g}"] = round(style_share(torch.from_numpy(drawn.images)), 4)
    measured = {"prompts": len(texts), "steps": STEPS, "guidance_scale": GUIDANCE, "share_in_style": shares}
    card = _card(request, facts, sum(part.numel() for part in adapters.values()), measured)
    lines = [f"| {strength} | {100 * share:.0f} |" for strength, share in shares.items()]
    about = f"""A LoRA for [emoji-sd](../emoji-sd): every emoji a print in one ink. Rank {facts["rank"]}, on the U-Net's attentions,
feed-forwards and residual convolutions.

```python
pipe.load_lora_weights("{request.entry.name}")
pipe("a red heart", cross_attention_kwargs={{"scale": 1.0}})
```

Share of the pixels that are not white and lie in the style, in percent, {len(texts)} prompts:

| strength | in the style |
|---|---|
{chr(10).join(lines)}

The pictures: strength 0, 0.5 and 1."""

    def write(stage: Path) -> None:
        from diffusers import StableDiffusionPipeline
        from peft.utils import get_peft_model_state_dict

        layers = {
            name: value.half() for name, value in get_peft_model_state_dict(pipe.unet, adapter_name="style").items()
        }
        StableDiffusionPipeline.save_lora_weights(stage, unet_lora_layers=layers)

    return _finish(request, card, about, "pipeline_tag: text-to-image\ntags: [lora]", _rows(shown, texts), write)


def train_controlnet(request: Request, progress: "Progress") -> dict[str, Any]:
    """Train the ControlNet, measure how well pictures fill masks that lie elsewhere, and write its folder.

    Raises:
        ConfigError: no data, no base model, or checkpoints of another training.
    """
    import torch
    from diffusers import StableDiffusionControlNetPipeline

    from halftone.evaluate.sample import sample
    from halftone.foundation.seeds import generator
    from halftone.zoo.emoji_controlnet import masks, overlap, placed, places, train, training_for

    pipe, emoji = _begin(request)
    how = training_for(request.device, request.options["minutes"], request.seed)
    net, facts = train(pipe, emoji, how, request.work, request.device, progress.say)
    _halve(net.parameters())
    numbers = alignment_prompts(emoji, int(request.options.get("samples", 64)))
    texts = [emoji.emoji[n].caption for n in numbers]
    # Smaller and elsewhere, which the prompt does not say.
    where = places(len(numbers), generator(request.seed, "card", "places"))
    given = masks(placed(emoji.pixels(torch.tensor(numbers)) / 2 + 0.5, where))
    call = {"guidance_scale": GUIDANCE}
    free = sample(pipe, len(texts), STEPS, request.seed, BATCH, progress, {"prompt": texts}, **call).images
    controlled = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net.to(request.device))
    each = {"prompt": texts, "image": _pictures(given)}
    bound = sample(controlled, len(texts), STEPS, request.seed, BATCH, progress, each, **call).images
    overlaps = {
        name: round(overlap(torch.from_numpy(images), given), 4)
        for name, images in (("without", free), ("with", bound))
    }
    measured = {"prompts": len(texts), "steps": STEPS, "guidance_scale": GUIDANCE, "overlap": overlaps}
    card = _card(request, facts, sum(p.numel() for p in net.parameters()), measured)
    about = f"""A ControlNet for [emoji-sd](../emoji-sd): puts the emoji where a coarse mask is, white on black,
{facts["cells"]} cells to a side.

Mean intersection over union of the picture's mask with the one given, of the emoji made smaller and moved, {len(texts)} prompts:
{overlaps["with"]:.2f}, and {overlaps["without"]:.2f} without the ControlNet.

The pictures: the mask, without, with the ControlNet."""

    def write(stage: Path) -> None:
        net.half().save_pretrained(stage)

    return _finish(
        request, card, about, "pipeline_tag: text-to-image", _rows([given.numpy(), free, bound], texts), write
    )


def _begin(request: Request) -> "tuple[StableDiffusionPipeline, EmojiData]":
    """Return the base model and the data, at its size of pictures."""
    from halftone.zoo.emoji_data import read

    pipe: Any = open_model(request.base)
    if type(pipe).__name__ != "StableDiffusionPipeline":
        raise ConfigError(f"--base {request.base}", "a float StableDiffusionPipeline", type(pipe).__name__)
    return pipe, read(request.data, pipe.unet.config.sample_size * pipe.vae_scale_factor)


def _texts(emoji: "EmojiData", count: int) -> list[str]:
    return [emoji.emoji[n].caption for n in alignment_prompts(emoji, count)]


def _pictures(images: Any) -> list[Any]:
    """Return ``images`` ``[N, 3, S, S]`` in [0, 1] as the pictures that a pipeline takes."""
    from PIL import Image

    return [Image.fromarray(each) for each in (images * 255).round().byte().permute(0, 2, 3, 1).numpy()]


def _halve(parameters: "Iterable[torch.nn.Parameter]") -> None:
    """Round weights to half precision, which is what ships, so that it is what the card measures."""
    for parameter in parameters:
        parameter.data = parameter.data.half().float()


def _rows(columns: "list[np.ndarray]", texts: list[str]) -> bytes:
    """Return a PNG with a prompt's pictures beside each other; those first that people know."""
    import numpy as np

    order = sorted(range(len(texts)), key=lambda n: (texts[n] not in SHOWN, n))[:_ROWS]
    images = np.stack([column[n] for n in order for column in columns])
    labels = [texts[n] for n in order for _ in columns]
    return png(images.repeat(_ENLARGED, axis=2).repeat(_ENLARGED, axis=3), labels)


def _card(request: Request, facts: dict[str, Any], parameters: int, measured: dict[str, Any]) -> dict[str, Any]:
    from halftone.kernels.machine import machine

    return {
        "name": request.entry.name,
        "base": request.base,
        "data": "Noto emoji; https://github.com/googlefonts/noto-emoji; names and keywords from https://github.com/unicode-org/cldr-json",
        "licence": _LICENCE,
        "command": request.command,
        "machine": machine(),
        "parameters": parameters,
        **facts,
        "measured": measured,
    }


def _finish(
    request: Request, card: dict[str, Any], about: str, tags: str, picture: bytes, write: Callable[[Path], None]
) -> dict[str, Any]:
    """Write the folder, wholly or not at all, and return the card."""
    import json

    from halftone.foundation.files import staged_folder

    readme = f"""---
license: apache-2.0
library_name: diffusers
{tags}
---
# {card["name"]}

{about}

![samples](samples.png)

{card["parameters"] / 1e6:.2f} M parameters, in half precision.

- Data: {card["data"]}; {card["licence"]}
- Made with `{card["command"]}`: {card["steps"]} steps, {card["images"]} images, {card["seconds"] / 60:.0f} minutes
- Machine: {machine_line(card["machine"])}
"""
    with staged_folder(request.output, request.overwrite) as stage:
        write(stage)
        (stage / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        (stage / "README.md").write_text(readme, encoding="utf-8")
        (stage / "samples.png").write_bytes(picture)
    return card
