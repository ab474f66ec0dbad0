"""A network's calls on OpenVINO: one graph for each kind of call, compiled for each shape."""

import inspect
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import nn

from halftone.engines.contract import INTEGERS, AbstractSession
from halftone.engines.openvino.folder import load, save
from halftone.engines.openvino.graph import Graph, export, free_sizes
from halftone.engines.openvino.nodes import SEGMENT
from halftone.engines.openvino.saturation import NARROW, saturates
from halftone.engines.openvino.signal_stack import signal_stack_kept
from halftone.engines.openvino.signature import Signature, read
from halftone.foundation.allocator import give_back_freed_memory
from halftone.foundation.errors import KernelError
from halftone.nn.layers import QuantizedLayer

# The process whose threads OpenVINO has started: a fork has none of them, and would wait for ever.
_started: list[int] = []
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul", "FullyConnectedQuantized", "FullyConnectedQuantizedLegacy")


class Compiled:
    """A graph, compiled for inputs of one shape."""

    def __init__(self, graph: Graph, signature: Signature, precision: str, threads: int) -> None:
        self.graph = graph
        _started[:] = [os.getpid()]
        # Not pinned: PyTorch's threads in the same process are not either, and two of a kind on one core wait for each other.
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            # By default OpenVINO rounds the inputs of linears whose weights alone are quantized, which nobody asked for.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if graph.largest > NARROW and saturates():
            # In float, then: slow, and right. A switch for the whole graph is the only one there is.
            options["LP_TRANSFORMS_MODE"] = "NO"
        if precision != "auto":
            options["INFERENCE_PRECISION_HINT"] = precision
        model = graph.model.clone()  # the constants stay shared
        try:
            model.reshape(dict(zip(signature.names, signature.shapes, strict=True)))
            self.model = ov.Core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            fix = "Use --engine torch."
            raise KernelError("engine 'openvino'", "a graph that OpenVINO compiles", lines[-1][:300], fix) from error
        self._request = self.model.create_infer_request()
        del model
        give_back_freed_memory()  # compiling takes as much again as the weights
        self._lock = threading.Lock()

    def __call__(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        # Held by a name until the call is over: OpenVINO reads their memory.
        given = [_shared(tensor) for tensor in tensors]
        with self._lock, signal_stack_kept():
            for number, tensor in enumerate(given):
                self._request.set_input_tensor(number, tensor)
            self._request.infer()
            outputs = [_copied(self._request.get_output_tensor(n)) for n in range(len(self.model.outputs))]
        return self.graph.returned(outputs)

    def products(self) -> dict[str, str]:
        """Return the element type that each quantized layer's products run in, by path: ``u8`` or ``i8`` for integers.

        Of a layer with several segments the widest counts.
        """
        found: dict[str, str] = {}
        for node in self.model.get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            if facts["layerType"].astype(str) not in _PRODUCTS:
                continue
            # Of a linear with a float input the runtime precision is that of its weight: what multiplies tells the truth.
            way = facts["primitiveType"].astype(str).rpartition("_")[2].lower()
            precision = facts["runtimePrecision"].astype(str) if way == "i8" else way
            # The plugin names what it makes of a node after it: "path/DequantizationMultiply".
            names = {name.split("/")[0] for name in facts["originalLayersNames"].astype(str).split(",")}
            for path in {name.split(SEGMENT)[0] for name in names} & self.graph.paths:
                if found.get(path, "i8") in INTEGERS:
                    found[path] = precision
        return found


class Session(AbstractSession):
    """Stands in for a network's ``forward``; called with what that is called with.

    Graphs are made again when the network's tensors or adapters are no longer those they were made of.
    """

    def __init__(self, network: nn.Module, precision: str, folder: str | None, shapes: int) -> None:
        self.network, self.precision, self.folder, self.shapes = network, precision, folder, shapes
        self._forward: Callable = type(network).forward.__get__(network)
        self.__signature__ = inspect.signature(self._forward)
        self._making = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._graphs: dict[Any, Graph] = {}
        self._compiled: OrderedDict[Any, Compiled] = OrderedDict()
        self._tensors: list[tuple[nn.Module, dict, str, torch.Tensor, int]] = []
        self._adapters: tuple = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        signature, tensors = read(self._forward, args, kwargs)
        for name, tensor in zip(signature.names, tensors, strict=True):
            if tensor.device.type != "cpu":
                raise KernelError(f"engine 'openvino', argument '{name}'", "a tensor on the cpu", str(tensor.device))
            if tensor.requires_grad and torch.is_grad_enabled():
                fix = "Use torch.no_grad(), or --engine simulate to differentiate."
                raise KernelError(
                    f"engine 'openvino', argument '{name}'", "no gradients to compute", "one that wants them", fix
                )
        return self.compiled(signature, tensors)(tensors)

    def compiled(self, signature: Signature, tensors: tuple[torch.Tensor, ...]) -> Compiled:
        """Return what runs calls of ``signature``, made with ``tensors`` of one where it is not there yet."""
        if _started and _started != [os.getpid()]:
            fix = "Start workers with spawn, or before the first call."
            raise KernelError("engine 'openvino'", "the process that compiled", "a fork of it", fix)
        key = (signature, torch.get_num_threads())
        with self._making, signal_stack_kept():
            if not self._is_current():
                self._forget()
            if key not in self._compiled:
                while len(self._compiled) >= self.shapes:
                    self._compiled.popitem(last=False)
                graph = self._graph(signature, tensors)
                self._compiled[key] = Compiled(graph, signature, self.precision, torch.get_num_threads())
            self._compiled.move_to_end(key)
            return self._compiled[key]

    def _graph(self, signature: Signature, tensors: tuple[torch.Tensor, ...]) -> Graph:
        general = free_sizes(self.network, signature)
        if general not in self._graphs:
            self._remember()
            if self.folder is not None:
                self._graphs[general] = load(self.folder, general, self.network)
            else:
                self._graphs[general] = export(self.network, self._forward, signature, tensors, general.shapes)
        return self._graphs[general]

    def products(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, str]:
        return self.compiled(*read(self._forward, args, kwargs)).products()

    def save(self, folder: str | Path, args: tuple, kwargs: dict[str, Any], overwrite: bool = False) -> Path:
        signature, tensors = read(self._forward, args, kwargs)
        with self._making, signal_stack_kept():
            if not self._is_current():
                self._forget()
            graph = self._graph(signature, tensors)
        return save(graph, free_sizes(self.network, signature), self.network, folder, overwrite)

    def _remember(self) -> None:
        """Note what the next graph, and those there are, are made of."""
        self._tensors.clear()
        for module in self.network.modules():
            if isinstance(module, QuantizedLayer):
                module.refresh()  # codes that a kernel of its own has taken come back: the graph shares them
            if isinstance(module, QuantizedLayer) and module.calibrating:
                fix = "Use another engine while it is calibrated."
                raise KernelError(
                    type(self.network).__name__, "a model that is not being calibrated", "one that is", fix
                )
            for own in (module._parameters, module._buffers):
                for name, tensor in own.items():
                    if tensor is not None:
                        self._tensors.append((module, own, name, tensor, _version(tensor)))
        self._adapters = _adapters(self.network)

    def _is_current(self) -> bool:
        same = all(
            (own.get(name) is tensor and _version(tensor) == version) or (name == "weight" and _is_lent(module))
            for module, own, name, tensor, version in self._tensors
        )
        return same and (not self._graphs or self._adapters == _adapters(self.network))

    def __getstate__(self) -> dict[str, Any]:
        # Compiled models neither pickle nor copy; they are made again on demand.
        return {name: getattr(self, name) for name in ("network", "precision", "folder", "shapes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _is_lent(module: nn.Module) -> bool:
    """Whether the module is a layer whose codes are where its own kernel has them: the same codes, then."""
    return isinstance(module, QuantizedLayer) and module._moved


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _adapters(network: nn.Module) -> tuple:
    """Return what PEFT has put into the network: which adapters are active where, and how strong they are."""
    if not getattr(network, "peft_config", None):
        return ()
    tuned = ((path, module) for path, module in network.named_modules() if hasattr(module, "base_layer"))
    return tuple(
        (
            path,
            tuple(module.active_adapters),
            tuple(sorted(module.scaling.items())),
            module.disable_adapters,
            module.merged,
        )
        for path, module in tuned
    )


def _shared(tensor: torch.Tensor) -> ov.Tensor:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        return ov.Tensor(tensor.view(torch.int16).numpy(), ov.Shape(list(tensor.shape)), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=tensor.ndim > 0)


def _copied(tensor: ov.Tensor) -> torch.Tensor:
    if tensor.element_type == ov.Type.bf16:
        raw = np.array(np.frombuffer(tensor.data, np.int16)).reshape(tuple(tensor.shape))
        return torch.from_numpy(raw).view(torch.bfloat16)
    return torch.from_numpy(np.array(tensor.data))
