"""evaluate(): a compact model beside its original on a task, over seeds where it is trained for it."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evidence.texts import text_columns
from ..finetuning.classification import GLUE, ClassificationTask, find_task
from ..finetuning.data import Rows, read_rows, require_columns
from ..finetuning.metrics import interval_95
from ..modeling.errors import CompactConfigError
from ..modeling.modeling_compact import CompactModelMixin
from .perplexity import predictions
from .report import inspect
from .sentences import agreement, sentence_vectors, sts_correlation

TASKS = ("fidelity", "sts", *(f"glue/{name}" for name in GLUE), "xnli", "squad", "perplexity")
# How the Hub calls the task.
_HUB_NAMES = {"sts": "sentence-similarity", "squad": "question-answering", "perplexity": "fill-mask"}
_MAX_SENTENCES = 1000


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of the compact model, and of the original where there is one; a value for each seed.

    Attributes:
        compact: its values.
        original: those of the original; none where the metric says how far the two are apart.
        interval: in which the mean over all text lies, with 95 % confidence, where one run tells.
    """

    compact: tuple[float, ...]
    original: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None

    @property
    def differences(self) -> tuple[float, ...]:
        """Compact less original, seed by seed."""
        return (
            tuple(one - other for one, other in zip(self.compact, self.original, strict=True)) if self.original else ()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return values, means and spreads, and the 95 % interval of the mean difference."""
        found: dict[str, Any] = {"compact": _summary(self.compact)}
        if self.interval is not None:
            found["interval_95"] = list(self.interval)
        if self.original:
            found["original"] = _summary(self.original)
            interval = interval_95(self.differences) if len(self.compact) > 1 else None
            found["difference"] = _summary(self.differences) | {"interval_95": interval}
        return found


def _summary(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": spread, "values": list(values)}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a task gave.

    Attributes:
        task: its name.
        rows: how many were measured on.
        trained: whether the models were trained for the task, once for each seed.
        seeds: of these trainings.
        metrics: the values, the main metric first.
        data: the Hub id of the data, where it was given so.
        split: of the data.
    """

    task: str
    rows: int
    trained: bool
    seeds: tuple[int, ...]
    metrics: dict[str, Metric]
    data: str | None = None
    split: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found["seeds"] = list(self.seeds)
        return found | {"metrics": {name: metric.to_dict() for name, metric in self.metrics.items()}}

    def card_fields(self) -> dict[str, Any]:
        """Return the main metric as the fields of a `TaskResult`, which model cards list."""
        name, metric = next(iter(self.metrics.items()))
        return {
            "task_type": _HUB_NAMES.get(self.task, "text-classification"),
            "dataset_name": self.data or self.task,
            # Of data that is not on the Hub nothing is known: it need not be the task's usual data.
            "dataset_id": self.data,
            "metric": name,
            "after": statistics.fmean(metric.compact),
            "before": statistics.fmean(metric.original) if metric.original else None,
            "split": self.split,
        }

    def __str__(self) -> str:
        """Return a table."""
        how = f"trained with {len(self.seeds)} seed(s)" if self.trained else "as it is"
        lines = [
            f"{self.task}, {self.rows:,} rows, {how}",
            f"{'':<22}{'compact':>18}{'original':>18}{'difference':>18}",
        ]
        for name, metric in self.metrics.items():
            reach = None if metric.interval is None else (metric.interval[1] - metric.interval[0]) / 2
            cells = (_cell(metric.compact, reach), _cell(metric.original), _cell(metric.differences, sign="+"))
            lines.append(f"{name:<22}" + "".join(f"{cell:>18}" for cell in cells))
        return "\n".join(lines)


def _cell(values: Sequence[float], reach: float | None = None, sign: str = "") -> str:
    if not values:
        return "-"
    reach = statistics.stdev(values) if len(values) > 1 else reach
    spread = "" if reach is None else f" ± {reach:.4f}"
    return f"{statistics.fmean(values):{sign}.4f}{spread}"


def evaluate(
    compact: PreTrainedModel,
    *,
    task: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    data: Any = None,
    against: PreTrainedModel | None = None,
    train: Any = None,
    split: str | None = None,
    config: str | None = None,
    seeds: Sequence[int] = (0,),
    args: Mapping[str, Any] | None = None,
    max_length: int | None = None,
) -> Evaluation:
    """Measure a compact model on a task, beside its original.

    Correlations, `spearmanr` in every task, are from -1 to 1, and accuracies and F1 from 0 to 1, as SciPy and
    scikit-learn give them; SQuAD's two metrics are in per cent, as its own rules have them.

    Args:
        compact: the model.
        task: "fidelity" (of the table; with sentences as data also of their similarities), "sts" (rank correlation of
            cosines of mean-pooled vectors), "perplexity" (with the original also how far predictions are from its:
            their mean divergence in nats, and how often the likeliest token is the same), "glue/<task>", "xnli" or
            "squad".
        tokenizer: of both models.
        data: rows with the task's columns, a JSON, CSV or text file of them, a folder with a file for each split, or
            the name of a data set of the Hub.
        against: the original.
        train: rows to train on first, given as `data` is, for GLUE, XNLI and SQuAD: both models then get a fresh head
            and are trained alike, once for each seed. Without it they must have the task's head.
        split: of `data`; by default the task's validation split, for "sts" and "perplexity" the test split.
        config: of a data set of the Hub.
        seeds: of the trainings.
        args: fields of `TrainingArguments` for these.
        max_length: of an input in tokens; by default 128, for "squad" 384, for "sts" 256, for "perplexity" of causal
            models 512.
    """
    if task not in TASKS:
        raise CompactConfigError(f"`task` is {task!r}, but the tasks are {', '.join(TASKS)}.")
    if not isinstance(compact, CompactModelMixin):
        raise CompactConfigError(f"`compact` is a {type(compact).__name__}, which is not compact.")
    if task == "fidelity":
        return _fidelity(compact, against, tokenizer, data, split, config)
    if tokenizer is None:
        raise CompactConfigError(f"`tokenizer` is missing: the task {task!r} reads texts.")
    if data is None:
        raise CompactConfigError(f"`data` is missing: the task {task!r} needs rows to measure on.")
    if not seeds:
        raise CompactConfigError("`seeds` is empty.")
    models = [compact] if against is None else [compact, against]
    if task in ("sts", "perplexity"):
        split = split or "test"
        rows = read_rows(data, split, config)
        if task == "sts":
            values = [{"spearmanr": sts_correlation(model, tokenizer, rows, max_length)} for model in models]
            return _evaluation(task, rows, (), _metrics([[value] for value in values]), data, split)
        return _evaluation(task, rows, (), _predicting(compact, against, tokenizer, rows, max_length), data, split)
    split = split or ("validation" if task == "squad" else find_task(task).validation)
    rows = read_rows(data, split, config)
    training = None if train is None else read_rows(train, "train", config)
    chosen = tuple(seeds) if training is not None else (0,)
    runs = [_trained(task, model, tokenizer, rows, training, chosen, args, max_length) for model in models]
    return _evaluation(task, rows, chosen if training is not None else (), _metrics(runs), data, split)


def _predicting(
    compact: PreTrainedModel,
    against: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    max_length: int | None,
) -> dict[str, Metric]:
    """Return how a model predicts running text, and how far it is from the original."""
    column = text_columns(rows, "data")[0]
    require_columns(rows, [column])
    models = [compact] if against is None else [against, compact]
    found = predictions(models, tokenizer, (str(row[column]) for row in rows), max_length=max_length)

    def metric(values: tuple[float, ...]) -> Metric:
        return Metric((values[-1],), values[:-1])

    metrics = {"perplexity": metric(found.perplexities)}
    if found.bits_per_byte is not None:
        metrics["bits_per_byte"] = metric(found.bits_per_byte)
    if found.kl is not None and found.top1_agreement is not None:
        metrics["kl"] = Metric((found.kl,), interval=found.kl_interval_95)
        metrics["top1_agreement"] = Metric((found.top1_agreement,))
    return metrics


def _fidelity(
    compact: PreTrainedModel,
    against: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    data: Any,
    split: str | None,
    config: str | None,
) -> Evaluation:
    if against is None:
        raise CompactConfigError("`against` is missing: fidelity compares with the original.")
    report = inspect(compact, against=against)
    names = ("relative_mse", "mean_cosine", "ratio")
    values = {name: float(getattr(report, name)) for name in names}
    # A head with a table of its own, beside the input table.
    values |= {f"{table.table}_{name}": getattr(table, name) for table in report.tables[1:] for name in names[:2]}
    rows: Rows = []
    if data is not None:
        if tokenizer is None:
            raise CompactConfigError("`tokenizer` is missing: sentences cannot be read without it.")
        rows = read_rows(data, split or "test", config)[:_MAX_SENTENCES]
        column = text_columns(rows, "data")[0]
        require_columns(rows, [column])
        sentences = [str(row[column]) for row in rows]
        vectors = [sentence_vectors(model, tokenizer, sentences) for model in (against, compact)]
        values = {"agreement": agreement(*vectors), **values}
    return _evaluation("fidelity", rows, (), _metrics([[values]]), data, split if data is not None else None)


def _trained(
    task: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    training: Rows | None,
    seeds: Sequence[int],
    args: Mapping[str, Any] | None,
    max_length: int | None,
) -> list[dict[str, float]]:
    """Return the metrics of a model for each seed."""
    # Trainer and the heads are imported where they are needed: they take seconds.
    from ..finetuning.trainer import answer_questions, classify, save_with_tokenizer

    with tempfile.TemporaryDirectory(prefix="evaluation-") as scratch:
        folder = save_with_tokenizer(model, tokenizer, Path(scratch), with_head=training is None)
        if task == "squad":
            length = max_length or 384
            return [answer_questions(folder, tokenizer, rows, training, seed, args, length) for seed in seeds]
        chosen: ClassificationTask = find_task(task)
        length = max_length or 128
        return [classify(folder, chosen, tokenizer, rows, training, seed, args, length) for seed in seeds]


def _metrics(values: list[list[dict[str, float]]]) -> dict[str, Metric]:
    """Put together the values (models, seeds) by metric."""
    compact, *original = values
    return {
        name: Metric(tuple(run[name] for run in compact), tuple(run[name] for runs in original for run in runs))
        for name in compact[0]
    }


def _evaluation(
    task: str, rows: Rows, seeds: tuple[int, ...], metrics: dict[str, Metric], data: Any, split: str | None
) -> Evaluation:
    known = isinstance(data, str) and not Path(data).exists()
    return Evaluation(task, len(rows), bool(seeds), seeds, metrics, data if known else None, split)
