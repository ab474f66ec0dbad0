"""Drive any diffusers pipeline so that each sample has its own random stream.

Its noise then depends neither on the batch size nor on its neighbours, and two models given equal seeds start from
equal noise.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from halftone.calibrate.conditions import check_each, digest
from halftone.foundation.errors import ConfigError
from halftone.foundation.seeds import generator
from halftone.models.denoiser import denoiser

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
        arguments=digest(given)[:12] if given else "",
        batch=batch,
        torch=str(torch.__version__),
        threads=torch.get_num_threads(),
        device=str(parameter.device),
        dtype=str(getattr(network, "dtype", parameter.dtype)).removeprefix("torch."),
    )


def check_steps(pipe: DiffusionPipeline, steps: int) -> None:
    """Raise a ConfigError when ``steps`` are more than the scheduler of ``pipe`` has (those of the training)."""
    most = getattr(getattr(pipe.scheduler, "config", None), "num_train_timesteps", None)
    if isinstance(most, int) and steps > most:
        where, name = "--steps (steps)", type(pipe.scheduler).__name__
        raise ConfigError(where, f"at most {most}, the steps of this model's {name}", str(steps), "50 is usual.")


def run_steps(
    pipe: DiffusionPipeline, steps: int, arguments: Mapping[str, Any], network: nn.Module | None = None
) -> None:
    """Run the pipeline for what happens on its way: unless ``network`` is part of its autoencoder, nothing is decoded.

    Decoding takes as long as several denoiser calls, and nobody would look at the images.
    """
    autoencoder: Any = getattr(pipe, "vae", None)
    decoded = autoencoder is None or any(network is module for module in autoencoder.modules())
    before = getattr(autoencoder, "dtype", None)
    try:
        pipe(**arguments, num_inference_steps=steps, output_type="np" if decoded else "latent")
    finally:
        if before is not None and autoencoder.dtype != before:
            # SDXL widens it to decode, and whoever stops the pipeline there keeps it from narrowing it again.
            autoencoder.to(before)


@contextlib.contextmanager
def quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Silence the pipeline's own bar, and give it back as it was."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**(before or {}))


@contextlib.contextmanager
def last_step(scheduler: Any) -> Iterator[list[torch.Tensor]]:
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


def batches(
    pipe: DiffusionPipeline,
    count: int,
    seed: int,
    batch: int,
    each: Mapping[str, Sequence[Any]],
    call: dict[str, Any],
    stream: str = "sample",
) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments of each pipeline call.

    ``stream`` names the noise: evaluation draws other noise than calibration from the same seed.
    """
    if count < 1 or batch < 1:
        raise ConfigError("sample", "at least one sample and a batch of at least 1", f"{count} and {batch}")
    options = inspect.signature(type(pipe).__call__).parameters
    if "generator" not in options:
        raise ConfigError(type(pipe).__name__, "a pipeline that takes a generator", "one that does not")
    repeated = {k: [v] * count for k, v in call.items() if k in _REPEATED and isinstance(v, str | int)}
    check_each(each)
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
        yield arguments | {"generator": [generator(seed, stream, str(i)) for i in range(start, stop)]}
