"""calibrate(): train a compact model to say what the original says, on unlabelled text."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.utils import logging

from ..checkpoints import load_tokenizer
from ..evidence.texts import HubTexts, read_texts
from ..model_outputs import is_masked_lm
from ..modeling.errors import CompactConfigError
from ..modeling.modeling_compact import CompactModelMixin
from ..modeling.transformers_internals import native_class
from .losses import choose_losses, predicts, run
from .matching import fingerprint, require_match, require_same_tokens
from .recipes import Recipe, recipe_for
from .rows import Collator, Encoder, HeldRows, StreamedRows, split_batch
from .teacher_cache import TeacherCache, is_cache, write_cache
from .trainer import CalibrationError, CalibrationTrainer, last_checkpoint, round_tables

logger = logging.get_logger(__name__)

TRAINS = ("tables", "tables+norm", "tables+norms", "all")
_SHARE = {"masked": 0.15, "next": 1.0}


def calibrate(
    compact: PreTrainedModel,
    *,
    texts: Any = None,
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel | str | Path | None = None,
    args: TrainingArguments | Mapping[str, Any] | None = None,
    losses: Mapping[str, float] | None = None,
    trains: str | None = None,
    table_learning_rate: float | None = None,
    max_length: int | None = None,
    predicted_share: float | None = None,
    cache: str | Path | None = None,
    eval_texts: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume_from_checkpoint: bool | str | Path | None = None,
) -> PreTrainedModel:
    """Train a compact model on texts, in place, and return it; its tables end rounded to their storage dtypes.

    What is not given follows the model and how small its table is: the settings that were measured to be best there.

    Args:
        compact: the model.
        texts: what `read_texts` takes, with pairs where the model reads two together; not read if `cache` is complete.
        tokenizer: of both models.
        teacher: the original, or its Hub id or folder; without it the text itself is the goal ("labels").
        args: `TrainingArguments`, or a dictionary of its fields, to which learning rate, warm-up and batch size are
            added; what is saved stays in its `output_dir`, if given.
        losses: weights by name, as `choose_losses` explains them.
        trains: "tables"; "tables+norm", with the normalisation that reads the table; "tables+norms", with all of them,
            the one before the head among them, as for causal models; or "all", as for others.
        table_learning_rate: as a share of the root mean square of each tensor of the table; `args` has all others'.
        max_length: of a text in tokens. Where tokens are predicted, texts are joined and cut to exactly this.
        predicted_share: of the tokens that are predicted; by default 0.15 behind a mask, and all that come next.
        cache: folder for the teacher's outputs: written if it is not there, then read, also by later calls.
        eval_texts: held-out texts, for `args.eval_strategy` and `load_best_model_at_end`.
        callbacks: of Trainer.
        resume_from_checkpoint: True for the newest whole checkpoint in `output_dir`, if there is one; or its path.
    """
    _require_compact(compact, trains)
    recipe = recipe_for(compact)
    trains = recipe.trains if trains is None else trains
    max_length = recipe.max_length if max_length is None else max_length
    table_learning_rate = recipe.table_learning_rate if table_learning_rate is None else table_learning_rate
    with _arguments(args, recipe) as arguments:
        teacher = _loaded(teacher, compact, tokenizer)
        collator = Collator(tokenizer)
        weights = choose_losses(compact, teacher is not None or is_cache(cache), losses, cache is not None)
        require_match(compact, teacher, tokenizer, weights)
        encoder = encoder_for(compact, tokenizer, weights, max_length, predicted_share, arguments.seed)
        rows = _rows(texts, encoder, teacher, weights, cache, arguments)
        held_out = _held_out(eval_texts, encoder, teacher, weights)
        with _trainable(compact, trains, collator, rows, arguments):
            # A cache holds what the teacher said about the texts to train on, and about no others.
            asked = None if isinstance(rows, TeacherCache) and held_out is None else teacher
            own: dict[str, Any] = {"losses": weights, "teacher": asked, "table_learning_rate": table_learning_rate}
            own["callbacks"] = list(callbacks)
            trainer = CalibrationTrainer(compact, arguments, collator, rows, held_out, tokenizer, **own)
            _train(trainer, resume_from_checkpoint)
        round_tables(compact)
        _note(trainer, teacher, trains)
        if isinstance(args, TrainingArguments) or "output_dir" in (args or {}):
            trainer.save_model(arguments.output_dir)
    return compact


def _require_compact(compact: PreTrainedModel, trains: str | None) -> None:
    if not isinstance(compact, CompactModelMixin):
        raise CompactConfigError(f"`compact` is a {type(compact).__name__}, which is not compact.")
    if trains is not None and trains not in TRAINS:
        raise CompactConfigError(f"`trains` is {trains!r}, but allowed are {', '.join(map(repr, TRAINS))}.")


@contextmanager
def _arguments(args: TrainingArguments | Mapping[str, Any] | None, recipe: Recipe) -> Iterator[TrainingArguments]:
    """Give the arguments of Trainer, with those of the recipe and a temporary folder where a dictionary names none."""
    with tempfile.TemporaryDirectory(prefix="calibration-") as scratch:
        if isinstance(args, TrainingArguments):
            # Fields of it change below.
            arguments = copy.copy(args)
        else:
            given = dict(args or {})
            usual = {"learning_rate": recipe.learning_rate, "per_device_train_batch_size": recipe.batch}
            fields = {"output_dir": scratch, "save_strategy": "steps", "warmup_steps": 0.1, **usual, **given}
            if "output_dir" not in given and "save_strategy" not in given:
                fields["save_strategy"] = "no"
            try:
                arguments = TrainingArguments(**fields)
            except (TypeError, ValueError) as error:
                raise CompactConfigError(f"`args` is not accepted by TrainingArguments: {error}") from error
        if arguments.push_to_hub:
            raise CompactConfigError(
                "`args` has `push_to_hub`, but Trainer would send pickles, and a card that says nothing of the table: "
                "call `hf_compact_embeddings.push_to_hub()` afterwards."
            )
        if arguments.n_gpu > 1:
            raise CompactConfigError(
                f"One process sees {arguments.n_gpu} GPUs: start one process for each, with `accelerate launch`."
            )
        # Rows hold more than `forward` takes: positions, labels, and the teacher's outputs.
        arguments.remove_unused_columns = False
        yield arguments


def _loaded(
    teacher: PreTrainedModel | str | Path | None, compact: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | None:
    """Return the teacher, read from its Hub id or folder if it was given by that."""
    if not isinstance(teacher, str | Path):
        return teacher
    require_same_tokens(tokenizer, load_tokenizer(teacher), str(teacher))
    return native_class(type(compact)).from_pretrained(teacher)


def encoder_for(
    compact: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    losses: Mapping[str, float],
    max_length: int,
    share: float | None,
    seed: int,
) -> Encoder:
    """Return what turns texts into the rows that the losses of a model need; the arguments are `calibrate`'s."""
    if share is not None and not 0 < share <= 1:
        raise CompactConfigError(f"`predicted_share` is {share!r}, but it must be above 0 and at most 1.")
    if max_length < 3:
        raise CompactConfigError(f"`max_length` is {max_length!r}, but it must be at least 3.")
    kind = None if not predicts(losses) else "masked" if is_masked_lm(compact) else "next"
    chosen = (0.0 if kind is None else _SHARE[kind]) if share is None else share
    return Encoder(tokenizer, min(max_length, tokenizer.model_max_length), kind, chosen, seed)


