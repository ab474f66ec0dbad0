"""Let a forked process compute."""

import os
from functools import cache

import torch


@cache
def compute_in_forks() -> None:
    """From now on, let every fork of this process compute on one thread.

    A fork has one thread, whatever its parent had. The OpenMP library still believes in all of them, and a parallel loop would wait
    for ever for those that are not there, in PyTorch's own operators too. One thread needs no others: PyTorch's loaders of data do
    the same in their workers. Processes that are spawned have all their threads.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
