"""Train ``zoo:emoji-sd`` in one resumable run: tokenizer, autoencoder, latents, then text encoder and U-Net together."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save
from torch import nn
from transformers import CLIPTokenizer

from halftone.foundation.errors import ConfigError
from halftone.foundation.files import staged_folder, write_atomically
from halftone.zoo import emoji_tokenizer, squeezenet
from halftone.zoo.autoencoder_training import autoencoder_loss, encode, moments, standardise
from halftone.zoo.conditional_loss import Latents, conditional_loss
from halftone.zoo.denoiser_training import Diffusion, Training
from halftone.zoo.emoji_data import EmojiData
from halftone.zoo.emoji_sd import SCHEDULE, STANDARD, Architecture, assemble, autoencoder, text_encoder, unet
from halftone.zoo.trainer import Schedule, fit

Say = Callable[[str], None]


@dataclass(frozen=True)
class EmojiTraining:
    """Hyper-parameters of the whole.

    Attributes:
        minutes: the budget of the two trainings together; the other stages take seconds.
        autoencoder_share: of the budget. Pixels are learned long before captions: more of it hardly sharpens the images.
        dropout: share of empty prompts, for classifier-free guidance.
        compiled: whether the denoiser is compiled for its training; that takes a minute.
        autoencoder, denoiser: the loops; their minutes and seeds are set from those here.
    """

    minutes: float = 240.0
    seed: int = 0
    autoencoder_share: float = 0.2
    dropout: float = 0.1
    compiled: bool = False
    autoencoder: Schedule = field(default_factory=lambda: Schedule(batch=16, lr=1e-3, decay=0.4, ema=0.995))
    denoiser: Training = field(default_factory=lambda: Training(batch=32, lr=5e-4, ema=0.999))


def training_for(device: str, minutes: float, seed: int) -> EmojiTraining:
    """Return the hyper-parameters that suit ``device`` (cpu, cuda ...)."""
    usual = EmojiTraining(minutes=minutes, seed=seed)
    if torch.device(device).type == "cpu":
        return usual
    # Small batches are what a slow machine learns most from in its time; a GPU needs large ones to be busy.
    return replace(
        usual,
        compiled=True,
        autoencoder=replace(usual.autoencoder, batch=64, lr=1.5e-3),
        denoiser=replace(usual.denoiser, batch=256, lr=1e-3),
    )


class _Conditioned(nn.Module):
    """Text encoder and U-Net as the one module that is trained."""

    def __init__(self, text: nn.Module, denoiser: nn.Module, compiled: bool = False) -> None:
        super().__init__()
        self.text_encoder, self.unet = text, denoiser
        # A bound method, not a module: the parameters keep their names.
        self._predict = torch.compile(denoiser.forward, dynamic=False) if compiled else denoiser.forward

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self._predict(x, t, self.text_encoder(tokens)[0], return_dict=False)[0]


def train(
    data: EmojiData,
    training: EmojiTraining,
    work: Path,
    device: str = "cpu",
    say: Say = print,
    size: Architecture = STANDARD,
    perceptual: Path | None = None,
) -> tuple[StableDiffusionPipeline, dict[str, Any]]:
    """Return the trained pipeline and the card's facts about each stage.

    ``work`` holds a file or folder for each finished stage and a checkpoint of the one that runs; each is replaced
    atomically, and the same call goes on from them. A larger ``minutes`` then lengthens the last stage only, because the
    latents of an earlier autoencoder cannot change any more.

    Args:
        perceptual: SqueezeNet's weights; None leaves the autoencoder's perceptual term out.

    Raises:
        ConfigError: ``work`` belongs to other data, sizes or another seed.
    """
    work.mkdir(parents=True, exist_ok=True)
    _claim(work, data, training, size)
    tokenizer = _tokenizer(data, size, work / "tokenizer", say)
    vae, first = _autoencoder(data, training, size, work, device, say, perceptual)
    mean, logvar = _latents(vae, data, work / "latents.safetensors", device, say)
    trained, second = _denoiser(
        data, (mean, logvar), vae, tokenizer, training, size, work, device, say, first["seconds"]
    )
    pipe = assemble(vae, tokenizer, trained.text_encoder, trained.unet)
    return pipe, {"autoencoder": first, "denoiser": second, "dropout": training.dropout, "data_digest": data.digest}


def _claim(work: Path, data: EmojiData, training: EmojiTraining, size: Architecture) -> None:
    """Note what ``work`` is for, or refuse it where it is for something else."""
    # Lists and tuples look alike in JSON: compare what was read with what would be read.
    about = {"data": data.digest, "seed": training.seed, "sizes": asdict(size), "predicts": SCHEDULE["prediction_type"]}
    ours = json.loads(json.dumps(about))
    note = work / "training.json"
    if not note.exists():
        write_atomically(note, json.dumps(ours, indent=1) + "\n")
        return
    theirs = json.loads(note.read_text(encoding="utf-8"))
    other = [key for key in ours if theirs.get(key) != ours[key]]
    if other:
        fix = "Name another folder with --work, or delete this one."
        raise ConfigError(str(work), "checkpoints of this training", "those with other " + ", ".join(other), fix)


def _tokenizer(data: EmojiData, size: Architecture, folder: Path, say: Say) -> CLIPTokenizer:
    if not folder.exists():
        plain = [each for each in data.emoji if not each.skin_tone]
        texts = [text for each in plain for text in (each.caption, *each.keywords)]
        toned = [each.caption for each in data.emoji if each.skin_tone]
        found = emoji_tokenizer.train([*texts, *toned], size.vocabulary, folder)
        say(f"tokenizer: {len(found)} tokens from {len(texts)} captions and keywords")
    return emoji_tokenizer.load(folder)


def _autoencoder(
    data: EmojiData,
    training: EmojiTraining,
    size: Architecture,
    work: Path,
    device: str,
    say: Say,
    perceptual: Path | None,
) -> tuple[AutoencoderKL, dict[str, Any]]:
    folder, facts_file = work / "autoencoder", "facts.json"
    if not folder.exists():
        vae = autoencoder(size, training.seed)
        judge = squeezenet.load(perceptual) if perceptual else None
        minutes = training.minutes * training.autoencoder_share
        schedule = replace(training.autoencoder, minutes=minutes, seed=training.seed)
        loss = autoencoder_loss(vae, lambda g: data.pixels(data.draw(schedule.batch, g)), device, judge)
        facts = fit(vae, loss, schedule, work / "autoencoder.pt", device, say, "autoencoder")
        facts["perceptual"] = perceptual is not None
        mean, logvar = encode(vae, data.pixels(torch.arange(len(data.emoji))))
        standardise(vae, *moments(mean, logvar, data.weights))
        facts["psnr"] = _psnr(vae, data)
        with staged_folder(folder) as stage:
            vae.save_pretrained(stage)
            (stage / facts_file).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        say(f"autoencoder: {facts['psnr']:.2f} dB")
    vae = AutoencoderKL.from_pretrained(folder).to(device).eval().requires_grad_(False)
    return vae, json.loads((folder / facts_file).read_text(encoding="utf-8"))


@torch.no_grad()
def _psnr(vae: AutoencoderKL, data: EmojiData, count: int = 512) -> float:
    """Return the mean PSNR in dB, over pixel values of range 2, of reconstructions of images drawn by concept."""
    pixels = data.pixels(data.draw(count, torch.Generator().manual_seed(0)))
    each = []
    for part in pixels.split(64):
        shown = vae.decode(vae.encode(part.to(vae.device)).latent_dist.mean).sample.clamp(-1, 1).cpu()
        each.append((shown - part).square().mean((1, 2, 3)))
    return (10 * (4 / torch.cat(each)).log10()).mean().item()


def _latents(
    vae: AutoencoderKL, data: EmojiData, file: Path, device: str, say: Say
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and log-variance of every image's latents, cached; sets the scaling factor from them.

    One variant of each image: mirrored arrows and letters would contradict their captions.
    """
    if not file.exists():
        mean, logvar = encode(vae, data.pixels(torch.arange(len(data.emoji))))
        write_atomically(file, save({"mean": mean, "logvar": logvar}))
        say(f"latents: {len(mean)} of {list(mean.shape[1:])}")
    found = load_file(file)
    centre, spread = moments(found["mean"], found["logvar"], data.weights)
    # All channels are near zero mean and unit variance already (see `standardise`); this is what rounding left over.
    overall = (spread.square().mean() + (centre - centre.mean()).square().mean()).sqrt().item()
    vae.register_to_config(scaling_factor=round(1 / overall, 5))
    return found["mean"], found["logvar"]


def _denoiser(
    data: EmojiData,
    latents: tuple[torch.Tensor, torch.Tensor],
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    training: EmojiTraining,
    size: Architecture,
    work: Path,
    device: str,
    say: Say,
    spent: float,
) -> tuple[_Conditioned, dict[str, Any]]:
    model = _Conditioned(text_encoder(size, tokenizer, training.seed), unet(size, training.seed), training.compiled)
    left = max(training.minutes - spent / 60, 0.0)
    schedule = replace(training.denoiser, minutes=left, seed=training.seed)
    diffusion = Diffusion.of(assemble(vae, tokenizer, model.text_encoder, model.unet).scheduler, device)
    loss = conditional_loss(
        lambda x, t, tokens, _: model(x, t, tokens),
        data,
        Latents(*latents, vae.config.scaling_factor),
        tokenizer,
        schedule,
        training.dropout,
        diffusion,
    )
    facts = fit(model, loss, schedule, work / "denoiser.pt", device, say, "denoiser")
    return model, facts
