"""How much a layer that reads a concatenation gains from a scale for each part."""

import torch


def bimodality(ranges: torch.Tensor, weight: torch.Tensor, parts: tuple[int, ...]) -> float:
    """Return how much less rounding noise reaches the layer's output when its input parts have scales of their own, in dB.

    With a step proportional to the range r_i of part i and uniform rounding noise, the noise power at the output is proportional to
    sum_i r_i^2 ||W_i||^2, and to r^2 ||W||^2 for one joint range r. The score is the ratio; 0 when all ranges agree.

    Args:
        ranges: ``[parts, 2]``, smallest and largest value of each part (zero included).
        weight: ``[out, in, ...]``.
        parts: input channels of each part, in order.
    """
    low, high = ranges[:, 0].clamp(max=0).double(), ranges[:, 1].clamp(min=0).double()
    power = torch.stack([part.double().square().sum() for part in weight.detach().split(list(parts), dim=1)])
    joint = (high.max() - low.min()).square() * power.sum()
    apart = ((high - low).square() * power).sum()
    if apart <= 0 or joint <= 0:
        return 0.0
    return float(10 * torch.log10(joint / apart))
