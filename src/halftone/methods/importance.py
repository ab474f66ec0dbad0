"""Samples that count differently: how they are drawn, and how an error over them is summed."""

import torch

# Of the largest odds: what counts nearly nothing is still looked at now and then.
_LEAST_ODDS = 0.05


class Importance:
    """What each of ``count`` samples counts.

    Samples are drawn in proportion to the root of their weights, and what is drawn often counts the less each time: the mean stays
    that of all samples, with less noise than if all were drawn alike. Where all count the same they are drawn without repetition.

    Args:
        weights: ``[count]``, not negative; None where all count the same.
    """

    def __init__(self, count: int, weights: torch.Tensor | None = None) -> None:
        self.count = count
        self.weights = None if weights is None else weights.double() / weights.double().mean()
        if self.weights is not None:
            odds = self.weights.sqrt()
            odds = odds.clamp(min=_LEAST_ODDS * float(odds.max()))
            self.odds = odds / odds.sum()

    def draw(self, batch: int, random: torch.Generator) -> torch.Tensor:
        """Return the indices of ``batch`` samples at most."""
        if self.weights is None:
            return torch.randperm(self.count, generator=random)[:batch]
        return torch.multinomial(self.odds, min(batch, self.count), replacement=True, generator=random)

    def mean(self, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the estimate of the weighted mean of ``values`` ``[b, ...]`` from samples that were drawn."""
        if self.weights is None:
            return values.mean()
        share = (self.weights / (self.odds * self.count))[index].to(values)
        return (values.flatten(1).mean(1) * share).mean()

    def sum(self, values: torch.Tensor, index: torch.Tensor) -> tuple[float, float]:
        """Return the weighted sum of ``values`` ``[b, ...]`` of the samples at ``index``, and the weights' sum."""
        if self.weights is None:
            return float(values.sum()), values.numel()
        weights = self.weights[index].to(values)
        return float((values.flatten(1).mean(1) * weights).sum()), float(weights.sum())
