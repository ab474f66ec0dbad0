"""What each layer of a denoiser is and became: role, formats, the kernel that runs it and why others do not, bytes, agreement."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from halftone.artifact import described, sizes
from halftone.engines import running, session
from halftone.engines.contract import INTEGERS
from halftone.formats.segments import along_input
from halftone.foundation.build import plain
from halftone.foundation.seeds import generator
from halftone.kernels.library.reference import Reference
from halftone.models.denoiser import denoiser
from halftone.models.example_inputs import example_inputs
from halftone.models.left_float import LeftFloat, float_denoisers, without_role
from halftone.models.roles import QUANTIZABLE, architecture
from halftone.nn import AttentionOperands, QuantizedLayer
from halftone.nn.layers import quantized_layers

_ROWS = 4  # of a linear's random input
_SIDE = 8  # of a convolution's, at least


@dataclass(frozen=True)
class LayerFacts:
    """One linear or convolution.

    Attributes:
        inferred: the role comes from the layer's place in a known class, not from a table of this architecture.
        weight, input: number formats; a float dtype's name where it is not quantized.
        segments: input channels with scales of their own; empty for one group.
        kernel: what runs it; None for a float layer.
        arithmetic: ``integer``, ``float`` or ``simulated``.
        refused: why kernels that would be preferred do not run it, by name.
        bytes: of its codes, scales, zero points and bias.
        difference: greatest difference between its kernel and the definition (engine ``simulate``) on random inputs, relative
            to the largest output; None where it was not measured.
        tolerance: the difference that the kernel promises not to exceed.
    """

    path: str
    role: str
    inferred: bool
    kind: str
    shape: tuple[int, ...]
    weight: str
    input: str
    segments: tuple[int, ...]
    kernel: str | None
    arithmetic: str
    refused: dict[str, str]
    bytes: int
    difference: float | None = None
    tolerance: float | None = None

    @property
    def quantized(self) -> bool:
        """Whether the layer holds codes."""
        return self.kernel is not None

    @property
    def agrees(self) -> bool | None:
        """Whether the measured difference is within the tolerance; None where nothing was measured."""
        if self.difference is None or self.tolerance is None:
            return None
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class OperandFacts:
    """One quantized operand of an attention's matrix products.

    Attributes:
        arithmetic: of the kernel that runs the attention; calls with a mask are simulated whatever it is.
        refused: why kernels that would be preferred do not run it, by name.
    """

    path: str
    site: str
    format: str
    arithmetic: str = "simulated"
    kernel: str = "reference"
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """A denoiser, layer by layer.

    Attributes:
        recipe, trajectory: what its artifact says about its making; None for a float model.
        sizes: see :func:`halftone.artifact.sizes`.
        without_role: weights that no rule of a policy can reach.
        float_denoisers: components that are called at the sampling steps too, and are float.
        notes: what the policy asked for and the model could not have.
        weights: how layers keep their codes while they run (``ready``, ``packed``); None where nobody has said.
    """

    model: str
    recipe: str | None
    trajectory: Mapping[str, Any] | None
    layers: tuple[LayerFacts, ...]
    operands: tuple[OperandFacts, ...]
    sizes: dict[str, int] = field(default_factory=dict)
    without_role: tuple[LeftFloat, ...] = ()
    float_denoisers: tuple[LeftFloat, ...] = ()
    notes: tuple[str, ...] = ()
    weights: str | None = None

    @property
    def totals(self) -> dict[str, Any]:
        """Number of layers by kernel and by arithmetic, and the greatest difference beside the tolerance it breaks, if any."""
        measured = [layer for layer in self.layers if layer.difference is not None]
        return {
            "layers": len(self.layers),
            "quantized": sum(layer.quantized for layer in self.layers),
            "inferred_roles": sum(layer.inferred for layer in self.layers),
            "by_kernel": dict(Counter(layer.kernel or "float" for layer in self.layers)),
            "by_arithmetic": dict(Counter(layer.arithmetic for layer in self.layers)),
            "simulated_operands": sum(each.arithmetic == "simulated" for each in self.operands),
            "without_role": len(self.without_role),
            "largest_difference": max((layer.difference or 0.0 for layer in measured), default=None),
            "disagreeing": [layer.path for layer in measured if not layer.agrees],
        }

    def plain(self) -> dict[str, Any]:
        """Return all of it, JSON-safe."""
        return {**plain(self), "totals": plain(self.totals)}


def inspect_model(target: DiffusionPipeline | nn.Module, agreement: bool = True) -> Inspection:
    """Return what the layers of a pipeline's denoiser, or of a denoiser, are and became.

    Args:
        target: float or quantized; its engine decides about the kernels. One that runs whole networks is asked what it makes of
            a call with one sample, which it compiles.
        agreement: whether to run each quantized layer's kernel and the definition on random inputs.

    Raises:
        MatchError: a layer that has no role.
    """
    model = target if isinstance(target, nn.Module) else denoiser(target)
    said = described(model)
    roles = _roles(model, dict(said.notes.get("roles") or {}) if said else {})
    products = _products(model)
    layers = tuple(
        _facts(path, module, *roles[path], agreement)
        if products is None
        else _of_engine(path, module, *roles[path], str(running(model)), products)
        for path, module in model.named_modules()
        if isinstance(module, QUANTIZABLE) and path in roles
    )
    operands = tuple(
        _operand_facts(path.rpartition(".")[0], module, site)
        for path, module in model.named_modules()
        if isinstance(module, AttentionOperands)
        for site in module.site_specs
        if module.is_quantized(site)
    )
    return Inspection(
        type(model).__name__,
        str(said.recipe.get("name", "unnamed")) if said else None,
        said.trajectory if said else None,
        layers,
        operands,
        sizes(model),
        without_role(model, roles),
        () if isinstance(target, nn.Module) else float_denoisers(target),
        tuple(map(str, said.notes.get("left_float") or ())) if said else (),
        next((layer.weights for _, layer in quantized_layers(model)), None),
    )


def _roles(model: nn.Module, stored: dict[str, str]) -> dict[str, tuple[str, bool]]:
    """Return role and whether it is inferred, by path: as the artifact says, else from this program's tables."""
    if stored:
        return {path: (role.removesuffix("?"), role.endswith("?")) for path, role in stored.items()}
    return {path: (role.name, role.inferred) for path, role in architecture(model).roles.items()}


