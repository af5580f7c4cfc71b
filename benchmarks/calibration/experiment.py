"""An experiment of calibration, as a JSON file says it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MEASURES = ("sts", "perplexity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What to fit, what to learn from, how, and what to measure. Files are relative to the folder of `--data`.

    Attributes:
        question: that it answers.
        method: of compression.
        options: of the method, and its budget, `ratio` (to the table in float32) or `max_bytes`, all bytes counted.
        after: experiment whose last model this one goes on from; "": from a fit of its own.
        new_table: with `after`: put a fit of its own beneath the layers of that model.
        measure: "sts", of a sentence encoder, or "perplexity", of a masked LM.
        measured_on: folder with validation and test part of the STS benchmark, or a text file.
        choose: take the checkpoint that is best on the validation part, the fit among them; else the last one counts.
        texts: files to learn from: text, or JSON lines of texts.
        words: least and most words of a sentence; without it texts are taken as they are.
        most: sentences of a file.
        pairs: JSON lines; the first two texts of a row are learned from as a pair.
        count: files to count tokens in; without it what is learned from.
        balance: every file of `count` counts for the same.
        sensitivity_texts: files for the sensitivity metric; without it what is learned from.
        trains: as `hce.calibrate` takes it, like the following.
        losses: weights; without it those that `hce.calibrate` takes by default, which may change.
        max_length: of a text in tokens.
        learning_rate: of the layers.
        table_learning_rate: of the table.
        steps: of training; 0: the fit alone.
        batch: texts a step.
        eval_steps: steps between checkpoints.
        shares: of the way from the fit to a checkpoint, to choose among.
        bf16: train in bfloat16.
        seed: of everything.
    """

    question: str
    texts: tuple[str, ...]
    measured_on: str
    method: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    after: str = ""
    new_table: bool = False
    measure: str = "sts"
    choose: bool = True
    words: tuple[int, int] | None = None
    most: int | None = None
    pairs: tuple[str, ...] = ()
    count: tuple[str, ...] = ()
    balance: bool = False
    sensitivity_texts: tuple[str, ...] = ()
    trains: str = "all"
    losses: dict[str, float] | None = None
    max_length: int = 48
    learning_rate: float = 1e-4
    table_learning_rate: float = 0.01
    steps: int = 2000
    batch: int = 64
    eval_steps: int = 250
    shares: tuple[float, ...] = ()
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what would otherwise end in a long run of something else."""
        if self.measure not in MEASURES:
            sys.exit(f"`measure` is {self.measure!r}, but allowed are {', '.join(MEASURES)}")
        if self.new_table and not self.after:
            sys.exit("`new_table` needs `after`: the experiment whose layers it goes on from")


def read_experiments(path: Path) -> dict[str, Experiment]:
    """Return the experiments of a file by the folder that they work in: one, or one for each of its `variants`.

    A variant holds the fields in which it differs. A path that is nowhere is looked for beside this file.
    """
    path = path if path.exists() else FOLDER / path
    if not path.exists():
        sys.exit(f"{path} is no file; there are {', '.join(sorted(one.stem for one in path.parent.glob('*.json')))}")
    fields = json.loads(path.read_text(encoding="utf-8"))
    variants = fields.pop("variants", None)
    if variants is None:
        return {path.stem: _experiment(fields)}
    return {f"{path.stem}/{name}": _experiment({**fields, **variant}) for name, variant in variants.items()}


def _experiment(fields: dict[str, Any]) -> Experiment:
    known = {field.name for field in dataclasses.fields(Experiment)}
    if unknown := sorted(fields.keys() - known):
        sys.exit(f"no field of an experiment: {', '.join(unknown)}; its fields are {', '.join(sorted(known))}")
    frozen: dict[str, Any] = {
        name: tuple(given) if isinstance(given, list) else given for name, given in fields.items()
    }
    return Experiment(**frozen)
