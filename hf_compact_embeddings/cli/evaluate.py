"""Measure a compact checkpoint on a task, beside its original."""

from __future__ import annotations

import argparse
import contextlib
import sys

from ..checkpoints import load_compact, load_dense, load_tokenizer
from ..evaluation.tasks import TASKS, evaluate
from ..modeling.errors import CompactConfigError
from ..settings import parse_setting
from .arguments import add_runtime_argument
from .outcome import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="Hub id or folder of a compact model")
    parser.add_argument("--task", required=True, metavar="TASK", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--data", metavar="DATA", help="file, folder with a file a split, or Hub data set")
    parser.add_argument("--data-config", metavar="NAME", help="configuration of a Hub data set")
    parser.add_argument("--split", help="by default the validation split; for sts and perplexity the test split")
    parser.add_argument("--against", metavar="MODEL", help="Hub id or folder of the original")
    parser.add_argument("--train", metavar="DATA", help="train both on these first (GLUE, XNLI, SQuAD)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings, with the seeds 0 to N-1")
    parser.add_argument("--max-length", type=int, help="of an input, in tokens")
    add_runtime_argument(parser)
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of TrainingArguments",
    )


def run(options: argparse.Namespace) -> Outcome:
    """Load, measure, report."""
    if options.seeds < 1:
        raise CompactConfigError(f"`--seeds` is {options.seeds}, but it must be at least 1.")
    if options.runtime and options.train:
        raise CompactConfigError("`--runtime` is of no use beside `--train`: models that are trained read their codes.")
    # Trainer writes its logs to stdout, which is the outcome's.
    with contextlib.redirect_stdout(sys.stderr):
        result = evaluate(
            load_compact(options.model, compact_runtime=options.runtime),
            task=options.task,
            tokenizer=load_tokenizer(options.model),
            data=options.data,
            config=options.data_config,
            split=options.split,
            against=None if options.against is None else load_dense(options.against),
            train=options.train,
            seeds=range(options.seeds),
            args=dict(parse_setting(setting, "--set") for setting in options.settings),
            max_length=options.max_length,
        )
    return Outcome(result.to_dict(), str(result))
