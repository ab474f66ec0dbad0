"""Named random streams: every use draws from its own, so adding or reordering uses changes no other number."""

import hashlib
import json

import torch


def subseed(seed: int, *names: str) -> int:
    """Return a seed in [0, 2**63) that depends on ``seed`` and on every name, in their order.

    >>> subseed(0, "calibration", "noise") == subseed(0, "calibration", "noise")
    True
    >>> subseed(0, "ab", "c") == subseed(0, "a", "bc")
    False
    """
    # JSON marks where each name ends, and it is the same on every machine and Python, unlike hash().
    digest = hashlib.sha256(json.dumps([int(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: str) -> torch.Generator:
    """Return a fresh CPU generator for the stream called ``names``.

    It is a CPU one so that the numbers do not depend on the device: draw on the CPU, then move.

    >>> a, b = generator(0, "noise"), generator(0, "noise")
    >>> torch.equal(torch.randn(4, generator=a), torch.randn(4, generator=b))
    True
    """
    return torch.Generator("cpu").manual_seed(subseed(seed, *names))
