"""Where the time of a call goes, operator by operator, beside what the machine can do at best.

PyTorch's profiler does not see functions that are called through ``ctypes``, as Halftone's compiled loops are: they are wrapped
before anything can take hold of them.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cpu_unet.inputs import Inputs

_CALLS = 3
NATIVE = "native::"


class _Named:
    """A shared library whose functions the profiler sees."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._known: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = _NamedFunction(getattr(self._library, name), name)
        return self._known[name]


class _NamedFunction:
    def __init__(self, function: Any, name: str) -> None:
        self.__dict__.update(_function=function, _name=NATIVE + name.removeprefix("halftone_"))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._function, name, value)  # argtypes, restype

    def __call__(self, *arguments: Any) -> Any:
        with torch.profiler.record_function(self._name):
            return self._function(*arguments)


def name_native_loops() -> None:
    """Let the profiler see the compiled loops; to be called before any module of Halftone that takes them is imported."""
    from halftone.kernels.native import build

    load: Callable[[], Any] = build.load

    def named() -> Any:
        library = load()
        return library if isinstance(library, str) else _Named(library)

    build.load = named  # type: ignore[assignment]


class Work:
    """Counts the operations that a call cannot do without: products and sums in linears, convolutions and attention."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.layers = self.attention = 0.0
        self._hooks = []
        for module in unet.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                self._hooks.append(module.register_forward_hook(self._layer))
            elif type(module).__name__ == "Attention":
                self._hooks.append(module.register_forward_hook(self._attention, with_kwargs=True))

    def _layer(self, module: Any, _: Any, output: torch.Tensor) -> None:
        weight = torch.Size(getattr(module, "weight_shape", None) or module.weight.shape)
        self.layers += 2.0 * output.numel() * weight[1:].numel() / 1e9

    def _attention(self, module: Any, args: tuple, kwargs: dict[str, Any], output: torch.Tensor) -> None:
        other = kwargs.get("encoder_hidden_states")
        keys = (other if other is not None else output).shape[1] if output.ndim == 3 else output.shape[2:].numel()
        self.attention += 4.0 * output.numel() * keys / 1e9

    def remove(self) -> None:
        """Take the hooks away: some fused paths step aside for hooked modules."""
        for hook in self._hooks:
            hook.remove()


def profile(denoiser: Any, inputs: Inputs) -> dict[str, Any]:
    """Return times of a torch road's operators in a call.

    ``operators`` are seconds of each operator's own in a call, and how often it is called; ``wall`` is a call without the profiler;
    ``between`` is what of a profiled call is in no operator: Python, and what the profiler costs.
    """
    given = [denoiser.take(*each) for each in inputs]
    work = Work(denoiser.unet)
    denoiser.call(given[0])
    work.remove()
    denoiser.call(given[0])
    plain = [_timed(denoiser, given[number % len(given)]) for number in range(_CALLS)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        for number in range(_CALLS):
            denoiser.call(given[number % len(given)])
        profiled = (time.perf_counter() - began) / _CALLS
    operators = [
        {"name": each.key, "seconds": each.self_cpu_time_total / 1e6 / _CALLS, "times": each.count / _CALLS}
        for each in seen.key_averages()
    ]
    operators.sort(key=lambda each: -each["seconds"])
    inside = sum(each["seconds"] for each in operators)
    kept = [{**each, "seconds": float(f"{each['seconds']:.4g}")} for each in operators if each["seconds"] > 1e-5]
    return {
        "wall": float(np.median(plain)),
        "profiled": profiled,
        "between": profiled - inside,
        "operators": kept,
        "giga_operations": {"layers": float(f"{work.layers:.4g}"), "attention": float(f"{work.attention:.4g}")},
    }


def counted(plain: Any, counting: Any, road: Any, inputs: Inputs) -> dict[str, Any]:
    """As :func:`profile`, of a road that counts the time of its operators itself."""
    given = [plain.take(*each) for each in inputs]
    for denoiser in (plain, counting):
        denoiser.call(given[0])
    wall = [_timed(plain, given[number % len(given)]) for number in range(_CALLS)]
    profiled = [_timed(counting, given[number % len(given)]) for number in range(_CALLS)]
    sums: dict[str, list[float]] = {}
    for name, seconds in road.operators(counting):
        sums.setdefault(name, []).append(seconds)
    operators = [{"name": name, "seconds": sum(each), "times": len(each)} for name, each in sums.items()]
    operators.sort(key=lambda each: -each["seconds"])
    inside = sum(each["seconds"] for each in operators)
    found = {"wall": float(np.median(wall)), "profiled": profiled[-1], "between": profiled[-1] - inside}
    return {**found, "operators": [each for each in operators if each["seconds"] > 1e-5], "giga_operations": {}}


def _timed(denoiser: Any, given: Any) -> float:
    began = time.perf_counter()
    denoiser.call(given)
    return time.perf_counter() - began


def profiled(spec: dict[str, Any]) -> dict[str, Any]:
    """Load a contender and profile it, with the ceilings before and after: the better of both counts."""
    name_native_loops()
    import importlib

    from benchmarks.cpu_unet.ceilings import ceilings

    torch.set_num_threads(spec["threads"])
    before = ceilings()
    road: Any = importlib.import_module(f"benchmarks.cpu_unet.roads.{spec['road']}")
    inputs = Inputs.load(Path(spec["inputs"]))

    def load(**more: Any) -> Any:
        return road.load(Path(spec["folder"]), inputs.shapes, spec["threads"], **spec["options"], **more)

    found = counted(load(), load(counted=True), road, inputs) if hasattr(road, "operators") else profile(load(), inputs)
    after = ceilings()
    return {**found, "ceilings": {name: max(value, after[name]) for name, value in before.items()}}
