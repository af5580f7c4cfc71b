"""Train a compact checkpoint to say what its original says, on unlabelled text."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from ..checkpoints import load_compact, load_tokenizer, require_free_folder, write_checkpoint
from ..modeling.errors import CompactConfigError
from ..settings import parse_setting
from .arguments import add_text_arguments, texts_of
from .outcome import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="Hub id or folder of a compact model")
    parser.add_argument("--teacher", metavar="MODEL", help="Hub id or folder of the original; without it, plain MLM")
    add_text_arguments(parser, "what to read", required=True)
    parser.add_argument(
        "--texts-pair-column", metavar="NAME", help="where rows have a second text, to be read together with the first"
    )
    parser.add_argument("--output", required=True, help="folder to write; must be absent or empty")
    parser.add_argument("--trains", help="tables, tables+norm, tables+norms, or all; by default what suits the model")
    parser.add_argument(
        "--loss",
        dest="losses",
        action="append",
        default=[],
        metavar="NAME=WEIGHT",
        help="states, all_states, sentence, relations, logits, labels; by default what suits the model",
    )
    parser.add_argument("--steps", type=int, help="at most; by default three passes over the texts")
    parser.add_argument("--batch-size", type=int, help="texts a step and process; by default what suits the model")
    parser.add_argument(
        "--learning-rate", type=float, help="of everything but the table; by default what suits the model and its ratio"
    )
    parser.add_argument(
        "--table-learning-rate", type=float, help="of the table, as a share of its values' size; by default as above"
    )
    parser.add_argument("--max-length", type=int, help="of a text in tokens; by default what suits the model")
    parser.add_argument("--cache", metavar="DIR", help="keep the teacher's outputs there")
    parser.add_argument("--work", metavar="DIR", help="keep checkpoints there, and go on from the newest one")
    parser.add_argument("--seed", type=int, default=42, help="of all random choices")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set any other field of TrainingArguments",
    )


def run(options: argparse.Namespace) -> Outcome:
    """Load, train, save."""
    # Trainer takes seconds to import, which no other verb needs.
    from accelerate import PartialState

    from ..finetuning.trainer import leave_process_group, trainable
    from ..training.calibration import calibrate

    require_free_folder(options.output)
    texts = texts_of(options, options.texts_pair_column)
    losses = dict(parse_setting(loss, "--loss") for loss in options.losses) or None
    asked = {
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
    }
    settings: dict[str, Any] = {
        **{name: value for name, value in asked.items() if value is not None},
        "seed": options.seed,
        "disable_tqdm": options.json,
        **dict(parse_setting(setting, "--set") for setting in options.settings),
    }
    if options.work is not None:
        settings["output_dir"] = options.work
    tokenizer = load_tokenizer(options.model)
    if tokenizer is None:
        raise CompactConfigError(f"`model` {options.model!r} has no tokenizer beside it.")
    # Trainer writes its logs to stdout, which is the outcome's.
    with contextlib.redirect_stdout(sys.stderr):
        compact = load_compact(options.model)
        dtype = compact.dtype
        compact = calibrate(
            trainable(compact),
            teacher=options.teacher,
            texts=texts,
            tokenizer=tokenizer,
            losses=losses,
            trains=options.trains,
            table_learning_rate=options.table_learning_rate,
            max_length=options.max_length,
            cache=options.cache,
            resume_from_checkpoint=options.work is not None and Path(options.work).is_dir(),
            args=settings,
        )
    state = PartialState()
    if state.is_main_process:
        write_checkpoint(compact.to(dtype), options.output, tokenizer, options.model)
    state.wait_for_everyone()
    leave_process_group()
    noted = (compact.config.compact_source or {}).get("calibration", {})
    text = "\n".join(f"{name:<24}{value}" for name, value in noted.items())
    return Outcome(noted | {"output": options.output}, f"{text}\n{'written to':<24}{options.output}")
