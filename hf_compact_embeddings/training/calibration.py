"""calibrate(): train a compact model to say what the original says, on unlabelled text."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.utils import logging

from ..checkpoints import load_tokenizer
from ..evidence.texts import HubTexts, read_texts
from ..modeling.errors import CompactConfigError
from ..modeling.modeling_compact import CompactModelMixin, native_model_class
from .losses import choose_losses, is_masked_lm, predicts, run
from .matching import fingerprint, require_match, require_same_tokens
from .moving_codes import MovingCodes
from .rows import Collator, Encoder, HeldRows, StreamedRows, split_batch
from .teacher_cache import TeacherCache, is_cache, write_cache
from .trainer import CalibrationError, CalibrationTrainer, last_checkpoint

logger = logging.get_logger(__name__)

TRAINS = ("tables", "tables+norm", "all")
_SHARE = {"masked": 0.15, "next": 1.0}


def calibrate(
    compact: PreTrainedModel,
    *,
    texts: Any = None,
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel | str | Path | None = None,
    args: TrainingArguments | Mapping[str, Any] | None = None,
    losses: Mapping[str, float] | None = None,
    trains: str = "tables",
    table_learning_rate: float = 0.02,
    recode_steps: int | None = None,
    max_length: int = 128,
    predicted_share: float | None = None,
    cache: str | Path | None = None,
    eval_texts: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume_from_checkpoint: bool | str | Path | None = None,
) -> PreTrainedModel:
    """Train a compact model on texts, in place, and return it; its table ends rounded to its storage dtype.

    Args:
        compact: the model.
        texts: strings, pairs of strings that the model reads together, rows with a column `text`, a file (a text a
            line, or JSON lines), the name of a data set of the Hub (streamed), or what `read_texts` gives. Not read
            where `cache` is complete.
        tokenizer: of both models.
        teacher: the original, or its Hub id or folder. Without it the text itself is the goal ("labels").
        args: a `TrainingArguments`, or a dictionary of its fields. Without `output_dir` the work is done in a
            temporary folder; with one, checkpoints and the final model stay there.
        losses: weights of "states" or "all_states" (hidden states), "sentence" (mean-pooled vectors), "relations"
            (cosines among the sentences of a batch), "logits" (divergence at the predicted tokens) and "labels" (the
            tokens themselves). By default what suits the model: logits and states for a language model; states,
            sentence and relations for any other.
        trains: "tables"; "tables+norm", with the normalisation that reads the table; or "all".
        table_learning_rate: of the compact table, as a share of the root mean square of each of its tensors.
            `args.learning_rate` is for everything else.
        recode_steps: choose the codes anew every so many steps and at the end, as near as they come to rows that are
            trained beside them at the rate of the table; None: they stay. `MovingCodes` says what it costs.
        max_length: of a text in tokens, at most what the tokenizer allows. Where tokens are predicted, texts are
            joined and cut to exactly this.
        predicted_share: of the tokens that are predicted; by default 0.15 behind a mask, and all that come next.
        cache: folder for the teacher's outputs: written if it is not there, then read, also by later calls.
        eval_texts: held-out texts, for `args.eval_strategy` and `load_best_model_at_end`.
        callbacks: of Trainer.
        resume_from_checkpoint: True for the newest whole checkpoint in `output_dir`, if there is one; or its path.
    """
    if not isinstance(compact, CompactModelMixin):
        raise CompactConfigError(f"`compact` is a {type(compact).__name__}, which is not compact.")
    if trains not in TRAINS:
        raise CompactConfigError(f"`trains` is {trains!r}, but allowed are {', '.join(map(repr, TRAINS))}.")
    with _arguments(args, streamed=isinstance(texts, HubTexts)) as arguments:
        if isinstance(teacher, str | Path):
            require_same_tokens(tokenizer, load_tokenizer(teacher), str(teacher))
            teacher = native_model_class(type(compact)).from_pretrained(teacher)
        ready = cache is not None and is_cache(cache)
        weights = choose_losses(compact, teacher is not None or ready, losses)
        require_match(compact, teacher, tokenizer, weights)
        moving = None if recode_steps is None else MovingCodes(compact, teacher, recode_steps, table_learning_rate)
        encoder = _encoder(compact, tokenizer, weights, max_length, predicted_share, arguments.seed)
        collator = Collator(tokenizer)
        rows = _rows(texts, encoder, teacher, collator, weights, cache, arguments)
        if eval_texts is not None and teacher is None and set(weights) != {"labels"}:
            raise CompactConfigError("`teacher` is missing: `cache` holds nothing about `eval_texts`.")
        held_out = None if eval_texts is None else HeldRows(encoder.rows(read_texts(eval_texts)))
        watching = nullcontext() if moving is None else moving.watching()
        if isinstance(rows, StreamedRows):
            # Rows and places differ in number, so that no process can cut a batch up for the others.
            arguments.accelerator_config = copy.copy(arguments.accelerator_config)
            arguments.accelerator_config.dispatch_batches = False
        with _trainable(compact, trains, collator, rows, arguments), watching:
            trainer = CalibrationTrainer(
                model=compact,
                args=arguments,
                train_dataset=rows,
                eval_dataset=held_out,
                data_collator=collator,
                processing_class=tokenizer,
                callbacks=[*([] if moving is None else [moving]), *callbacks],
                losses=weights,
                teacher=None if isinstance(rows, TeacherCache) and held_out is None else teacher,
                table_learning_rate=table_learning_rate,
                moving=moving,
            )
            _train(trainer, resume_from_checkpoint)
        compact.compact_embedding.round_to_storage()
        _note(compact, teacher, weights, trains, trainer)
        if "output_dir" in (args if isinstance(args, Mapping) else {"output_dir"}):
            trainer.save_model(arguments.output_dir)
    return compact


@contextmanager
def _arguments(args: TrainingArguments | Mapping[str, Any] | None, streamed: bool) -> Iterator[TrainingArguments]:
    """Give the arguments of Trainer, with a temporary folder if they name none."""
    with tempfile.TemporaryDirectory(prefix="calibration-") as scratch:
        if isinstance(args, TrainingArguments):
            # Two fields change below.
            arguments = copy.copy(args)
        else:
            given = dict(args or {})
            fields = {"output_dir": scratch, "learning_rate": 5e-5, "save_strategy": "steps", **given}
            if "output_dir" not in given and "save_strategy" not in given:
                fields["save_strategy"] = "no"
            try:
                arguments = TrainingArguments(**fields)
            except (TypeError, ValueError) as error:
                raise CompactConfigError(f"`args` is not accepted by TrainingArguments: {error}") from error
        if streamed and arguments.max_steps <= 0:
            raise CompactConfigError("`args` has no `max_steps`, which texts that are streamed need.")
        if arguments.n_gpu > 1:
            raise CompactConfigError(
                f"One process sees {arguments.n_gpu} GPUs: start one process for each, with `accelerate launch`."
            )
        # Rows hold more than `forward` takes: places, labels, and the teacher's outputs.
        arguments.remove_unused_columns = False
        yield arguments


def _encoder(
    compact: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    losses: Mapping[str, float],
    max_length: int,
    share: float | None,
    seed: int,
) -> Encoder:
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
    collator: Collator,
    losses: Mapping[str, float],
    cache: str | Path | None,
    arguments: TrainingArguments,
) -> HeldRows | StreamedRows | TeacherCache:
    """Return the rows to train on: from the cache where there is one to read or to write."""
    if texts is None and (cache is None or not is_cache(cache)):
        raise CompactConfigError("`texts` is missing.")
    if cache is None:
        source = read_texts(texts)
        if not isinstance(source, HubTexts):
            return HeldRows(encoder.rows(source))
        if arguments.max_steps <= 0:
            raise CompactConfigError("`args` has no `max_steps`, which texts that are streamed need.")
        return StreamedRows(encoder, source)
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
                asked = teacher.to(arguments.device)
                rows = encoder.rows(read_texts(texts))
                write_cache(cache, rows, asked, collator, losses, recipe, arguments.per_device_eval_batch_size)
    return TeacherCache(cache, recipe)


@contextmanager
def _trainable(
    compact: PreTrainedModel, trains: str, collator: Collator, rows: Any, arguments: TrainingArguments
) -> Iterator[None]:
    """Let the chosen parameters train; afterwards all is as it was before."""
    before = {name: parameter.requires_grad for name, parameter in compact.named_parameters()}
    training = compact.training
    chosen = set(map(id, compact.compact_embedding.parameters()))
    if trains == "tables+norm":
        row = next(iter(rows))
        chosen |= set(map(id, _first_norm(compact, collator([row])).parameters()))
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


def _first_norm(compact: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the normalisation that runs first after the table is read: found by watching a batch go through."""
    seen: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, *_: seen.append(module))
        for module in compact.modules()
        if type(module).__name__.endswith("Norm") and any(True for _ in module.parameters(recurse=False))
    ]
    inputs, places, _, _ = split_batch({name: value.to(compact.device) for name, value in batch.items()})
    try:
        with torch.no_grad():
            run(compact, compact, inputs, places)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise CompactConfigError(f"`trains` is 'tables+norm', but {type(compact).__name__} has no normalisation.")
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
    compact = trainer.compact
    start = {name: value.detach().cpu().clone() for name, value in _values(compact)}
    known = {path.name for path in Path(folder).glob("checkpoint-*")}
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        trainer.require_finite_values()
    except CalibrationError as error:
        good = last_checkpoint(folder)
        if good is None or (good.name in known and str(good) != resume):
            with torch.no_grad():
                for name, value in _values(compact):
                    value.copy_(start[name])
            raise CalibrationError(f"{error} `compact` has the values again that it had before.") from error
        trainer._load_from_checkpoint(str(good))
        raise CalibrationError(f"{error} `compact` has the values of {good.name} again.") from error


def _values(compact: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what calibration may change: what trains, and the codes."""
    yield from ((name, value) for name, value in compact.named_parameters() if value.requires_grad)
    yield from compact.compact_embedding.named_buffers()


def _note(
    compact: PreTrainedModel,
    teacher: PreTrainedModel | None,
    losses: Mapping[str, float],
    trains: str,
    trainer: CalibrationTrainer,
) -> None:
    """Keep in the configuration that the values are no longer those that the fit gave."""
    if not compact.config.compact_source:
        return  # Trained from scratch: there is no fit to tell it from.
    source = dict(compact.config.compact_source)
    arguments = trainer.args
    source["calibration"] = {
        "teacher": teacher is not None or isinstance(trainer.train_dataset, TeacherCache),
        "losses": dict(losses),
        "trains": trains,
        "steps": trainer.state.global_step,
        "batch_size": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "learning_rate": arguments.learning_rate,
        "table_learning_rate": trainer.table_learning_rate,
        **({} if trainer.moving is None else {"recode_steps": trainer.moving.every}),
        "seed": arguments.seed,
    }
    compact.config.compact_source = source
