"""What an experiment says: which model, which table, which tasks. One JSON file each, below `experiments/MODEL/`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_SUBJECTS, _EXPERIMENTS = FOLDER / "models", FOLDER / "experiments"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that tables are put into, as a file of `models/` tells it.

    Attributes:
        name: of the model, and of the folder of its experiments.
        tasks: what it is judged by, each with the options of that task.
        prefixes: what the model reads before a text, by the role of the text: "query" or "passage".
    """

    name: str
    tasks: Mapping[str, Mapping[str, Any]]
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One table in one model.

    Attributes:
        name: of the file.
        subject: the model.
        arm: what makes the table, a name in `arms.ARMS`.
        ratio: how many times smaller than in float32 the table is to be.
        options: of the arm.
        label: how tables and plots call the arm: experiments of one label are one line.
    """

    name: str
    subject: Subject
    arm: str
    ratio: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""


def read_subject(name: str) -> Subject:
    """Read what is known of a model."""
    return Subject(name, **_read(_SUBJECTS / f"{name}.json"))


def read_experiments(subject: Subject) -> list[Experiment]:
    """Read all experiments of a model: files with one, or with one for each of `ratios`; the smallest tables last."""
    found = []
    for path in sorted((_EXPERIMENTS / subject.name).glob("*.json")):
        given = _read(path)
        for ratio in given.pop("ratios"):
            found.append(Experiment(f"{path.stem}_{ratio:g}x", subject, ratio=ratio, **given))
    return sorted(found, key=lambda one: (one.ratio, one.name))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from None
