"""refine(): calibrate a fit within some minutes, and go as far from it as held-out texts say."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..evidence import Evidence
from ..evidence.texts import HubTexts, Text, single_texts
from ..modeling.errors import CompactConfigError, config_error
from ..progress import Step, step, tell
from .blending import blend
from .calibration import calibrate
from .judge import Judge
from .losses import predicts
from .products import fast_products
from .recipes import Recipe, recipe_for
from .trainer import CalibrationError, round_tables

_SHARES = (0.25, 0.5, 0.75, 1.0)
# Short training sees no more of them.
_MOST_TEXTS, _MOST_MADE = 4000, 2048
_LEAST_TEXTS = 16
_HELD_OUT_SHARE, _LEAST_HELD_OUT, _MOST_HELD_OUT = 0.1, 32, 256
# Of the minutes: for making texts, and for what no estimate foresees.
_SHARE_TO_MAKE_TEXTS, _SHARE_IN_RESERVE = 0.15, 0.1
_TRIAL_STEPS = 3
# Of held-out texts. Where these are few and short, windows are shorter than they should be.
_LEAST_WINDOWS, _SHORTEST_WINDOW = 4, 8


def refine(compact: PreTrainedModel, evidence: Evidence, minutes: float, began: float) -> PreTrainedModel:
    """Calibrate a fit against the model that it was made from, in place, and return it.

    Its values go a share of the way to the calibrated ones: the one with the least loss on held-out texts, none of it
    if all others are worse.

    Args:
        compact: the fit.
        evidence: that it was fitted with, whose model is the goal.
        minutes: that all may take.
        began: when all began, as `time.perf_counter()` tells.
    """
    if evidence.tokenizer is None:
        raise CompactConfigError("`tokenizer` is missing: calibration reads texts.")
    clock, recipe = _Clock(began, 60 * minutes), recipe_for(compact)
    learned, held_out = _split(_texts(evidence, recipe, clock), evidence.seed)
    recipe = _with_windows_of([learned, held_out], evidence.tokenizer, recipe)
    with _lent(evidence) as teacher, _generators_kept(), fast_products(evidence.device):
        fit = copy.deepcopy(compact).float().to(evidence.device)
        training = _Training(fit, teacher, _padding(evidence.tokenizer), recipe, evidence.seed)
        judge = Judge(fit, teacher, training.tokenizer, recipe, held_out, evidence.seed)
        with clock.kept_for(len(_SHARES)):
            losses = {0.0: judge(fit)}
        trained = training.within(clock, learned)
        share, chosen = 0.0, None
        for further in _SHARES if trained is not None else ():
            part = blend(fit, trained, further)
            round_tables(part)
            losses[further] = judge(part)
            if losses[further] < losses[share]:
                share, chosen = further, part
    if chosen is not None:
        _take_values(compact, chosen)
    noted = {} if trained is None else trained.config.compact_source["calibration"]
    noted |= {
        "share": share,
        "held_out_loss": {"fit": round(losses[0.0], 6), "now": round(losses[share], 6)},
        "texts": {"learned": len(learned), "held_out": len(held_out), "made": evidence.texts is None},
    }
    compact.config.compact_source = dict(compact.config.compact_source) | {"calibration": noted}
    if trained is not None:
        tell(
            f"Held-out loss {losses[0.0]:.4f} after the fit, {losses[1.0]:.4f} calibrated; "
            f"{share:.0%} of the way is best: {losses[share]:.4f}."
        )
    return compact


class _Clock:
    """The time that there is."""

    def __init__(self, began: float, seconds: float) -> None:
        self.began, self.seconds = began, seconds
        self.kept = 0.0

    def gone(self) -> float:
        """Return the seconds since all began."""
        return time.perf_counter() - self.began

    def left(self) -> float:
        """Return the seconds that are left beside those that are kept."""
        return (1 - _SHARE_IN_RESERVE) * self.seconds - self.gone() - self.kept

    @contextlib.contextmanager
    def kept_for(self, times: int) -> Iterator[None]:
        """Keep time to do so many times later what is done now."""
        started = time.perf_counter()
        yield
        self.kept += times * (time.perf_counter() - started)

    def steps(self, seconds: float) -> int:
        """Return how many steps that take so many seconds there is time for; raise if there is none for one."""
        count = int(self.left() / seconds)
        if count < 1:
            least = (self.gone() + self.kept + seconds) / (1 - _SHARE_IN_RESERVE) / 60
            allowed = f"it must be at least {math.ceil(100 * least) / 100:g} for a single step of calibration here"
            raise config_error("minutes", self.seconds / 60, allowed)
        return count


def _texts(evidence: Evidence, recipe: Recipe, clock: _Clock) -> list[Text]:
    """Return the texts to calibrate on: some of those that were given, or as many as there is time to make."""
    texts: Iterable[Text] | None = evidence.texts
    if texts is None:
        return _made(evidence, clock)
    stream = single_texts(texts) if predicts(recipe.losses) else iter(texts)
    if isinstance(texts, HubTexts):
        return list(itertools.islice(stream, _MOST_TEXTS))
    # Files may be sorted by kind, so that texts are drawn from all of them.
    choice, kept = random.Random(evidence.seed), []
    for place, text in enumerate(stream):
        if place < _MOST_TEXTS:
            kept.append(text)
        elif (other := choice.randrange(place + 1)) < _MOST_TEXTS:
            kept[other] = text
    return kept


def _made(evidence: Evidence, clock: _Clock) -> list[Text]:
    """Make texts: those that the fit was told of first, then others, until there are enough or it takes too long."""
    texts: list[Text] = list(evidence.readable_texts or ())
    until = clock.gone() + _SHARE_TO_MAKE_TEXTS * clock.seconds
    for round_number in itertools.count(1):
        if len(texts) >= _MOST_MADE or clock.gone() > until or evidence.tokenizer is None:
            return texts
        texts += evidence.made_texts(evidence.tokenizer, evidence.seed + round_number)
    return texts


def _split(texts: list[Text], seed: int) -> tuple[list[Text], list[Text]]:
    """Return texts to learn from, and others to judge by."""
    if len(texts) < _LEAST_TEXTS:
        raise CompactConfigError(
            f"`texts` has {len(texts)} texts, but `effort` 'best' needs at least {_LEAST_TEXTS}: some are held out."
        )
    mixed = random.Random(seed).sample(texts, len(texts))
    wanted = min(max(int(_HELD_OUT_SHARE * len(texts)), _LEAST_HELD_OUT), _MOST_HELD_OUT, len(texts) // 2)
    return mixed[wanted:], mixed[:wanted]


def _with_windows_of(parts: list[list[Text]], tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Recipe:
    """Return a recipe whose windows are short enough that each part of the texts, where they are joined, fills some."""
    if not predicts(recipe.losses):
        return recipe
    enough = _LEAST_WINDOWS * recipe.max_length
    tokens = min(_tokens_up_to(enough, texts, tokenizer) for texts in parts)
    length = max(_SHORTEST_WINDOW, tokens // _LEAST_WINDOWS)
    return recipe if length >= recipe.max_length else dataclasses.replace(recipe, max_length=length)


def _tokens_up_to(enough: int, texts: list[Text], tokenizer: PreTrainedTokenizerBase) -> int:
    tokens = 0
    for text in texts:
        tokens += len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if tokens >= enough:
            break
    return tokens


def _padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that can pad: what stands under the mask is not read."""
    if tokenizer.pad_token_id is not None or tokenizer.eos_token is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def _lent(evidence: Evidence) -> Iterator[PreTrainedModel]:
    """Give the dense model, where the fit was made; afterwards it is where and as it was."""
    model = evidence.model
    device, training = model.device, model.training
    try:
        yield model.to(evidence.device).eval() if device != evidence.device else model.eval()
    finally:
        model.train(training)
        if model.device != device:
            model.to(device)


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave random numbers as they are: Trainer seeds all generators."""
    state = random.getstate()
    with torch.random.fork_rng():
        yield
    random.setstate(state)


@torch.no_grad()
def _take_values(compact: PreTrainedModel, other: PreTrainedModel) -> None:
    """Put another model's values into one, in its own types."""
    others = dict(other.named_parameters())
    for name, value in compact.named_parameters():
        value.copy_(others[name])
    round_tables(compact)


