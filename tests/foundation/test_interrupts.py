"""Interrupts that wait for the end of a block."""

import signal
import threading
from collections.abc import Iterator

import pytest

from halftone.foundation.interrupts import interrupts_wait


@pytest.fixture(autouse=True)
def ordinary() -> Iterator[None]:
    """A test run started in the background by a shell inherits an ignored SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_first_waits_and_the_second_does_not() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest")
        with interrupts_wait():
            done.append("a block inside")
        done.append("the end")
    assert done == ["the rest", "a block inside", "the end"]
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("never")
    assert "never" not in done
    with pytest.raises(ValueError), interrupts_wait():
        raise ValueError


def test_it_leaves_others_alone() -> None:
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    with interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        assert came
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done: list[bool] = []

    def elsewhere() -> None:
        with interrupts_wait():
            done.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done
