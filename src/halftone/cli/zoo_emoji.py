"""``halftone zoo train emoji-sd``: training, then a card with pictures and measured alignment."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from halftone.cli.zoo_training import Described, Request, finish, machine_line, png

if TYPE_CHECKING:
    import numpy as np
    from diffusers import StableDiffusionPipeline

    from halftone.evaluate.alignment import Alignment
    from halftone.evaluate.picture_features import Features
    from halftone.foundation.progress import Progress
    from halftone.zoo.emoji_data import EmojiData

# What people try first; all are CLDR names.
SHOWN = (
    "red heart", "hot pepper", "crying cat", "pizza", "dog face", "cat face", "sun", "star", "fire",
    "snowman", "rocket", "automobile", "bicycle", "house", "rose", "tulip", "red apple", "banana",
    "watermelon", "strawberry", "hamburger", "hot beverage", "birthday cake", "soccer ball", "basketball", "guitar",
    "umbrella", "key", "light bulb", "thumbs up", "grinning face", "face with tears of joy", "skull", "ghost", "robot",
    "penguin",
)  # fmt: skip
STEPS, GUIDANCE, SEEDS, BATCH = 25, 5.0, 2, 32
_ENLARGED = 2  # a label needs the room


def train(request: Request, progress: "Progress") -> dict[str, Any]:
    """Train from the emoji, write the pipeline with card, samples and alignment, and return the card.

    Raises:
        ConfigError: ``request.data`` lacks a file or holds a damaged one, or ``request.work`` belongs to another training.
    """
    from halftone.zoo import emoji_sd, emoji_training, squeezenet
    from halftone.zoo.emoji_data import read

    size = emoji_sd.STANDARD
    emoji = read(request.data, size.image_size)
    sharper = request.data / squeezenet.FILE
    weights = sharper if sharper.is_file() else None
    how = emoji_training.training_for(request.device, request.options["minutes"], request.seed)
    pipe, facts = emoji_training.train(emoji, how, request.work, request.device, progress.say, size, weights)
    parts = (pipe.vae, pipe.text_encoder, pipe.unet)
    return finish(pipe, parts, lambda: _described(pipe, emoji, facts, weights, request, progress), request)


def _described(
    pipe: "StableDiffusionPipeline",
    emoji: "EmojiData",
    facts: dict[str, Any],
    weights: Path | None,
    request: Request,
    progress: "Progress",
) -> Described:
    from halftone.calibrate.conditions import PROMPTS
    from halftone.kernels.machine import machine
    from halftone.zoo import emoji_tokenizer

    networks = {"vae": pipe.vae, "text_encoder": pipe.text_encoder, "unet": pipe.unet}
    prompts = int(request.options.get("samples", 200))
    alignment, reference = _alignment(pipe, emoji, prompts, request.seed, weights, progress)
    card = {
        "name": request.entry.name,
        "data": f"Noto emoji, {len(emoji.emoji)} images of {len(set(emoji.concepts))} concepts; "
        "https://github.com/googlefonts/noto-emoji; names and keywords from https://github.com/unicode-org/cldr-json",
        "licence": "Apache-2.0 (images); Unicode License V3 (names and keywords); Apache-2.0 (weights)",
        "command": request.command,
        "machine": machine(),
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()},
        "vocabulary": len(pipe.tokenizer),
        "scaling_factor": pipe.vae.config.scaling_factor,
        **facts,
        "alignment": alignment,
    }
    tokens = emoji_tokenizer.files(request.work / "tokenizer")
    beside: dict[str, bytes | str] = {
        "alignment.safetensors": reference,
        PROMPTS: "\n".join(calibration_prompts(emoji, alignment_prompts(emoji, prompts))) + "\n",
        **{f"tokenizer/{name}": text for name, text in tokens.items()},
    }
    return Described(card, _readme(card), _picture(pipe, emoji, request.seed, progress), beside)


def alignment_prompts(emoji: "EmojiData", count: int) -> list[int]:
    """Return the numbers of ``count`` images without skin tone, the same for every model and every training seed."""
    import torch

    from halftone.foundation.seeds import generator

    plain = [number for number, each in enumerate(emoji.emoji) if not each.skin_tone]
    order = torch.randperm(len(plain), generator=generator(0, "alignment", "prompts"))[:count]
    return sorted(plain[number] for number in order.tolist())


def calibration_prompts(emoji: "EmojiData", evaluated: list[int]) -> list[str]:
    """Return one caption of each concept that the model is not evaluated with: what it is calibrated on unsaid."""
    known = {emoji.emoji[number].concept for number in evaluated}
    first = {each.concept: each.caption for each in reversed(emoji.emoji)}
    return [first[concept] for concept in dict.fromkeys(emoji.concepts) if concept not in known]


def _alignment(
    pipe: "StableDiffusionPipeline",
    emoji: "EmojiData",
    count: int,
    seed: int,
    weights: Path | None,
    progress: "Progress",
) -> tuple[list[dict[str, Any]], bytes]:
    """Return the measure in each kind of features, with its ceiling, and the reference that later measures need."""
    import json
    from dataclasses import asdict

    import torch
    from safetensors.torch import save

    from halftone.evaluate.alignment import alignment
    from halftone.evaluate.picture_features import latent_features, squeezenet_features
    from halftone.evaluate.sample import sample

    numbers = alignment_prompts(emoji, count)
    texts, wanted = [emoji.emoji[n].caption for n in numbers], [emoji.emoji[n].concept for n in numbers]
    call = {"guidance_scale": GUIDANCE}
    drawn = [
        sample(pipe, len(texts), STEPS, seed + extra, BATCH, progress, {"prompt": texts}, **call)
        for extra in range(SEEDS)
    ]
    real = (emoji.pixels(torch.arange(len(emoji.emoji))) / 2 + 0.5).numpy()
    decoded = _reconstructed(pipe, real[numbers])
    looks: dict[str, Features] = {"emoji-sd latents": latent_features(pipe.vae)}
    if weights is not None:
        looks["SqueezeNet"] = squeezenet_features(weights)
    rows: list[dict[str, Any]] = []
    kept: dict[str, torch.Tensor] = {}
    for name, look in looks.items():
        reference = look(real)
        kept.setdefault("features", torch.from_numpy(reference).half())
        found = alignment(name, [look(each.images) for each in drawn], wanted, reference, emoji.concepts)
        ceiling = alignment(name, [look(decoded)], wanted, reference, emoji.concepts)
        rows.append({**asdict(found), "ceiling_top1": ceiling.top1, "ceiling_top5": ceiling.top5})
        progress.say(_sentence(found, ceiling))
    protocol = asdict(drawn[0].protocol) | {"guidance_scale": GUIDANCE, "seeds": SEEDS}
    rows = [row | {"protocol": protocol} for row in rows]
    long = {each.caption: ", ".join([each.caption, *each.keywords]) for each in emoji.emoji}
    names = {
        "concepts": emoji.concepts,
        "captions": [each.caption for each in emoji.emoji],
        "prompts": texts,
        "long": {text: long[text] for text in texts},
    }
    return rows, save(kept, {name: json.dumps(value) for name, value in names.items()})


def _sentence(found: "Alignment", ceiling: "Alignment") -> str:
    return (
        f"alignment ({found.features}): top 1 {100 * found.top1:.1f} %, top 5 {100 * found.top5:.1f} %; "
        f"decoded real images {100 * ceiling.top1:.1f} % and {100 * ceiling.top5:.1f} %"
    )


def _reconstructed(pipe: "StableDiffusionPipeline", images: "np.ndarray") -> "np.ndarray":
    """Return ``images`` ``[N, 3, S, S]`` in [0, 1] through the autoencoder: what a perfect denoiser would be decoded to."""
    import numpy as np
    import torch

    shown = []
    with torch.no_grad():
        for part in torch.from_numpy(images).split(BATCH):
            latents = pipe.vae.encode(part.to(pipe.vae.device) * 2 - 1).latent_dist.mean
            shown.append((pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).cpu().numpy())
    return np.concatenate(shown)


def _picture(pipe: "StableDiffusionPipeline", emoji: "EmojiData", seed: int, progress: "Progress") -> bytes:
    from halftone.evaluate.sample import sample

    known = {each.caption for each in emoji.emoji}
    texts = [text for text in SHOWN if text in known] or [each.caption for each in emoji.emoji[: len(SHOWN)]]
    drawn = sample(pipe, len(texts), STEPS, seed, BATCH, progress, {"prompt": texts}, guidance_scale=GUIDANCE)
    large = drawn.images.repeat(_ENLARGED, axis=2).repeat(_ENLARGED, axis=3)
    return png(large, texts)


def _readme(card: dict[str, Any]) -> str:
    """Return the card for readers, with the header that model hubs read."""
    first, second, sizes = card["autoencoder"], card["denoiser"], card["parameters"]
    stages = "\n".join(
        f"| {name} | {stage['steps']} | {stage['images']} | {stage['seconds'] / 60:.0f} |"
        for name, stage in (("autoencoder", first), ("text encoder and U-Net", second))
    )
    measured = "\n".join(
        f"| {row['features']} | {100 * row['top1']:.1f} | {100 * row['top5']:.1f} | "
        f"{', '.join(f'{100 * each:.1f}' for each in row['top1_by_seed'])} | "
        f"{100 * row['ceiling_top1']:.1f} | {100 * row['ceiling_top5']:.1f} |"
        for row in card["alignment"]
    )
    how = card["alignment"][0]
    perceptual = "the autoencoder's loss looks through SqueezeNet, whose weights were learned from ImageNet"
    also = "".join(
        f"- {note}\n" for note in [*([perceptual] if first.get("perceptual") else []), *card.get("notes", [])]
    )
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {card["name"]}

A small Stable Diffusion of emoji, 64x64, in half precision: U-Net {sizes["unet"] / 1e6:.1f} M parameters,
text encoder {sizes["text_encoder"] / 1e6:.1f} M, autoencoder {sizes["vae"] / 1e6:.1f} M (latents of 4 channels,
a quarter of the side, {first["psnr"]:.1f} dB). Prompts are CLDR names, alone or with keywords:
"red heart", "crying cat", "thumbs up: dark skin tone".

- Data: {card["data"]}; {card["licence"]}
- Made with `{card["command"]}`
- Machine: {machine_line(card["machine"])}
{also}
![samples](samples.png)

| stage | steps | images | minutes |
|---|---|---|---|
{stages}

Alignment in percent: is the generated picture's nearest emoji, among {how["concepts"]} concepts, the one
that its prompt names? {how["prompts"]} prompts, {SEEDS} seeds, {how["protocol"]["scheduler"]}, {STEPS} steps, guidance
{GUIDANCE:g}. The ceiling is that of the real pictures after the autoencoder.

| features | top 1 | top 5 | top 1 of each seed | ceiling top 1 | ceiling top 5 |
|---|---|---|---|---|---|
{measured}
"""