def _facts(path: str, module: nn.Module, role: str, inferred: bool, agreement: bool) -> LayerFacts:
    own = sizes(module)
    spent = sum(own[purpose] for purpose in ("codes", "scales", "zero_points", "float"))
    kind = "linear" if isinstance(module, nn.Linear) else "conv2d"
    if not isinstance(module, QuantizedLayer) or module.scheme is None:
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        dtype = str(weight.dtype).removeprefix("torch.")
        return LayerFacts(path, role, inferred, kind, tuple(weight.shape), dtype, dtype, (), None, "float", {}, spent)
    choice, scheme = module.choice(), module.scheme
    return LayerFacts(
        path=path,
        role=role,
        inferred=inferred,
        kind=kind,
        shape=module.weight_shape,
        weight=scheme.weight.format,
        input=scheme.input.format if scheme.input and module.is_quantized("input") else "float",
        segments=scheme.segments if len(scheme.segments) > 1 else (),
        kernel=choice.name,
        arithmetic=choice.kernel.arithmetic,
        refused=dict(choice.refused),
        bytes=spent,
        difference=measured_difference(path, module) if agreement else None,
        tolerance=choice.kernel.tolerance,
    )


def _operand_facts(path: str, owner: AttentionOperands, site: str) -> OperandFacts:
    choice = owner.choice()
    arithmetic, refused = choice.kernel.arithmetic, dict(choice.refused)
    return OperandFacts(path, site, owner.site_specs[site].format, arithmetic, choice.name, refused)


def _products(model: nn.Module) -> dict[str, str] | None:
    """Return the element type of each layer's products where an engine runs the whole of ``model``, None elsewhere."""
    runs = session(model)
    return None if runs is None else runs.products(*example_inputs(model, 1))


def _of_engine(
    path: str, module: nn.Module, role: str, inferred: bool, engine: str, products: Mapping[str, str]
) -> LayerFacts:
    """Return the facts of a layer that runs as part of a whole: it has no kernel of its own to be compared."""
    facts = _facts(path, module, role, inferred, agreement=False)
    if not facts.quantized:
        return facts
    element = products.get(path)
    wanted = facts.input != "float"
    arithmetic = "integer" if element in INTEGERS else "simulated" if wanted else "float"
    slow = f"it multiplies this layer in {element or 'float'}"
    return replace(
        facts,
        kernel=engine,
        arithmetic=arithmetic,
        refused={f"{engine}, 8 bits": slow} if wanted and arithmetic != "integer" else {},
        tolerance=None,
    )


@torch.no_grad()
def measured_difference(path: str, layer: QuantizedLayer) -> float:
    """Return the greatest difference between the layer's kernel and the definition on random inputs, relative to the largest
    output of the definition. ``path`` names the random stream."""
    operation, operands = layer.operation(), layer.operands()
    if operands.input is None:
        operation = replace(operation, input_format=None)
    x = _random_input(path, layer).to(layer.weight.device)
    expected = Reference().prepare(operation, operands)(x)
    got = layer(x)
    largest = float(expected.abs().max())
    return float((got - expected).abs().max()) / largest if largest else 0.0


def _random_input(path: str, layer: QuantizedLayer) -> torch.Tensor:
    """Return normal numbers that fill the input's range and overshoot it a little."""
    random = generator(0, "inspect", path)
    if layer.kind == "linear":
        x = torch.randn(_ROWS, layer.in_width, generator=random)
    else:
        conv: Any = layer
        height, width = (max(_SIDE, d * (k - 1) + 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        x = torch.randn(1, layer.in_width, height, width, generator=random)
    affine = layer.site_affine("input")
    if affine is None or layer.scheme is None or layer.scheme.input is None:
        return x
    grid = layer.scheme.input.number_format
    centred = 0.5 * (grid.low + grid.high) + 0.25 * (grid.high - grid.low) * x  # codes; two deviations fill the grid
    wide = along_input(affine, layer.segments, x.ndim, layer.channel_axis)
    return (centred - wide.zero_point.cpu()) * wide.scale.cpu()
