"""How fast this machine computes in float: three short measurements that turn counted work into seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from halftone.models.cost import Work

_SECONDS = 0.2  # of each of the four measurements
# How far a run may be off: below, because kernels reach more on some shapes; above, because they reach less on small ones and
# because other programs run on the machine.
_LEAST, _MOST = 0.7, 2.0


@dataclass(frozen=True)
class Speed:
    """Per second of the CPU, with the threads that PyTorch uses: multiply-accumulates, elements; and seconds for each call."""

    macs: float
    elements: float
    call: float

    def seconds(self, work: Work) -> float:
        return work.macs / self.macs + work.elements / self.elements + work.calls * self.call

    def bounds(self, work: Work) -> tuple[float, float]:
        """Return between which seconds the work is expected to take."""
        return _LEAST * self.seconds(work), _MOST * self.seconds(work)


@torch.no_grad()
def measure() -> Speed:
    """Return this machine's speed; takes about a second."""
    random = torch.Generator().manual_seed(0)
    square = torch.randn(768, 768, generator=random)
    image = torch.randn(8, 96, 32, 32, generator=random)
    kernel = torch.randn(96, 96, 3, 3, generator=random)
    small, large = torch.randn(64, generator=random), torch.randn(2**16, generator=random)
    products = len(square) ** 3 / _once(lambda: square @ square)
    convolved = image.numel() * kernel[0].numel() / _once(lambda: torch.conv2d(image, kernel, padding=1))
    # Half of the functions are arithmetic, the other half roundings, exponentials and norms.
    written = 2 * large.numel() / _once(lambda: (large * 1.5, torch.sigmoid(large)))
    call = _once(lambda: small + 1)
    return Speed(2 / (1 / products + 1 / convolved), written, call)


def _once(compute: Callable[[], object]) -> float:
    """Return the least seconds that ``compute()`` took: what other programs take away now says little about later."""
    compute()
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 5 or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        compute()
        taken.append(time.perf_counter() - start)
    return min(taken)
