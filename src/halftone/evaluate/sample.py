"""Draw images from any diffusers pipeline so that two models can be compared image by image.

Each sample has its own random stream, named by the seed and the sample's index: its noise depends neither on the batch
size nor on its neighbours, and two models given equal seeds start from equal noise.
"""

import contextlib
import functools
import hashlib
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn

from halftone.foundation.errors import CalibrationError, ConfigError, MatchError
from halftone.foundation.progress import Progress
from halftone.foundation.seeds import generator

# Arguments with one value a sample, which a caller may give once for all; pipelines without ``batch_size`` count them.
_REPEATED = ("prompt", "negative_prompt", "class_labels")


@dataclass(frozen=True)
class Protocol:
    """What a set of samples depends on, beside the model: printed with every number made from them.

    ``arguments`` is a digest of what else the pipeline was given (prompts, labels, guidance), empty for nothing.
    """

    pipeline: str
    scheduler: str
    steps: int
    eta: float | None  # None where the pipeline has no such option
    seed: int
    samples: int
    arguments: str
    batch: int
    torch: str
    threads: int
    device: str
    dtype: str

    def matches(self, other: "Protocol") -> bool:
        """Whether samples of both are pairs: the same noise through the same sampler."""
        keys = ("pipeline", "scheduler", "steps", "eta", "seed", "samples", "arguments")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


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


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the network that the pipeline calls at each step: its ``unet`` or ``transformer``."""
    for name in ("unet", "transformer"):
        part = getattr(pipe, name, None)
        if isinstance(part, nn.Module):
            return part
    raise MatchError(type(pipe).__name__, "a denoiser named unet or transformer", ", ".join(pipe.components))


def protocol(
    pipe: DiffusionPipeline,
    count: int,
    steps: int,
    seed: int,
    batch: int,
    each: Mapping[str, Sequence[Any]] | None = None,
    **call: Any,
) -> Protocol:
    """Return the facts of the sampling that ``sample`` would do with these arguments."""
    option = inspect.signature(type(pipe).__call__).parameters.get("eta")
    network = denoiser(pipe)
    parameter = next(network.parameters(), torch.empty(0))
    given = {**call, **(each or {})}
    eta = given.pop("eta", option.default if option else None)
    return Protocol(
        pipeline=type(pipe).__name__,
        scheduler=type(pipe.scheduler).__name__,
        steps=steps,
        eta=None if option is None else float(eta),
        seed=seed,
        samples=count,
        arguments=hashlib.sha256(repr(sorted(given.items())).encode()).hexdigest()[:12] if given else "",
        batch=batch,
        torch=str(torch.__version__),
        threads=torch.get_num_threads(),
        device=str(parameter.device),
        dtype=str(getattr(network, "dtype", parameter.dtype)).removeprefix("torch."),
    )


@contextlib.contextmanager
def _quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Silence the pipeline's own bar, and give it back as it was."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**(before or {}))


@contextlib.contextmanager
def _last_step(scheduler: Any) -> Iterator[list[torch.Tensor]]:
    """Yield a list that always holds what the latest ``scheduler.step`` returned; the scheduler is restored.

    ``DDIMPipeline`` passes ``eta`` and the like to every scheduler, which DPM-Solver++ refuses: a keyword that the real
    ``step`` does not take is dropped, as diffusers' text-to-image pipelines do.
    """
    own = vars(scheduler).get("step")
    step = scheduler.step
    kept: list[torch.Tensor] = []
    options = inspect.signature(step).parameters
    anything = any(option.kind is option.VAR_KEYWORD for option in options.values())

    # `wraps` keeps the signature, by which pipelines find out whether to pass eta and a generator.
    @functools.wraps(step)
    def recording(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **{k: v for k, v in kwargs.items() if anything or k in options})
        kept[:] = [result[0] if isinstance(result, tuple) else result.prev_sample]
        return result

    scheduler.step = recording
    try:
        yield kept
    finally:
        if own is None:
            del scheduler.step
        else:
            scheduler.step = own


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


def _batches(
    pipe: DiffusionPipeline, count: int, seed: int, batch: int, each: Mapping[str, Sequence[Any]], call: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments of each pipeline call."""
    if count < 1 or batch < 1:
        raise ConfigError("sample", "at least one sample and a batch of at least 1", f"{count} and {batch}")
    options = inspect.signature(type(pipe).__call__).parameters
    if "generator" not in options:
        raise ConfigError(type(pipe).__name__, "a pipeline that takes a generator", "one that does not")
    repeated = {k: [v] * count for k, v in call.items() if k in _REPEATED and isinstance(v, str | int)}
    rows = repeated | dict(each)
    for name, values in rows.items():
        if len(values) != count:
            raise ConfigError(name, f"{count} values, one a sample", str(len(values)))
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        arguments = {k: v for k, v in call.items() if k not in rows}
        arguments |= {name: list(values[start:stop]) for name, values in rows.items()}
        if "batch_size" in options:
            arguments["batch_size"] = stop - start
        yield arguments | {"generator": [generator(seed, "sample", str(i)) for i in range(start, stop)]}


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
        ConfigError: ``each`` does not have ``count`` values, or the pipeline takes no generator.
    """
    facts = protocol(pipe, count, steps, seed, batch, each, **call)
    images, latents, seconds = [], [], 0.0
    task = (progress or Progress(enabled=False)).task("sampling", count, "images")
    with task, _quiet(pipe), _last_step(pipe.scheduler) as last:
        for arguments in _batches(pipe, count, seed, batch, each or {}, call):
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
    with task, _quiet(pipe), _last_step(pipe.scheduler):
        for arguments in _batches(pipe, count, seed, batch, each or {}, call):
            size = len(arguments["generator"])
            with _calls(denoiser(pipe)) as seen:
                pipe(**arguments, num_inference_steps=steps, output_type="np")
            times = [t for t, _, _ in seen]
            # Classifier-free guidance stacks copies of the same x_t along the batch, one after the other: [k * n, ...].
            x, y = torch.stack([x for _, x, _ in seen])[:, :size], torch.stack([y for _, _, y in seen])
            if y.shape[1] != size:
                y = y.unflatten(1, (-1, size)).transpose(1, 2)
            inputs.append(x)
            outputs.append(y)
            task.advance(size)
    return Calls(np.asarray(times), torch.cat(inputs, dim=1).numpy(), torch.cat(outputs, dim=1).numpy())
