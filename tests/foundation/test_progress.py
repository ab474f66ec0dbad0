"""Progress: plain lines, bars, and silence."""

import io
import sys
import time
from types import SimpleNamespace

import pytest

from halftone.foundation import progress as progress_module
from halftone.foundation.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at ``now[0]``."""
    at = [100.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: at[0]))
    return at


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal. Not a fixture: pytest puts its own stderr back between the fixtures and the test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    return stream


def test_plain_lines_come_first_last_and_every_five_seconds(now: list[float], capsys: pytest.CaptureFixture) -> None:
    with Progress() as progress:
        for _ in progress.track(range(10), "calls", unit="calls"):
            now[0] += 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "calls 0/10 calls, 0:00 elapsed, ETA unknown",
        "calls 3/10 calls, 0:06 elapsed, 0:14 left",
        "calls 6/10 calls, 0:12 elapsed, 0:08 left",
        "calls 9/10 calls, 0:18 elapsed, 0:02 left",
        "calls 10/10 calls, 0:20 elapsed, done",
    ]


def test_nested_tasks_share_a_line_and_write_none_of_their_own(now: list[float], capsys: pytest.CaptureFixture) -> None:
    with Progress() as progress:
        blocks = progress.task("blocks", 2)
        for _ in range(2):
            with progress.task("rounding", 3) as steps:
                for step in range(3):
                    now[0] += 3
                    steps.advance(note=f"loss {step}")
            blocks.advance()
    assert capsys.readouterr().err.splitlines() == [
        "blocks 0/2, 0:00 elapsed, ETA unknown",
        "blocks 0/2, 0:06 elapsed, 0:12 left | rounding 2/3, 0:06 elapsed, 0:03 left, loss 1",
        "blocks 1/2, 0:12 elapsed, 0:06 left | rounding 1/3, 0:03 elapsed, 0:06 left, loss 0",
        "blocks 2/2, 0:18 elapsed, done",
    ]


def test_the_estimate_counts_down_between_steps(now: list[float]) -> None:
    task = Progress(enabled=False).task("blocks", 4)
    assert task.left is None
    now[0] += 4
    task.advance()
    assert task.left == 12
    now[0] += 1
    assert task.left == 11
    now[0] += 60
    assert task.left == 0


@pytest.mark.parametrize("remembered", [0, 2], ids=["a fresh run", "a resumed run"])
def test_unlike_steps_are_weighed_and_remembered_ones_do_not_count(now: list[float], remembered: int) -> None:
    """A step of weight w takes 10 w seconds in 5 iterations: the estimate is right all along, in a resumed run too."""
    progress, weights = Progress(enabled=False), [1.0, 4.0, 2.0, 16.0]
    task = progress.task("blocks", 4, weights=weights)
    for number, weight in enumerate(weights):
        if number < remembered:
            now[0] += 0.5  # of reading what is known
            progress.remembered()
            task.advance()
            assert task.left is None
            continue
        with progress.task("unit", 5) as inner:
            for step in range(1, 5):
                now[0] += 2 * weight
                inner.advance()
                rest = sum(weights[number + 1 :]) + weight * (1 - step / 5)
                assert task.left == pytest.approx(10 * rest)
            now[0] += 2 * weight
        progress.computed()
        task.advance()
    assert task.closed


def test_weights_that_cannot_be_are_no_weights(now: list[float]) -> None:
    for weights in ([1.0], [0.0, 1.0]):
        task = Progress(enabled=False).task("blocks", 2, weights=weights)
        now[0] += 3
        task.advance()
        assert task.left == 3


def test_an_unfinished_task_says_so_and_closes_what_is_inside(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError), Progress() as progress:
        outer = progress.task("outer", 2)
        inner = progress.task("inner", 2)
        raise ValueError
    assert outer.closed and inner.closed
    assert capsys.readouterr().err.splitlines()[-1] == "outer 0/2, 0:00 elapsed, stopped"


def test_leaving_a_tracked_loop_early_closes_it(capsys: pytest.CaptureFixture) -> None:
    progress = Progress()
    for _ in progress.track(iter("abc"), "letters", total=3):
        break
    assert progress.task("next", 1).depth == 0
    assert "letters 0/3, 0:00 elapsed, stopped" in capsys.readouterr().err


def test_unknown_totals_and_empty_loops(capsys: pytest.CaptureFixture) -> None:
    progress = Progress()
    assert list(progress.track(iter("ab"), "found", unit="images")) == ["a", "b"]
    assert list(progress.track([], "none")) == []
    assert capsys.readouterr().err.splitlines() == [
        "found 0 images, 0:00 elapsed, ETA unknown",
        "found 2 images, 0:00 elapsed, done",
        "none 0/0, 0:00 elapsed, ETA unknown",
        "none 0/0, 0:00 elapsed, done",
    ]


def test_disabled_means_silent(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with Progress(enabled=False) as progress:
        progress.say("hello")
        assert list(progress.track(range(3), "x")) == [0, 1, 2]
    assert terminal.getvalue() == "" and capsys.readouterr().out == ""


def test_the_switch_of_diffusers_silences_tasks_but_not_words(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch)

    class Logging:
        @staticmethod
        def is_progress_bar_enabled() -> bool:
            return False

    monkeypatch.setitem(sys.modules, "diffusers.utils.logging", Logging)
    with Progress() as progress:
        list(progress.track(range(3), "x"))
        progress.say("hello")
    assert terminal.getvalue() == "hello\n"


def test_a_terminal_gets_bars_and_keeps_one_line_for_each_outermost_task(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch)
    with Progress() as progress:
        blocks = progress.task("blocks [x]", 2)
        for _ in range(2):
            for _ in progress.track(range(3), "rounding"):
                progress._bars.refresh()
            blocks.advance(note="psnr 30")
        progress.say("words [bold]")
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "  rounding" in text
    kept = [line for line in text.splitlines() if "blocks [x] 2/2, 0:00 elapsed, done, psnr 30" in line]
    assert len(kept) == 1
    assert "words [bold]" in text
    assert capsys.readouterr().out == ""


def test_a_piped_stdout_is_left_alone_while_bars_run(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = open_terminal(monkeypatch)
    with Progress() as progress:
        progress.task("x", 2)
        print('{"json": 1}')
    assert capsys.readouterr().out == '{"json": 1}\n'
    assert "json" not in terminal.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with Progress() as progress:
        list(progress.track(range(2), "x"))
    assert "\x1b[" not in terminal.getvalue()
    assert terminal.getvalue().endswith("x 2/2, 0:00 elapsed, done\n")


def test_counting_is_cheap(capsys: pytest.CaptureFixture) -> None:
    task = Progress().task("iterations", 200_000)
    began = time.perf_counter()
    for _ in range(20_000):
        task.advance()
    assert time.perf_counter() - began < 1.0


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.9, 60, 3599, 3600, 90061)] == [
        "0:00",
        "0:59",
        "1:00",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]
