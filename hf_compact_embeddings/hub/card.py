"""The card of a compact checkpoint, rendered from `card_template.md`."""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import yaml_dump
from transformers import PreTrainedModel

from ..checkpoints import folder_bytes
from ..evaluation.report import Report, inspect, reported_tables
from ..evidence.origin import command_of
from ..modeling.code_files import code_record
from ..modeling.errors import CompactConfigError
from ..modeling.modeling_compact import CARD_TAG, CompactModelMixin
from ..modeling.tied import TiedHead
from ..modeling.transformers_internals import native_class
from ..transformers_internals import primary_auto_class
from ..version import __version__
from .messages import only_warned
from .tables import facts_of_tables, in_bytes, layers_in_words, layers_name, methods_of

# Stands where the repository's name will be, in a card that is written before it is known.
ANY_REPOSITORY = "<user>/<repo>"
_TEMPLATE = Path(__file__).parent / "card_template.md"
_CARD = "README.md"
# A base model's tags that speak of its files, or of how its card came about.
_TAGS_OF_FILES = {"pytorch", "tf", "jax", "rust", "onnx", "openvino", "safetensors", "gguf", "coreml", "tflite"}
_NOT_INHERITED = _TAGS_OF_FILES | {"generated_from_trainer", "transformers"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What a model reaches on a task.

    Attributes:
        task_type: the Hub's name of the task, as "sentence-similarity".
        dataset_name: what to call the data.
        metric: the metric's name, as "spearmanr".
        after: the compact model's value.
        before: the original's value, where it is known.
        dataset_id: the data set's Hub id, where it has one.
        task_id: the benchmark's task that `.eval_results` names; without it the result is in the card alone.
        split: the data set's split.
    """

    task_type: str
    dataset_name: str
    metric: str
    after: float
    before: float | None = None
    dataset_id: str | None = None
    task_id: str | None = None
    split: str | None = None

    def entry(self) -> EvalResult:
        """Return the result as the card's `model-index` has it."""
        return EvalResult(
            task_type=self.task_type,
            dataset_type=self.dataset_id or re.sub(r"\W+", "-", self.dataset_name.lower()).strip("-"),
            dataset_name=self.dataset_name,
            dataset_split=self.split,
            metric_type=self.metric,
            metric_value=round(self.after, 6),
        )

    def row(self) -> dict[str, str]:
        """Return the result as the card's table has it."""
        before = "" if self.before is None else f"{self.before:.4f}"
        return dataclasses.asdict(self) | {"before_text": before, "after_text": f"{self.after:.4f}"}


def write_card(
    folder: Path,
    compact: PreTrainedModel,
    report: Report | None = None,
    *,
    repo_id: str = ANY_REPOSITORY,
    base_model: str | None = None,
    results: Sequence[TaskResult] = (),
    token: str | bool | None = None,
) -> None:
    """Write a checkpoint's card and `.eval_results`; a compact card that is there is kept if nothing new is known."""
    path = folder / _CARD
    is_new = report is not None or base_model is not None or bool(results)
    if not is_new and path.is_file() and CARD_TAG in (text := path.read_text(encoding="utf-8")):
        path.write_text(text.replace(ANY_REPOSITORY, repo_id), encoding="utf-8")
        return
    card = make_card(
        compact,
        report,
        code_files=folder.glob("*.py"),
        repo_id=repo_id,
        base_model=base_model,
        results=results,
        sentences=(folder / "modules.json").is_file(),
        folder_size=folder_bytes(folder),
        token=token,
    )
    path.write_text(str(card), encoding="utf-8")
    for name, content in _eval_result_files(results).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def make_card(
    compact: PreTrainedModel,
    report: Report | None = None,
    *,
    repo_id: str = ANY_REPOSITORY,
    base_model: str | None = None,
    results: Sequence[TaskResult] = (),
    sentences: bool = False,
    code_files: Iterable[Path] | None = None,
    folder_size: int | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """Return the card of a compact model.

    Args:
        compact: the model.
        report: from `inspect(compact, against=dense)`; without it the card has no fidelity.
        repo_id: the repository that the card will lie in.
        base_model: the Hub id of the original; by default the one that `compress()` noted.
        results: of tasks, before and after.
        sentences: whether the checkpoint holds sentence-transformers files.
        code_files: the checkpoint's code files; by default those that a model alone needs.
        folder_size: bytes of the whole folder, where there is one.
        token: to read the original's card with.
    """
    if not isinstance(compact, CompactModelMixin):
        raise CompactConfigError(f"`compact` is a {type(compact).__name__}, which is not compact.")
    report = inspect(compact) if report is None else report
    stored = sum(structure.nbytes for structure in reported_tables(compact).values())
    if report.compact_bytes != stored:
        raise CompactConfigError(
            f"`report` counts {report.compact_bytes:,} bytes, but `compact` has {stored:,}: "
            "it reports on another model."
        )
    if code_files is None:
        code = compact.config.code_that_reads_it()
    else:
        code = {file.name: file.read_bytes() for file in code_files}
    source = compact.config.compact_source or {}
    base_model = base_model or source.get("base_model")
    inherited = base_card_data(compact, base_model, token)
    base_model = base_model or _first(inherited.get("base_model"))
    title = repo_id.rpartition("/")[2] if repo_id != ANY_REPOSITORY else _title(compact, report, base_model)
    data = _metadata(compact, report, title, base_model, inherited, results, sentences)
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=title,
        repo_id=repo_id,
        results=[result.row() for result in results],
        sentences=sentences,
        code=_code(code),
        folder_size=None if folder_size is None else in_bytes(folder_size),
        **_facts(compact, report, base_model, source),
    )


def _eval_result_files(results: Sequence[TaskResult]) -> dict[str, str]:
    """Return the `.eval_results` files: of the results on benchmarks of the Hub, where the client knows them."""
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        return {}
    files = {}
    for result in results:
        if result.dataset_id is not None and result.task_id is not None:
            name = f".eval_results/{result.dataset_id.rpartition('/')[2]}-{result.task_id}.yaml"
            entry = EvalResultEntry(dataset_id=result.dataset_id, task_id=result.task_id, value=round(result.after, 6))
            files[name] = yaml_dump(eval_result_entries_to_yaml([entry]))
    return files


def _metadata(
    compact: PreTrainedModel,
    report: Report,
    title: str,
    base_model: str | None,
    inherited: dict[str, Any],
    results: Sequence[TaskResult],
    sentences: bool,
) -> ModelCardData:
    return ModelCardData(
        base_model=base_model,
        base_model_relation="quantized" if base_model else None,
        library_name="transformers",
        license=inherited.get("license"),
        license_name=inherited.get("license_name"),
        license_link=inherited.get("license_link"),
        language=inherited.get("language"),
        pipeline_tag=_pipeline_tag(compact, inherited),
        tags=_tags(report, inherited, sentences),
        eval_results=[result.entry() for result in results] or None,
        # Without results there is no model-index to name.
        model_name=title if results else None,
    )


def base_card_data(compact: PreTrainedModel, base_model: str | None, token: str | bool | None) -> dict[str, Any]:
    """Return the metadata of the original's card: from its folder, else from the Hub where it is in reach."""
    name = str(compact.config.name_or_path or "")
    local = Path(name) / _CARD if name else None
    with only_warned(
        f"The card of {base_model or name} could not be read, so its licence and languages are not in this card"
    ):
        if local is not None and local.is_file():
            return ModelCard.load(local, ignore_metadata_errors=True).data.to_dict()
        if base_model is not None:
            return ModelCard.load(base_model, token=token, ignore_metadata_errors=True).data.to_dict()  # type: ignore[arg-type]
    return {}


def _pipeline_tag(compact: PreTrainedModel, inherited: dict[str, Any]) -> str:
    # Pulls in much of Trainer, which nothing else here needs.
    from transformers.modelcard import TASK_MAPPING

    native = native_class(type(compact)).__name__
    for task, classes in TASK_MAPPING.items():
        if native in classes.values():
            return task
    return inherited.get("pipeline_tag") or "feature-extraction"


def _tags(report: Report, inherited: dict[str, Any], sentences: bool) -> list[str]:
    own = [CARD_TAG, *methods_of(report), *(["sentence-transformers"] if sentences else [])]
    return [*own, *(tag for tag in inherited.get("tags") or () if tag not in {*_NOT_INHERITED, *own})]


def _title(compact: PreTrainedModel, report: Report, base_model: str | None) -> str:
    base = base_model or native_class(type(compact)).__name__
    layers = "" if report.layers is None else f"-{layers_name(report.layers)}"
    return f"{base.rpartition('/')[2]}-{'-'.join(methods_of(report))}-{report.ratio:.0f}x{layers}"


def _facts(compact: PreTrainedModel, report: Report, base_model: str | None, source: dict[str, Any]) -> dict[str, Any]:
    link = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "its card"
    original = base_model or "PATH_OR_HUB_ID_OF_THE_ORIGINAL"
    return {
        "base": link if base_model else f"A {native_class(type(compact)).__name__}",
        "base_reference": link,
        "base_revision": source.get("revision"),
        "method": report.method,
        "options": ", ".join(f"{name}={value}" for name, value in source.get("options", {}).items())
        or "default options",
        "tied": any(isinstance(module, TiedHead) for module in compact.modules()),
        "bits_per_weight": f"{report.bits_per_weight:.3f}",
        **facts_of_tables(report),
        "still_dense": [(name, in_bytes(size)) for name, size in report.other_tables.items()],
        "auto_class": primary_auto_class(native_class(type(compact))),
        "version": __version__,
        "command": command_of(source, original, "OUTPUT") if source else "",
        "placeholders": _placeholders(source, base_model),
        "evidence": source.get("evidence"),
        "calibration": _calibration(source.get("calibration")),
        "other_weights": f"{_other_weights(source.get('calibration'))}{layers_in_words(report.layers)}",
        "versions": f"hf_compact_embeddings {__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}",
    }


def _placeholders(source: dict[str, Any], base_model: str | None) -> str:
    notes = [] if base_model or not source else ["the original was read from a folder, whose name is not kept"]
    notes += (
        ["it was made without a tokenizer, so special tokens are coded like all others"]
        if source and not source["tokenizer"]
        else []
    )
    notes += ["TEXTS is a file with a text a line"] if source.get("texts") else []
    notes += ["COUNTS is a JSON list with a count for each token id"] if source.get("token_counts") is True else []
    text = "; ".join(notes)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _other_weights(calibration: dict[str, Any] | None) -> str:
    if calibration is None or calibration.get("share") == 0 or calibration["trains"] == "tables":
        return "The other weights were copied from the original when it was compressed."
    return "The other weights started as the original's and were trained with the table."


def _calibration(calibration: dict[str, Any] | None) -> str:
    """Say how a model was trained after the fit."""
    if calibration is None:
        return ""
    share, held_out = calibration.get("share"), calibration.get("held_out_loss")
    if share == 0 and held_out:
        return "Calibrating it was tried, and made it worse on held-out texts, so that all values are those of the fit."
    goal = "against the original" if calibration["teacher"] else "on text alone"
    losses = ", ".join(f"{name} {weight:g}" for name, weight in calibration["losses"].items())
    kept = "" if share is None else f" Of the way from the fit to there, its values went {share:.0%}."
    if held_out:
        kept += f" The loss on held-out texts was {held_out['fit']:.4f} after the fit, and is {held_out['now']:.4f}."
    return (
        f"After that it was calibrated {goal}: {calibration['steps']:,} steps of {calibration['batch_size']:,} texts, "
        f'`trains="{calibration["trains"]}"`, losses {losses}, learning rates {calibration["learning_rate"]:g} and '
        f"{calibration['table_learning_rate']:g} (table), seed {calibration['seed']}.{kept}"
    )


def _code(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Say how much code lies beside the table, and what its hash is."""
    size = sum(map(len, files.values()))
    return {"count": len(files), "size": in_bytes(size), "sha256": code_record(files)["sha256"]}


def _first(value: Any) -> str | None:
    return value[0] if isinstance(value, list) and value else value if isinstance(value, str) else None
