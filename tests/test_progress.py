"""One line of progress however deep the loops, quiet where nobody looks, and a table of where the time went."""

from __future__ import annotations

import io
import re
import sys
import time
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

import hf_compact_embeddings as hce
from hf_compact_embeddings import progress

from .tiny_models import tiny_model
from .tools import tiny_tokenizer

# The module, whose name a class of it hides.
HUB_BARS = sys.modules["huggingface_hub.utils.tqdm"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal on which everything is drawn at once."""
    screen = Terminal()
    # What captures output puts its own stderr in place, after this.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(HUB_BARS, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(HUB_BARS, "progress_bar_states", {})
    monkeypatch.setattr(logging, "_tqdm_active", True)
    return screen


def work() -> None:
    with progress.stage("Fitting"):
        for _ in progress.steps(range(3), "Clustering blocks"):
            with progress.step("Points", 20_000) as points:
                points.update(5000)


def test_nested_loops_are_one_line(terminal: Terminal) -> None:
    work()
    drawn = terminal.getvalue()
    assert "\n" not in drawn
    texts = {text.strip() for text in drawn.split("\r")}
    assert "Fitting: clustering blocks 2/3 · 0:00" in texts
    assert "Fitting: clustering blocks 1/3: points 25% · 0:00" in texts
    assert drawn.endswith("\r") and not drawn.split("\r")[-2].strip(), "nothing stays"


def test_a_stage_within_a_stage_comes_first(terminal: Terminal) -> None:
    with progress.stage("Fitting"), progress.stage("Reading sensitivities"), progress.step("Batches", 5) as batches:
        batches.update(4)
    assert "Reading sensitivities: batches 4/5 ·" in terminal.getvalue()
    assert "Fitting:" not in terminal.getvalue()


def test_a_step_alone_is_a_line(terminal: Terminal) -> None:
    with progress.step("Reading texts") as texts:
        texts.update(1200)
    assert "\rReading texts 1,200 · 0:00" in terminal.getvalue()


def test_a_generator_that_is_left_early_leaves_nothing_behind(terminal: Terminal) -> None:
    next(progress.steps(range(3), "Texts"))
    with progress.stage("Fitting"):
        assert [str(step) for step in progress._LINE.get().steps] == ["Fitting"]
    assert progress._LINE.get() is None


def test_a_line_that_is_too_long_is_cut(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    work()
    assert max(map(len, terminal.getvalue().split("\r"))) == 19


def switch_off_the_hub(_: pytest.MonkeyPatch, terminal: Terminal) -> None:
    disable_progress_bars()


def decide_in_the_environment(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    monkeypatch.setattr(HUB_BARS, "HF_HUB_DISABLE_PROGRESS_BARS", True)


def switch_off_transformers(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    monkeypatch.setattr(logging, "_tqdm_active", False)


def redirect(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    monkeypatch.setattr(terminal, "isatty", lambda: False)


def be_short(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 1.0)


SWITCHES = [switch_off_the_hub, decide_in_the_environment, switch_off_transformers, redirect, be_short]


@pytest.mark.parametrize("switch", SWITCHES)
def test_where_nobody_looks_nothing_is_shown(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, switch) -> None:
    switch(monkeypatch, terminal)
    work()
    assert terminal.getvalue() == ""


def test_without_a_stderr_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    work()
    with progress.report(aloud=True, table=True):
        progress.tell("Anybody?")


@pytest.mark.parametrize("hub", [True, False])
def test_bars_of_transformers_come_back(terminal: Terminal, hub: bool) -> None:
    (enable_progress_bars if hub else disable_progress_bars)()
    with progress.other_bars_hidden():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() and are_progress_bars_disabled() is not hub


def test_each_second_counts_once() -> None:
    began = time.perf_counter()
    with progress.report() as outer:
        with progress.stage("Fitting"), progress.report() as inner:
            assert inner is outer
            time.sleep(0.02)
            with progress.stage("Reading"):
                time.sleep(0.05)
        time.sleep(0.03)
        table = str(outer)
    assert sum(outer.seconds.values()) <= time.perf_counter() - began
    assert 0.02 <= outer.seconds["Fitting"] < 0.05 <= outer.seconds["Reading"]
    assert outer.seconds["Everything else"] >= 0.03
    assert [line.split("  ")[0] for line in table.splitlines()] == ["Fitting", "Reading", "Everything else", "In all"]


def seconds_told(text: str) -> dict[str, float]:
    return {name.strip(): float(seconds) for name, seconds in re.findall(r"^(\S.*?) +(\d+\.\d) s$", text, re.M)}


def test_verbose_says_where_the_time_went(capsys: pytest.CaptureFixture) -> None:
    began = time.perf_counter()
    options = {"bits_per_weight": 8.0, "tokenizer": tiny_tokenizer(), "verbose": True}
    hce.compress(tiny_model(), **options)
    wall = time.perf_counter() - began
    told = seconds_told(capsys.readouterr().err)
    stages = {"Planning", "Counting tokens", "Making texts", "Reading sensitivities", "Fitting", "Assembling"}
    assert stages <= told.keys()
    # Each line is rounded to a tenth.
    in_all = told.pop("In all")
    assert abs(in_all - wall) < 0.15 and abs(sum(told.values()) - in_all) <= 0.05 * (len(told) + 1)
    hce.plan(tiny_model(), **options)
    assert {"Planning", "Counting tokens", "In all"} <= seconds_told(capsys.readouterr().err).keys()
    hce.compress(tiny_model(), "scalar")
    assert capsys.readouterr().err == ""