class _Training:
    """Calibration of a fit."""

    def __init__(
        self,
        fit: PreTrainedModel,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.fit, self.teacher, self.tokenizer, self.recipe, self.seed = fit, teacher, tokenizer, recipe, seed

    def within(self, clock: _Clock, texts: list[Text]) -> PreTrainedModel | None:
        """Return the fit after as many steps as there is time for; None if training broke it."""
        trial = _Watch(clock)
        try:
            with step("Measuring a step"):
                self._run(texts, _TRIAL_STEPS, trial)
            seconds = trial.seconds_a_step()
            most = math.ceil(len(texts) / self.recipe.batch) * self.recipe.most_passes
            count = min(clock.steps(seconds), most)
            ends = (clock.gone() + clock.kept + count * seconds) / 60
            tell(
                f"Calibrating: {count:,} steps of {seconds:.2g} seconds on {len(texts):,} texts; all in all it will "
                f"take {ends:.1f} of {clock.seconds / 60:g} minutes."
            )
            with step("Training", count) as shown:
                return self._run(texts, count, _Watch(clock, shown))
        except CalibrationError as error:
            tell(f"Calibrating broke, so that the fit stays: {error}")
            return None

    def _run(self, texts: list[Text], count: int, watch: _Watch) -> PreTrainedModel:
        recipe, device = self.recipe, self.fit.device
        trained = copy.deepcopy(self.fit)
        # Trainer prints what it logs, whatever it is told.
        with contextlib.redirect_stdout(io.StringIO()):
            return calibrate(
                trained,
                texts=texts,
                tokenizer=self.tokenizer,
                teacher=self.teacher,
                losses=recipe.losses,
                trains=recipe.trains,
                max_length=recipe.max_length,
                table_learning_rate=recipe.table_learning_rate,
                callbacks=[watch],
                args={
                    "max_steps": count,
                    "per_device_train_batch_size": recipe.batch,
                    "learning_rate": recipe.learning_rate,
                    "lr_scheduler_type": "linear",
                    "warmup_steps": min(100, count // 10),
                    "use_cpu": device.type == "cpu",
                    "bf16": device.type == "cuda" and torch.cuda.is_bf16_supported(),
                    "logging_strategy": "no",
                    "report_to": "none",
                    "disable_tqdm": True,
                    "seed": self.seed,
                },
            )


class _Watch(TrainerCallback):
    """Times steps, shows them, and ends the training when the time is up."""

    def __init__(self, clock: _Clock, shown: Step | None = None) -> None:
        self.clock, self.shown = clock, shown
        self.times: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.times.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.perf_counter()
        if self.shown is not None:
            self.shown.update()
        if self.clock.left() < 0:
            control.should_training_stop = True

    def seconds_a_step(self) -> float:
        """Return the mean time of the steps after the first, which makes ready what others find."""
        first = min(1, len(self.times) - 1)
        return (self.ended - self.times[first]) / (len(self.times) - first)
