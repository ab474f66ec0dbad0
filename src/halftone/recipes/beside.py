"""What a recipe makes of the layers that lie beside the calibrated network of a component: an autoencoder's encoder."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from halftone.models.policy import Plan, Rule, make_plan
from halftone.models.roles import Architecture

AT_THE_LATENTS = "it lies between encoder and decoder"
_ENCODER = "encoder."


def plan_beside(owner: nn.Module, network: str, found: Architecture, policy: Sequence[Rule]) -> Plan:
    """Return the plan of the layers of ``owner`` that are not in its ``network``; of none where the network is all of it.

    The weights of an autoencoder's encoder are rounded to nearest. What runs there was not recorded, so the inputs stay float. The
    1x1 convolutions at the latents stay float altogether: they are a few numbers, every decoding passes them, and SDXL asks the
    second one for the dtype of the whole.

    Args:
        found: the architecture of all of ``owner``.
    """
    if not network:
        return Plan({})
    rules = tuple(replace(rule, input=None, operands=None) for rule in policy if rule.says_more_than_inputs)
    layers = make_plan(owner, found, rules).layers
    beside = {path: planned for path, planned in layers.items() if not path.startswith(f"{network}.")}
    return Plan({path: p if path.startswith(_ENCODER) else replace(p, scheme=None) for path, p in beside.items()})
