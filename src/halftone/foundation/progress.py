"""Progress of long work: bars on a terminal, now and then a line elsewhere; always on stderr, never on stdout.

>>> with Progress(enabled=False) as progress:
...     [block for block in progress.track(["down", "mid", "up"], "blocks")]
['down', 'mid', 'up']

Tasks nest: one that opens while another is open is drawn under it and disappears when it ends, so a screen shows where
the work is, not all that it was. A terminal keeps one line for each finished outermost task.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TaskID
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

T = TypeVar("T")

_LINE_EVERY = 5.0  # seconds between two plain lines


class Task:
    """A piece of work that is counted. Made by ``Progress.task``; also a context manager that closes itself."""

    def __init__(
        self,
        owner: "Progress",
        label: str,
        total: int | None,
        unit: str,
        depth: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.label, self.total, self.unit, self.done, self.depth = label, total, unit, 0, depth
        self.note = ""
        self.closed = False
        self.bar: TaskID | None = None
        self._owner = owner
        self._weights = list(weights) if weights and total == len(weights) and min(weights) > 0 else None
        # Work of an earlier run counts as done but says nothing about this one's speed; nor does the time of finding it.
        self._inherited, self._lost, self._remembered = 0.0, 0.0, False
        self._began = self._advanced = time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more as done. ``note`` (such as ``loss 0.013``) is shown until another one comes.

        The task closes itself when the count reaches the total.
        """
        now = time.monotonic()
        if self._remembered:
            self._inherited += self._weight(self.done, self.done + n)
            self._lost += now - self._advanced
        self.done, self._remembered = self.done + n, False
        self.note = note or self.note
        self._advanced = now
        if self.total is not None and self.done >= self.total:
            self.close()
        elif not self.closed:
            self._owner._moved(self)

    def close(self) -> None:
        """End the task, and those inside it. Closing twice does nothing."""
        if not self.closed:
            self._owner._close(self)

    def __enter__(self) -> "Task":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def elapsed(self) -> float:
        """Seconds since the task began."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float | None:
        """Estimated seconds to the end; None where nothing is known yet."""
        if self.total is None:
            return None
        # Mean pace up to the last step, or to the last step of a task inside; the time since then counts down, so that a slow
        # step shows no pause.
        inside, at = self._owner._inside(self), self._advanced
        part = 0.0
        if inside is not None and inside.total and inside.done:
            part, at = inside.done / inside.total * self._weight(self.done, self.done + 1), inside._advanced
        fresh = self._weight(0, self.done) - self._inherited + part
        if fresh <= 0:
            return None
        pace = (at - self._began - self._lost) / fresh
        rest = self._weight(self.done, self.total) - part
        return max(0.0, pace * rest - (time.monotonic() - at))

    def _weight(self, start: int, stop: int) -> float:
        """Return what the steps from ``start`` to ``stop`` weigh."""
        return float(stop - start) if self._weights is None else sum(self._weights[start:stop])

    def count(self) -> str:
        """Return ``3/25 blocks``."""
        number = f"{self.done}/{self.total}" if self.total is not None else str(self.done)
        return f"{number} {self.unit}" if self.unit else number

    def times(self) -> str:
        """Return ``0:12 elapsed, 1:28 left``, or how the task ended."""
        if self.closed:
            complete = self.total is None or self.done >= self.total
            return f"{clock(self.elapsed)} elapsed, {'done' if complete else 'stopped'}"
        left = "ETA unknown" if self.left is None else f"{clock(self.left)} left"
        return f"{clock(self.elapsed)} elapsed, {left}"

    def line(self) -> str:
        """Return the whole state in words."""
        return f"{self.label} {self.count()}, {self.times()}" + (f", {self.note}" if self.note else "")


class Progress:
    """Shows tasks on stderr: bars inside a ``with`` block on a terminal, plain lines otherwise.

    diffusers' ``disable_progress_bar()`` silences tasks here too. ``say`` still speaks.

    Args:
        enabled: whether to show anything at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._open: list[Task] = []  # outermost first
        self._bars: Bars | None = None
        self._line_at = float("-inf")

    def __enter__(self) -> "Progress":
        if self.enabled and not _silenced() and _is_terminal(sys.stderr):
            columns = (SpinnerColumn(), _Label(), BarColumn(bar_width=24), _Count(), _Times(), _Note())
            self._bars = Bars(
                *columns,
                console=Console(file=sys.stderr),
                refresh_per_second=4,  # drawing takes time from the work on a small machine
                # What others print must not break the bars, but a piped stdout (--json) is left alone.
                redirect_stdout=_is_terminal(sys.stdout),
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self._open[0].close()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def task(self, label: str, total: int | None, unit: str = "", weights: Sequence[float] | None = None) -> Task:
        """Open a task inside the innermost open one.

        Args:
            label: what is being done.
            total: how many there are; None when nobody knows.
            unit: what is counted, in the plural.
            weights: how long each takes relative to the others; without them all take alike.
        """
        task = Task(self, label, total, unit, len(self._open), weights)
        self._open.append(task)
        if self._bars is not None:
            task.bar = self._bars.add_task("", total=total, shown=task)
        elif task.depth == 0:
            self._write(task.line())
        return task

    def track(self, iterable: Iterable[T], label: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        """Yield the entries of ``iterable``, counting each one when the next is asked for.

        The total is ``len(iterable)`` where it has one and none is given.
        """
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        with self.task(label, total, unit) as task:
            for entry in iterable:
                yield entry
                task.advance()

    def remembered(self) -> None:
        """Say that the innermost task's present step is work of an earlier run, unless it says :meth:`computed` later."""
        for task in self._open[-1:]:
            task._remembered = True

    def computed(self) -> None:
        """Say that the innermost task's present step is this run's work."""
        for task in self._open[-1:]:
            task._remembered = False

    def say(self, text: str) -> None:
        """Write a line of text that stays."""
        if self._bars is not None:
            self._bars.console.print(Text(text))
        elif self.enabled:
            print(text, file=sys.stderr, flush=True)

    def _inside(self, task: Task) -> Task | None:
        """Return the task that is open directly inside another."""
        open_ = tuple(self._open)  # bars are drawn from a thread of their own
        return next((each for each in open_ if each.depth == task.depth + 1), None)

    def _moved(self, task: Task) -> None:
        if self._bars is not None and task.bar is not None:
            self._bars.update(task.bar, completed=task.done)
        elif self.enabled and time.monotonic() - self._line_at >= _LINE_EVERY:
            # One line tells the whole way down: "blocks 3/25 ... | rounding 120/2000 ...".
            self._write(" | ".join(each.line() for each in self._open))

    def _close(self, task: Task) -> None:
        inside = self._open[self._open.index(task) :]
        del self._open[self._open.index(task) :]
        for each in inside:
            each.closed = True
            if self._bars is not None and each.bar is not None:
                self._bars.remove_task(each.bar)
        if task.depth == 0 and self._bars is not None:
            self._bars.refresh()  # else the line that stays is followed by the bars of a moment ago
            self._bars.console.print(Text(task.line()))
        elif task.depth == 0:
            self._write(task.line())

    def _write(self, line: str) -> None:
        self._line_at = time.monotonic()
        if self.enabled and not _silenced():
            print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a duration the way a clock shows it.

    >>> clock(7.6), clock(754), clock(3723)
    ('0:07', '12:34', '1:02:03')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Label(ProgressColumn):
    def render(self, task: Bar) -> Text:
        shown: Task = task.fields["shown"]
        return Text("  " * shown.depth + shown.label, no_wrap=True, overflow="ellipsis")


class _Count(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(task.fields["shown"].count(), style="progress.download", no_wrap=True)


class _Times(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(task.fields["shown"].times(), style="progress.remaining", no_wrap=True)


class _Note(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(task.fields["shown"].note, style="dim", no_wrap=True, overflow="ellipsis")


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _silenced() -> bool:
    """Whether the program asked diffusers for no bars. diffusers is not imported to find out."""
    logging = sys.modules.get("diffusers.utils.logging")
    return logging is not None and not logging.is_progress_bar_enabled()
