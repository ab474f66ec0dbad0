"""Which engines this machine can run, and what is said of the others."""

import json

import pytest

from halftone.foundation.errors import ConfigError, KernelError
from halftone.kernels.library import onednn_int8
from halftone.kernels.machine import machine, machine_report, require, unavailable


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
    assert "built without oneDNN" in str(unavailable("torch"))
    with pytest.raises(KernelError, match="built without oneDNN.*--engine simulate"):
        require("torch")
    require("torch", weight_only=True)
    require("simulate")
    require("auto")


def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="simulate"):
        require("simulated")
