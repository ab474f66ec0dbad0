"""Which engines there are, what is said of one that does not run here, and how the fastest is found."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.conftest import unet
from torch import nn

from halftone.engines import engines, fastest, require, running, select, set_engine, unavailable
from halftone.engines.contract import AbstractNetworkEngine, AbstractSession
from halftone.engines.library import openvino
from halftone.foundation.errors import ConfigError, KernelError


def test_engines_of_kernels_and_of_whole_networks() -> None:
    assert {"auto", "simulate", "torch", "openvino"} <= set(engines())
    with pytest.raises(ConfigError, match="Did you mean 'openvino'"):
        require("openvin")
    with pytest.raises(ConfigError, match="Did you mean 'torch'"):
        set_engine(unet(), "torhc")


def test_a_package_that_is_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "installed", lambda: None)
    assert "openvino>=2025.0" in str(unavailable("openvino"))
    with pytest.raises(KernelError, match="not installed.*--engine torch"):
        set_engine(unet(), "openvino")
    monkeypatch.setattr(openvino, "installed", lambda: "2023.3.0")
    assert "older than" in str(unavailable("openvino"))


class Session(AbstractSession):
    """Waits as long as it is told, then runs the network's own forward."""

    def __init__(self, network: nn.Module, wait: Callable[[], None]) -> None:
        self.network, self.wait = network, wait

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.wait()
        return type(self.network).forward(self.network, *args, **kwargs)

    def products(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, str]:
        return {}

    def save(self, folder: str | Path, args: tuple, kwargs: dict[str, Any], overwrite: bool = False) -> Path:
        return Path(folder)


@dataclass
class Clock:
    """Time as the test has it: a call of the network takes one second, one of the whole engine what it waits."""

    now: float = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    found = Clock()
    monkeypatch.setattr(fastest.time, "perf_counter", found)
    monkeypatch.setattr(fastest, "private_cache", lambda name: tmp_path)
    return found


def whole(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], None]) -> list[nn.Module]:
    """Let ``openvino`` be an engine that waits; return what it was given."""
    given: list[nn.Module] = []

    class Waits(AbstractNetworkEngine):
        def refusal(self) -> str | None:
            return None

        def session(self, network: nn.Module) -> AbstractSession:
            given.append(network)
            return Session(network, wait)

    monkeypatch.setattr(select, "_made", lambda engine, **options: Waits())
    return given


@pytest.mark.parametrize(("seconds", "wins"), [(-0.4, "openvino"), (1.0, "auto")])
def test_the_fastest_is_measured_once(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float, wins: str) -> None:
    def wait() -> None:
        clock.now += seconds

    given, network = whole(monkeypatch, wait), unet()
    inputs = lambda: ((torch.randn(1, 1, 8, 8), 5), {})  # noqa: E731 - as short as it gets
    found = fastest.fastest(network, inputs)
    assert found is not None and found.engine == wins and not found.remembered and running(network) is None
    assert found.seconds["auto"] == pytest.approx(0.5) and found.seconds["openvino"] == pytest.approx(0.5 + seconds)
    assert "measured now" in found.sentence and "500.0 ms" in found.sentence
    again = fastest.fastest(network, inputs)
    assert again is not None and again.remembered and again.engine == wins and len(given) == 1
    other = lambda: ((torch.randn(2, 1, 8, 8), 5), {})  # noqa: E731
    assert not fastest.fastest(network, other).remembered  # type: ignore[union-attr]


def test_an_engine_that_cannot_take_the_network(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    def wait() -> None:
        raise KernelError("UNet2DModel", "a network that can be converted", "an odd one")

    whole(monkeypatch, wait)
    found = fastest.fastest(unet(), lambda: ((torch.randn(1, 1, 8, 8), 5), {}))
    assert found is not None and found.engine == "auto" and "an odd one" in found.sentence


def test_nothing_is_measured_where_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest, "unavailable", lambda engine: "not installed")
    assert fastest.fastest(unet(), lambda: pytest.fail("not asked for")) is None
