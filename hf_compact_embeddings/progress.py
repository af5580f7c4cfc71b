"""What is going on: one line on a terminal while it takes long, and what the time was spent on.

What takes long is a stage, as "Fitting"; within it run steps, as "clustering blocks", and steps within steps. However
deep they lie, there is one line, of the innermost stage and its steps: `Fitting: clustering blocks 3/12 · 0:14`. What
goes on and what is told of it are kept in context variables, so that no function hands them on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from typing import TypeVar

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging

logger = logging.get_logger(__name__)

_QUIET_SECONDS = 1.0
_SECONDS_BETWEEN = 0.1
# Higher counts, as of points, say nothing to a reader: shares do.
_MOST_COUNTED = 10_000
# Time that is spent in no stage.
_ELSEWHERE = "Everything else"

Item = TypeVar("Item")


@dataclasses.dataclass(eq=False)
class Step:
    """Something that goes on.

    Attributes:
        name: what the line says.
        total: how much there is to do, where that is known; it may turn out to be less.
        is_stage: whether it comes first in the line.
        done: how much of it is done.
    """

    name: str
    total: int | None = None
    is_stage: bool = False
    done: int = 0

    def update(self, count: int = 1) -> None:
        """Note that so much more is done."""
        self.done += count
        if (line := _LINE.get()) is not None:
            line.refresh()

    def __str__(self) -> str:
        """Return the name, and how far it is."""
        if not self.total:
            return f"{self.name} {self.done:,}" if self.done else self.name
        if self.total > _MOST_COUNTED:
            return f"{self.name} {min(1.0, self.done / self.total):.0%}"
        return f"{self.name} {self.done:,}/{self.total:,}"


class _Line:
    """The line, drawn anew in its place from time to time, and wiped out in the end."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.began = self.drawn = time.perf_counter()
        self.width = 0

    def __str__(self) -> str:
        stages = [place for place, step in enumerate(self.steps) if step.is_stage]
        first, *others = map(str, self.steps[stages[-1] if stages else 0 :])
        text = ": ".join([first, *(f"{other[:1].lower()}{other[1:]}" for other in others)])
        minutes, seconds = divmod(int(time.perf_counter() - self.began), 60)
        return f"{text} · {minutes}:{seconds:02}"

    def refresh(self) -> None:
        now = time.perf_counter()
        if now - self.began < _QUIET_SECONDS or now - self.drawn < _SECONDS_BETWEEN or not _may_show():
            return
        self.drawn = now
        text = str(self)[: shutil.get_terminal_size().columns - 1]
        _write(f"\r{text.ljust(self.width)}")
        self.width = len(text)

    def wipe(self) -> None:
        if self.width:
            _write(f"\r{' ' * self.width}\r")
            self.width = 0


class Report:
    """What is told about a call, and where its time goes.

    Attributes:
        aloud: whether what is told goes to stderr; else to the log.
        seconds: spent in each stage itself, without the stages within it.
    """

    def __init__(self, aloud: bool) -> None:
        """Begin."""
        self.aloud = aloud
        self.seconds: dict[str, float] = {}
        self._stages = [_ELSEWHERE]
        self._since = time.perf_counter()

    def enter(self, stage: str) -> None:
        """Note that a stage begins."""
        self._charge()
        self._stages.append(stage)

    def leave(self) -> None:
        """Note that the last stage that began ends."""
        self._charge()
        self._stages.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        stage = self._stages[-1]
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def __str__(self) -> str:
        """Return a table of the stages, in the order in which they began, and their seconds."""
        self._charge()
        elsewhere = self.seconds[_ELSEWHERE]
        rows = [item for item in self.seconds.items() if item[0] != _ELSEWHERE]
        rows += [(_ELSEWHERE, elsewhere), ("In all", sum(self.seconds.values()))]
        return "\n".join(f"{stage:<24}{seconds:>8.1f} s" for stage, seconds in rows)


_LINE: ContextVar[_Line | None] = ContextVar("line", default=None)
_REPORT: ContextVar[Report | None] = ContextVar("report", default=None)


def _may_show() -> bool:
    if are_progress_bars_disabled() or not logging.is_progress_bar_enabled():
        return False
    return sys.stderr is not None and sys.stderr.isatty()


def _write(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


@contextlib.contextmanager
def step(name: str, total: int | None = None) -> Iterator[Step]:
    """Show that something goes on, within what goes on already."""
    with _shown(Step(name, total)) as shown:
        yield shown


@contextlib.contextmanager
def stage(name: str, total: int | None = None) -> Iterator[Step]:
    """Show that something goes on, first in the line, and count its seconds."""
    report = _REPORT.get()
    if report is not None:
        report.enter(name)
    try:
        with _shown(Step(name, total, is_stage=True)) as shown:
            yield shown
    finally:
        if report is not None:
            report.leave()


@contextlib.contextmanager
def _shown(shown: Step) -> Iterator[Step]:
    line = _LINE.get()
    own = line is None
    if line is None:
        line = _Line()
        _LINE.set(line)
    line.steps.append(shown)
    line.refresh()
    try:
        yield shown
    finally:
        # A generator that is left early may end after what began later.
        line.steps.remove(shown)
        if own:
            line.wipe()
            _LINE.set(None)


def steps(items: Collection[Item], name: str) -> Iterator[Item]:
    """Yield items, and show how many are done."""
    with step(name, len(items)) as shown:
        for item in items:
            yield item
            shown.update()


@contextlib.contextmanager
def report(aloud: bool = False, table: bool = False) -> Iterator[Report]:
    """Watch where the time goes, as a part of what is watched already if something is.

    Args:
        aloud: whether what is told goes to stderr.
        table: print a table of it at the end, on stderr.
    """
    outer = _REPORT.get()
    if outer is not None:
        yield outer
        return
    watched = Report(aloud)
    _REPORT.set(watched)
    try:
        yield watched
        if table:
            _write(f"{watched}\n")
    finally:
        _REPORT.set(None)


@contextlib.contextmanager
def other_bars_hidden() -> Iterator[None]:
    """Keep the bars that Transformers shows off the screen, on which there is one line."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    hub_shows = not are_progress_bars_disabled()
    _switch(logging.disable_progress_bar)
    try:
        yield
    finally:
        # This switches the Hub's bars on, too.
        _switch(logging.enable_progress_bar)
        if not hub_shows:
            _switch(disable_progress_bars)


def _switch(bars: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        # The Hub warns where the environment decides on its bars.
        warnings.simplefilter("ignore")
        bars()


def tell(message: str) -> None:
    """Say something to whoever waits: on stderr where that is asked for, else in the log."""
    watched = _REPORT.get()
    if watched is None or not watched.aloud:
        logger.info(message)
        return
    if (line := _LINE.get()) is not None:
        line.wipe()
    _write(f"{message}\n")
