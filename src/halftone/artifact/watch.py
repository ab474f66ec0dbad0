"""A quantized denoiser says when it is called unlike all that it was calibrated on: another size, a ControlNet, other timesteps."""

import re
import warnings
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn

from halftone.foundation.errors import ArtifactError
from halftone.models.controlnets import refuse_unfit_residuals
from halftone.models.reach import beyond, named_inputs
from halftone.nn import QuantLinear
from halftone.nn.layers import quantized_layers
from halftone.nn.sites import sites

_TEXT = "encoder_hidden_states"  # as diffusers' denoisers call it
_FAR = 0.05  # of the largest number of a kept token; 16-bit text encoders differ by less


class TrajectoryWarning(UserWarning):
    """The denoiser runs outside the trajectory that its activation ranges come from. The images may still be good: look."""


class _Watch:
    """A forward pre-hook that warns, once for each input that differs: the first difference in one must not hide another's.

    Of what a pipeline passes in lists (a ControlNet's residuals) the first stands for all. Compiled models are not watched: a
    graph holds no warnings.
    """

    def __init__(self, known: Mapping[str, Any], keeper: QuantLinear | None) -> None:
        self.known, self.said, self.keeper = known, set[str](), keeper

    def __call__(self, network: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.compiler.is_compiling():
            return
        for name, sentence in {
            **beyond(self.known, network, args, kwargs),
            **self._sinks(network, args, kwargs),
        }.items():
            kind = re.sub(r"\[\d+\]$", "", name)
            if kind not in self.said:
                self.said.add(kind)
                text = f"{type(network).__name__} is called with {sentence}. Measure it, or calibrate for this use."
                warnings.warn(text, TrajectoryWarning, stacklevel=2)

    def _sinks(self, network: nn.Module, args: tuple, kwargs: dict) -> dict[str, str]:
        """Return a sentence if the leading text tokens are not those whose keys and values the model has stored."""
        given = named_inputs(network, args, kwargs).get(_TEXT) if self.keeper is not None else None
        # A network that projects its text before it reads it has stored other numbers; an accelerator is not asked for values.
        if given is None or getattr(network, "encoder_hid_proj", None) is not None or given.device.type != "cpu":
            return {}
        assert self.keeper is not None
        wanted = self.keeper.kept_input.to(given.device)
        if given.shape[-1] != wanted.shape[-1]:
            return {}
        far = (given[..., : len(wanted), :].float() - wanted).abs().amax() > _FAR * wanted.abs().amax()
        return {"kept tokens": "other leading text tokens than those it keeps the outputs of"} if far else {}


def watch(network: nn.Module, trajectory: Mapping[str, Any] | None) -> None:
    """Let a quantized ``network`` warn in calls beyond the reach of the ``trajectory`` (an identity) that it was calibrated on, and
    refuse residuals of a ControlNet that was made for another.

    Of an autoencoder the decoder is watched, which was calibrated. Once is enough; weights alone have no ranges that a call
    could leave.

    Raises:
        ArtifactError: a reach of another form.
    """
    takes = "mid_block_additional_residual" in signature(type(network).forward).parameters
    if takes and refuse_unfit_residuals not in network._forward_pre_hooks.values():
        network.register_forward_pre_hook(refuse_unfit_residuals, with_kwargs=True)
    known, path = (trajectory or {}).get("reach"), (trajectory or {}).get("network", "")
    if not isinstance(path, str) or path not in dict(network.named_modules()):
        raise ArtifactError("trajectory.network", "the path of a module in it", str(path)[:200])
    network = network.get_submodule(path)
    if known is None or not any(owner.is_quantized(site) for _, owner, site in sites(network)):
        return
    if not _is_reach(known):
        raise ArtifactError("trajectory.reach", "shapes by input and a span of timesteps", str(known)[:200])
    if not any(isinstance(hook, _Watch) for hook in network._forward_pre_hooks.values()):
        keepers = (layer for _, layer in quantized_layers(network) if isinstance(layer, QuantLinear) and layer.kept)
        network.register_forward_pre_hook(_Watch(known, next(keepers, None)), with_kwargs=True)


def _is_reach(known: Any) -> bool:
    if not isinstance(known, Mapping) or not isinstance(known.get("inputs"), Mapping):
        return False
    times = known.get("timesteps", {"low": 0, "high": 0, "step": 0})
    spans = isinstance(times, Mapping) and all(
        isinstance(times.get(key), int | float) for key in ("low", "high", "step")
    )
    return spans and all(
        isinstance(shape, list) and all(isinstance(size, int) for size in shape) for shape in known["inputs"].values()
    )