def _rows(
    texts: Any,
    encoder: Encoder,
    teacher: PreTrainedModel | None,
    losses: Mapping[str, float],
    cache: str | Path | None,
    arguments: TrainingArguments,
) -> HeldRows | StreamedRows | TeacherCache:
    """Return the rows to train on: from the cache where there is one to read or to write."""
    if texts is None and not is_cache(cache):
        raise CompactConfigError("`texts` is missing.")
    if cache is not None:
        return _cached_rows(texts, encoder, teacher, losses, cache, arguments)
    source = read_texts(texts)
    if not isinstance(source, HubTexts):
        return HeldRows(encoder.rows(source))
    if arguments.max_steps <= 0:
        raise CompactConfigError("`args` has no `max_steps`, which texts that are streamed need.")
    # Rows and predicted positions differ in number, so that no process can cut a batch up for the others.
    arguments.accelerator_config = copy.copy(arguments.accelerator_config)
    arguments.accelerator_config.dispatch_batches = False
    return StreamedRows(encoder, source)


def _cached_rows(
    texts: Any,
    encoder: Encoder,
    teacher: PreTrainedModel | None,
    losses: Mapping[str, float],
    cache: str | Path,
    arguments: TrainingArguments,
) -> TeacherCache:
    """Return the rows of a cache, for which the teacher is asked first if that was not done yet."""
    if "all_states" in losses:
        raise CompactConfigError("`cache` keeps final states only, but `losses` names all_states.")
    recipe: dict[str, Any] = {
        "losses": sorted(losses),
        "max_length": encoder.max_length,
        "predict": encoder.predict,
        "share": encoder.share,
        "seed": encoder.seed,
        "tokens": len(encoder.tokenizer),
    }
    if teacher is not None:
        recipe["teacher"] = fingerprint(teacher)
    if not is_cache(cache):
        if teacher is None:
            raise CompactConfigError("`teacher` is missing: `cache` is empty, and the teacher has to fill it.")
        with arguments.main_process_first(desc="asking the teacher"):
            if not is_cache(cache):
                asked, rows = teacher.to(arguments.device), encoder.rows(read_texts(texts))
                collator = Collator(encoder.tokenizer)
                write_cache(cache, rows, asked, collator, losses, recipe, arguments.per_device_eval_batch_size)
    return TeacherCache(cache, recipe)


