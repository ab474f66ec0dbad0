"""What every test stands on: no network, few threads, fixed seeds."""

import os
from collections.abc import Iterator

# Before anything imports the hub client, which reads these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import random  # noqa: E402 - the environment comes first

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
# Folders whose loops are cut into parts for threads, which one thread would not show.
THREADED = {"engines", "kernels"}

# No deadline: the first example pays for imports and compilation. In CI the examples are the same on every run.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed the global generators, for library code that draws from them."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def enough_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give tests of parallel loops two threads, also in a worker that has one."""
    before = torch.get_num_threads()
    if request.path.parent.name in THREADED and before < 2:
        torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
