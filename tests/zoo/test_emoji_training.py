"""The whole training of a text-to-image model, on a tiny one: stages, resume, files, schedulers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from tests.emoji import SMALL, write_emoji
from transformers import CLIPTokenizer

from halftone.foundation.errors import ConfigError
from halftone.zoo import emoji_sd, emoji_tokenizer, emoji_training
from halftone.zoo.autoencoder_training import encode, moments, standardise
from halftone.zoo.denoiser_training import Training
from halftone.zoo.emoji_data import EmojiData, read
from halftone.zoo.emoji_training import EmojiTraining, train
from halftone.zoo.trainer import Schedule

QUICK = EmojiTraining(
    minutes=1.0,
    autoencoder=Schedule(steps=4, batch=4, warmup=2, checkpoint_minutes=0.0),
    denoiser=Training(steps=4, batch=4, warmup=2, checkpoint_minutes=0.0),
)


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EmojiData:
    return read(write_emoji(tmp_path_factory.mktemp("emoji")), SMALL.image_size)


@pytest.fixture(scope="module")
def work(data: EmojiData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training, and its pipeline in ``pipe``; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    pipe, facts = train(data, QUICK, folder / "work", say=silent, size=SMALL)
    pipe.save_pretrained(folder / "pipe")
    assert facts["autoencoder"]["steps"] == facts["denoiser"]["steps"] == 4
    return folder


def test_the_tokenizer_is_clips(tmp_path: Path) -> None:
    texts = ["red heart", "red circle", "crying cat", "waving hand: dark skin tone", "3rd place medal"] * 3
    made = emoji_tokenizer.train(texts, 560, tmp_path / "all")
    (tmp_path / "old").mkdir()
    for name, text in emoji_tokenizer.files(tmp_path / "all").items():
        (tmp_path / "old" / name).write_text(text, encoding="utf-8")
    old = CLIPTokenizer(str(tmp_path / "old/vocab.json"), str(tmp_path / "old/merges.txt"))
    for text in ("red heart", "Crying  CAT", "piñata “№ 5” ✨", ""):
        tokens = made(text).input_ids
        assert tokens == old(text).input_ids
        assert (
            tokens[0] == made.bos_token_id and tokens[-1] == made.eos_token_id and made.unk_token_id not in tokens[1:-1]
        )
    assert made.decode(made("Crying  CAT").input_ids, skip_special_tokens=True).strip() == "crying cat"
    assert len(made("red red red").input_ids) == 5  # a common word is one token
    assert made.model_max_length == 77 and made.pad_token_id == made.eos_token_id and len(made) <= 560
    made.save_pretrained(tmp_path / "again")
    assert CLIPTokenizer.from_pretrained(tmp_path / "again")("red heart").input_ids == made("red heart").input_ids
    with pytest.raises(ConfigError, match="at least 514"):
        emoji_tokenizer.train(texts, 500, tmp_path / "small")


def test_standardised_latents_decode_to_the_same_images(data: EmojiData) -> None:
    vae = emoji_sd.autoencoder(SMALL, 0).eval().requires_grad_(False)
    pixels = data.pixels(torch.arange(9))
    before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    standardise(vae, *moments(*encode(vae, pixels), data.weights))
    torch.testing.assert_close(vae.decode(vae.encode(pixels).latent_dist.mean).sample, before, rtol=1e-4, atol=1e-4)
    centre, spread = moments(*encode(vae, pixels), data.weights)
    torch.testing.assert_close(centre, torch.zeros(4).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(spread, torch.ones(4).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_stopped_training_ends_with_the_same_bits(
    stage: str, data: EmojiData, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = emoji_training.fit

    def stopping(model, loss, schedule, checkpoint, *rest):
        if checkpoint.stem != stage:
            return original(model, loss, schedule, checkpoint, *rest)
        calls = 0

        def limited(generator):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return loss(generator)

        return original(model, limited, schedule, checkpoint, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(emoji_training, "fit", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(data, QUICK, tmp_path, say=silent, size=SMALL)
    pipe, _ = train(data, QUICK, tmp_path, say=silent, size=SMALL)
    whole = DiffusionPipeline.from_pretrained(work / "pipe")
    for part in ("vae", "text_encoder", "unet"):
        wanted = getattr(whole, part).state_dict()
        assert all(torch.equal(v, wanted[k]) for k, v in getattr(pipe, part).state_dict().items()), part
    assert pipe.vae.config.scaling_factor == whole.vae.config.scaling_factor


def test_the_work_folder_belongs_to_one_training(data: EmojiData, work: Path) -> None:
    for changed in (replace(QUICK, seed=1), QUICK):
        size = replace(SMALL, vocabulary=601) if changed is QUICK else SMALL
        with pytest.raises(ConfigError, match="--work"):
            train(data, changed, work / "work", say=silent, size=size)


# diffusers' own, with numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", [PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_the_pipeline_loads_and_runs(kind: type, work: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(work / "pipe")
    assert type(pipe).__name__ == "StableDiffusionPipeline" and type(pipe.scheduler) is PNDMScheduler
    assert pipe.safety_checker is None and pipe.vae_scale_factor == 4
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(["red circle", "a blue square, please"], num_inference_steps=4, output_type="np").images
    assert images.shape == (2, 16, 16, 3) and bool((images == images).all())


def test_the_standard_sizes(tmp_path: Path) -> None:
    size = emoji_sd.STANDARD
    with torch.device("meta"):
        vae, unet = emoji_sd.autoencoder(size), emoji_sd.unet(size)
    assert isinstance(vae, AutoencoderKL) and unet.config.sample_size == 16
    tokenizer = emoji_tokenizer.train(["red heart"], 520, tmp_path / "tokenizer")
    text = emoji_sd.text_encoder(size, tokenizer)
    words = (size.vocabulary - len(tokenizer)) * size.text["hidden_size"]
    count = words + sum(p.numel() for part in (vae, unet, text) for p in part.parameters())
    assert 6e6 <= sum(p.numel() for p in unet.parameters()) <= 12e6
    assert 2 * count < 46e6  # bytes in half precision; the folder may have 48 MB
    assert any("conv_shortcut" in name for name, _ in unet.up_blocks.named_parameters())
