"""Draw images from any diffusers pipeline so that two models can be compared image by image.

Each sample has its own random stream, named by the seed and the sample's index: its noise depends neither on the batch
size nor on its neighbours, and two models given equal seeds start from equal noise.
"""

import contextlib
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn

from halftone.calibrate.sampling import Protocol, batches, check_steps, last_step, protocol, quiet, run_steps
from halftone.foundation.errors import CalibrationError
from halftone.foundation.progress import Progress
from halftone.models.denoiser import denoiser


@dataclass(frozen=True)
class Samples:
    """Images ``[N, C, H, W]`` float32 in [0, 1], and what the scheduler returned last, ``[N, ...]`` float32.

    For a pixel model ``latents`` is the final x_0 in the model's own range, before the pipeline clamps it to an image;
    for a latent model it is what the decoder was given. ``seconds`` is the time of the pipeline calls.
    """

    images: np.ndarray
    latents: np.ndarray
    protocol: Protocol
    seconds: float


@dataclass(frozen=True)
class Calls:
    """Every denoiser call of a sampling, in order.

    Attributes:
        timesteps: ``[calls]`` float64, what the denoiser was told.
        inputs: x_t ``[calls, N, ...]`` float32.
        outputs: the denoiser's answers ``[calls, N, ...]`` float32; ``[calls, N, k, ...]`` where guidance runs k rows
            for each sample.
    """

    timesteps: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray


@contextlib.contextmanager
def _calls(network: nn.Module) -> Iterator[list[tuple[float, torch.Tensor, torch.Tensor]]]:
    """Yield a list that grows by (t, x_t, output) at each call of ``network``, both tensors float32 on the CPU."""
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        x = next(given[name] for name in ("sample", "hidden_states") if name in given)
        t = torch.as_tensor(given["timestep"], dtype=torch.float64).flatten()[0].item()
        y = output[0] if isinstance(output, tuple) else output.sample
        # Copies: a scheduler may change either in place, and on the CPU `to` would hand out the same memory.
        seen.append((t, x.detach().to("cpu", torch.float32, copy=True), y.detach().to("cpu", torch.float32, copy=True)))

    handle = network.register_forward_hook(after, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def sample(
    pipe: DiffusionPipeline,
    count: int,
    steps: int,
    seed: int,
    batch: int,
    progress: Progress | None = None,
    each: Mapping[str, Sequence[Any]] | None = None,
    **call: Any,
) -> Samples:
    """Draw ``count`` samples.

    Args:
        pipe: any diffusers pipeline with a ``unet`` or ``transformer``, a ``scheduler`` and a ``generator`` argument.
        count, steps, seed, batch: samples, ``num_inference_steps``, seed of the noise, samples at a time.
        progress: shows the count.
        each: arguments with one value for each sample: ``{"prompt": [...]}``, ``{"class_labels": [...]}``.
        call: arguments that are equal for all samples (``eta``, ``guidance_scale``, one ``prompt``).

    Raises:
        CalibrationError: the model yields NaN or infinity.
        ConfigError: ``each`` does not have ``count`` values, the pipeline takes no generator, or more steps than the scheduler has.
    """
    check_steps(pipe, steps)
    facts = protocol(pipe, count, steps, seed, batch, each, **call)
    images, latents, seconds = [], [], 0.0
    task = (progress or Progress(enabled=False)).task("sampling", count, "images")
    with task, quiet(pipe), last_step(pipe.scheduler) as last:
        for arguments in batches(pipe, count, seed, batch, each or {}, call):
            began = time.monotonic()
            result = pipe(**arguments, num_inference_steps=steps, output_type="np")
            seconds += time.monotonic() - began
            pictures = result.images if hasattr(result, "images") else result.frames
            # Some guided pipelines (DiT) step both halves of a doubled batch and decode the first.
            latent = last[0].detach()[: len(pictures)].to("cpu", torch.float32)
            if not torch.isfinite(latent).all():
                raise CalibrationError("sample", "finite images", "NaN or infinity", "The model is broken.")
            images.append(np.moveaxis(np.asarray(pictures, dtype=np.float32), -1, 1))
            latents.append(latent.numpy())
            task.advance(len(pictures))
    return Samples(np.concatenate(images), np.concatenate(latents), facts, seconds)


def trajectories(
    pipe: DiffusionPipeline,
    count: int,
    steps: int,
    seed: int,
    batch: int,
    progress: Progress | None = None,
    each: Mapping[str, Sequence[Any]] | None = None,
    **call: Any,
) -> Calls:
    """Draw the same samples as ``sample`` and return what went into and came out of each denoiser call.

    There are ``steps`` calls, or more where the scheduler or the guidance calls twice a step. All of it is held in
    memory: calls x samples x two tensors.
    """
    times: list[float] = []
    inputs, outputs = [], []
    task = (progress or Progress(enabled=False)).task("recording", count, "images")
    with task, quiet(pipe), last_step(pipe.scheduler):
        for arguments in batches(pipe, count, seed, batch, each or {}, call):
            size = len(arguments["generator"])
            with _calls(denoiser(pipe)) as seen:
                run_steps(pipe, steps, arguments)
            times = [t for t, _, _ in seen]
            # Classifier-free guidance stacks copies of the same x_t along the batch, one after the other: [k * n, ...].
            x, y = torch.stack([x for _, x, _ in seen])[:, :size], torch.stack([y for _, _, y in seen])
            if y.shape[1] != size:
                y = y.unflatten(1, (-1, size)).transpose(1, 2)
            inputs.append(x)
            outputs.append(y)
            task.advance(size)
    return Calls(np.asarray(times), torch.cat(inputs, dim=1).numpy(), torch.cat(outputs, dim=1).numpy())