def _held_out(
    texts: Any, encoder: Encoder, teacher: PreTrainedModel | None, losses: Mapping[str, float]
) -> HeldRows | None:
    if texts is None:
        return None
    if teacher is None and set(losses) != {"labels"}:
        raise CompactConfigError("`teacher` is missing: `cache` holds nothing about `eval_texts`.")
    return HeldRows(encoder.rows(read_texts(texts)))


@contextmanager
def _trainable(
    compact: PreTrainedModel, trains: str, collator: Collator, rows: Any, arguments: TrainingArguments
) -> Iterator[None]:
    """Let the chosen parameters train; afterwards all is as it was before."""
    before = {name: parameter.requires_grad for name, parameter in compact.named_parameters()}
    training = compact.training
    chosen = {id(value) for table in compact.compact_tables.values() for value in table.parameters()}
    if trains == "tables+norm":
        row = next(iter(rows))
        chosen |= set(map(id, _first_norm(compact, collator([row])).parameters()))
    elif trains == "tables+norms":
        chosen |= {id(parameter) for norm in _norms(compact, trains) for parameter in norm.parameters(recurse=False)}
    for parameter in compact.parameters():
        parameter.requires_grad_(trains == "all" or id(parameter) in chosen)
    if arguments.gradient_checkpointing and trains != "all":
        # Reentrant checkpointing sees no gradient where the inputs of a layer ask for none.
        arguments.gradient_checkpointing_kwargs = {"use_reentrant": False}
    try:
        yield
    finally:
        for name, parameter in compact.named_parameters():
            parameter.requires_grad_(before[name])
        compact.train(training)


def _norms(compact: PreTrainedModel, trains: str) -> list[nn.Module]:
    """Return all normalisations that have something to train; raise if there are none."""
    found = [
        module
        for module in compact.modules()
        if type(module).__name__.endswith("Norm") and any(True for _ in module.parameters(recurse=False))
    ]
    if not found:
        raise CompactConfigError(f"`trains` is {trains!r}, but {type(compact).__name__} has no normalisation.")
    return found


def _first_norm(compact: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the normalisation that runs first after the table is read: found by watching a batch go through."""
    seen: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, *_: seen.append(module))
        for module in _norms(compact, "tables+norm")
    ]
    inputs, positions, _, _ = split_batch({name: value.to(compact.device) for name, value in batch.items()})
    try:
        with torch.no_grad():
            run(compact, compact, inputs, positions)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0]


def _train(trainer: CalibrationTrainer, resume: bool | str | Path | None) -> None:
    """Train; if the loss breaks, go back to the last good values and raise."""
    folder = trainer.args.output_dir
    if resume is True:
        found = last_checkpoint(folder)
        resume = None if found is None else str(found)
    elif resume:
        resume = str(resume)
        if not Path(resume).is_dir():
            raise CompactConfigError(f"`resume_from_checkpoint` {resume!r} is no folder.")
    trained = {name: value for name, value in trainer.compact.named_parameters() if value.requires_grad}
    start = {name: value.detach().cpu().clone() for name, value in trained.items()}
    known = {path.name for path in Path(folder).glob("checkpoint-*")}
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        trainer.require_finite_values()
    except CalibrationError as error:
        good = last_checkpoint(folder)
        if good is None or (good.name in known and str(good) != resume):
            with torch.no_grad():
                for name, value in trained.items():
                    value.copy_(start[name])
            raise CalibrationError(f"{error} `compact` has the values again that it had before.") from error
        trainer._load_from_checkpoint(str(good))
        raise CalibrationError(f"{error} `compact` has the values of {good.name} again.") from error


def _note(trainer: CalibrationTrainer, teacher: PreTrainedModel | None, trains: str) -> None:
    """Keep in the configuration that the values are no longer those that the fit gave."""
    config, arguments = trainer.compact.config, trainer.args
    if not config.compact_source:
        return  # Trained from scratch: there is no fit to tell it from.
    noted = {
        "teacher": teacher is not None or isinstance(trainer.train_dataset, TeacherCache),
        "losses": dict(trainer.losses),
        "trains": trains,
        "steps": trainer.state.global_step,
        "batch_size": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "learning_rate": arguments.learning_rate,
        "table_learning_rate": trainer.table_learning_rate,
        "seed": arguments.seed,
    }
    config.compact_source = dict(config.compact_source) | {"calibration": noted}
