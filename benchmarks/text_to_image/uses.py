"""The uses of a text-to-image model: which pipeline is called, and with what."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from benchmarks.text_to_image.settings import Settings
from halftone.foundation.errors import ConfigError
from halftone.foundation.seeds import generator
from halftone.zoo.emoji_controlnet import masks, placed, places

Kind = Literal["text", "img2img", "inpaint", "controlnet"]
_STRENGTH = 0.6  # of image to image


@dataclass(frozen=True)
class Use:
    """One way to use a model.

    Attributes:
        kind: of pipeline. All but ``text`` are given the float model's own pictures: ``inpaint`` one of its own prompt, drawn from
            other noise, whose right half is to be drawn anew; ``img2img`` one of the prompt before; ``controlnet`` the mask of its
            own prompt's, made smaller and moved.
        long: prompts with all keywords after the name.
        guidance, steps: None for those of the study.
        dpm: with DPM-Solver++ in place of the model's own sampler.
        recalibrated: whether the model was calibrated with this sampler and number of steps.
        lora: strength of the adapter.
        parts: of the pipeline, which are quantized.
        like: the use whose float pictures serve, where it has none of its own.
    """

    kind: Kind = "text"
    long: bool = False
    guidance: float | None = None
    steps: int | None = None
    dpm: bool = False
    recalibrated: bool = False
    lora: float | None = None
    parts: tuple[str, ...] = ("unet",)
    like: str = ""

    @property
    def drawing(self) -> "Use":
        """What the pictures of a model, which is known, depend on."""
        return replace(self, recalibrated=False, like="")

    def available(self, settings: Settings) -> bool:
        """Return whether the study was given what the use needs."""
        return (self.lora is None or settings.lora is not None) and (
            self.kind != "controlnet" or settings.controlnet is not None
        )


PLAIN = "short prompts"
USES: dict[str, Use] = {
    PLAIN: Use(),
    "long prompts": Use(long=True),
    "guidance 1": Use(guidance=1.0),
    "guidance 3": Use(guidance=3.0),
    "guidance 7.5": Use(guidance=7.5),
    "DPM-Solver++, 20 steps": Use(dpm=True, steps=20),
    "DPM-Solver++, 20 steps, recalibrated": Use(dpm=True, steps=20, recalibrated=True, like="DPM-Solver++, 20 steps"),
    "DPM-Solver++, 10 steps": Use(dpm=True, steps=10),
    "DPM-Solver++, 10 steps, recalibrated": Use(dpm=True, steps=10, recalibrated=True, like="DPM-Solver++, 10 steps"),
    "image to image": Use(kind="img2img"),
    "inpainting": Use(kind="inpaint"),
    "LoRA, strength 0.5": Use(lora=0.5),
    "LoRA, strength 1": Use(lora=1.0),
    "ControlNet": Use(kind="controlnet"),
    "ControlNet, it alone quantized": Use(kind="controlnet", parts=("controlnet",), like="ControlNet"),
    "ControlNet, both quantized": Use(kind="controlnet", parts=("unet", "controlnet"), like="ControlNet"),
}


def with_sampler(pipe: StableDiffusionPipeline, use: Use) -> StableDiffusionPipeline:
    """Give ``pipe`` the use's sampler."""
    if use.dpm:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="dpmsolver++")
    return pipe


def made_for(
    pipe: StableDiffusionPipeline, use: Use, settings: Settings, controlnet: ControlNetModel | None = None
) -> Any:
    """Return the pipeline of the use around the networks of ``pipe``, with the float ControlNet unless another is given."""
    pipe = with_sampler(pipe, use)
    if use.lora is not None:
        pipe.load_lora_weights(str(settings.lora), adapter_name="style")
        pipe.set_adapters("style", adapter_weights=use.lora)
    if use.kind == "img2img":
        return StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    if use.kind == "inpaint":
        return StableDiffusionInpaintPipeline.from_pipe(pipe)
    if use.kind == "controlnet":
        net = controlnet or float_controlnet(settings).to(pipe.device)
        return StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    return pipe


def float_controlnet(settings: Settings) -> ControlNetModel:
    """Return the study's ControlNet in float32."""
    assert settings.controlnet is not None
    net: ControlNetModel = ControlNetModel.from_pretrained(settings.controlnet).float().eval()
    return net


def arguments(
    use: Use, texts: Sequence[str], pictures: np.ndarray | None, settings: Settings, calibrating: bool = False
) -> tuple[dict[str, list], dict[str, Any]]:
    """Return what the use is called with: values for each picture, and values for all.

    Args:
        pictures: the float model's own ``[N, 3, S, S]`` in [0, 1], one of each prompt, for the uses that start from pictures.
        calibrating: whether a ControlNet's masks are to lie elsewhere than those that are measured.
    """
    each: dict[str, list] = {"prompt": list(texts)}
    call: dict[str, Any] = {"guidance_scale": settings.guidance if use.guidance is None else use.guidance}
    if use.kind == "text":
        return each, call
    if pictures is None:
        raise ConfigError(f"use {use.kind}", "pictures to start from", "none")
    if use.kind == "controlnet":
        elsewhere = placed(torch.from_numpy(pictures), positions(len(pictures), calibrating))
        each["image"] = _images(masks(elsewhere).numpy())
        return each, call
    others = pictures if use.kind == "inpaint" else np.roll(pictures, 1, axis=0)
    each["image"] = _images(others)
    call["strength"] = _STRENGTH if use.kind == "img2img" else 1.0
    if use.kind == "inpaint":
        size = others.shape[-1]
        half = Image.new("L", (size, size), 0)
        half.paste(255, (size // 2, 0, size, size))
        each["mask_image"] = [half] * len(texts)
        call |= {"height": size, "width": size}
    return each, call


def positions(count: int, calibrating: bool = False) -> torch.Tensor:
    """Return where a ControlNet is to put pictures, ``[count, 3]`` as :func:`halftone.zoo.emoji_controlnet.places` has it."""
    return places(count, generator(0, "text to image", "calibration places" if calibrating else "places"))


def _images(pictures: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(each) for each in np.moveaxis((pictures * 255).round().astype(np.uint8), 1, -1)]
