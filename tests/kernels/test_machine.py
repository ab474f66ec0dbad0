"""Which engines this machine can run, and what is said of the others."""

import json

import pytest
import torch
from tests.artifact.conftest import INPUT, WEIGHT, hold
from torch import nn

from halftone.foundation.errors import ConfigError, KernelError
from halftone.kernels.library import onednn_int8
from halftone.kernels.machine import (
    SimulatedWarning,
    machine,
    machine_report,
    require,
    tell_simulated,
    unavailable,
)
from halftone.kernels.native import product
from halftone.models.surgery import replace_layers
from halftone.nn import Scheme
from halftone.nn.running import set_engine


def test_report_is_json_and_names_every_engine() -> None:
    report = json.loads(json.dumps(machine_report()))
    assert report["engines"]["simulate"] is None
    assert set(report["engines"]) == {"simulate", "torch"} and report["threads"] > 0 and report["processor"]


def test_what_cards_tell_of_the_machine_is_json() -> None:
    facts = json.loads(json.dumps(machine()))
    assert (
        list(facts) == ["processor", "threads", "capability", "torch", "cuda", "keeps_freed_memory", "native_loops"]
        and facts["threads"] > 0
    )


def test_an_engine_that_lacks_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_int8, "missing", lambda: "this PyTorch is built without oneDNN")
    monkeypatch.setattr(product, "why_none", lambda: "this processor has no AVX512-VNNI")
    assert "built without oneDNN" in str(unavailable("torch"))
    with pytest.raises(KernelError, match="built without oneDNN.*--engine simulate"):
        require("torch")
    require("torch", weight_only=True)
    require("simulate")
    require("auto")


def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="simulate"):
        require("simulated")


def test_a_fallback_that_nobody_asked_for_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tell_simulated.cache_clear()
    x, odd = torch.randn(2, 8), torch.randn(2, 8)
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    replace_layers(network, ["0", "1"])
    for layer in network:
        hold(layer, Scheme(WEIGHT, INPUT))
    network(x)  # this machine has kernels: nothing to tell, which the suite's "error" filter checks
    tell_simulated.cache_clear()
    monkeypatch.setattr(onednn_int8, "missing", lambda: "this PyTorch is built without oneDNN")
    monkeypatch.setattr(product, "why_none", lambda: "this processor has no AVX512-VNNI")
    set_engine(network, "simulate")
    network(x)  # asked for
    set_engine(network, "auto")
    with pytest.warns(SimulatedWarning, match="onednn_int8: this PyTorch is built without oneDNN.*simulated") as told:
        network(x)
        network(odd)
    assert len(told) == 1
    tell_simulated.cache_clear()
