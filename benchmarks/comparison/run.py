r"""Run all experiments of a model that have no result yet: make the table, judge it by the tasks, keep a record.

    python -m benchmarks.comparison.run multilingual-e5-small --source MODEL --data DATA --work WORK --threads 1

One result a file, in `results/MODEL/`; killed and started again it goes on with the next. In WORK lies what each model
said of each item, so that a new measure needs no new run. What `--data` holds, README.md says.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..common.record import write
from .arms import ARMS
from .differences import difference
from .experiment import FOLDER, Experiment, Subject, read_experiments, read_subject
from .tasks import MEASURES, TASKS, Items, within

RESULTS = FOLDER / "results"
_DENSE = "dense"


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("subject", help="a file of models/, without its ending")
    parser.add_argument("--source", required=True, help="folder or Hub id of the model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the files that the tasks name")
    parser.add_argument("--work", type=Path, required=True, help="folder for what the models say of each item")
    parser.add_argument("--only", default="*", help="pattern of the experiments' names")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    subject = read_subject(options.subject)
    tokenizer = AutoTokenizer.from_pretrained(options.source)
    dense = AutoModel.from_pretrained(options.source, dtype=torch.float32).eval()
    judge = Judge(subject, tokenizer, options.data, options.work / subject.name)
    judge.items(_DENSE, dense)
    results = RESULTS / subject.name
    for experiment in read_experiments(subject):
        path = results / f"{experiment.name}.json"
        if path.exists() or not fnmatch.fnmatch(experiment.name, options.only):
            continue
        print(experiment.name, file=sys.stderr, flush=True)
        try:
            found = result_of(experiment, dense, tokenizer, judge)
        except LookupError as error:
            print(f"{experiment.name}: left out, {error}", file=sys.stderr, flush=True)
            continue
        write(path, found, source_sha256=digest(options.source))


def result_of(
    experiment: Experiment, dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, judge: Judge
) -> dict[str, Any]:
    """Make the table, and compare the model that reads it with the dense one."""
    began = time.process_time()
    made = ARMS[experiment.arm](dense, tokenizer, experiment)
    seconds = time.process_time() - began
    table = dense.get_input_embeddings().weight
    rest = sum(value.numel() * value.element_size() for value in dense.parameters()) - table.numel() * 4
    found = {
        "experiment": {name: getattr(experiment, name) for name in ("name", "label", "arm", "ratio", "options")},
        "table_bytes": made.table_bytes,
        "ratio": round(4 * table.numel() / made.table_bytes, 2),
        "model_bytes": made.table_bytes + rest,
        "cpu_seconds": round(seconds, 1),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        **made.details,
    }
    return found | {"differences": judge.differences(experiment.name, made.model.eval())}


class Judge:
    """Judges models by the tasks of a subject; what they said of each item is kept in a folder."""

    def __init__(self, subject: Subject, tokenizer: PreTrainedTokenizerBase, data: Path, work: Path) -> None:
        """Keep where things are."""
        self.subject, self.tokenizer, self.data, self.work = subject, tokenizer, data, work

    def items(self, name: str, model: PreTrainedModel | None = None) -> dict[str, Items]:
        """Return what a model says of the items of each task, asked now or before."""
        found = {}
        for task, options in self.subject.tasks.items():
            path = self.work / f"{name}.{task}.npz"
            if not path.exists():
                assert model is not None
                path.parent.mkdir(parents=True, exist_ok=True)
                said: dict[str, Any] = dict(TASKS[task](model, self.tokenizer, self.subject, self.data, options))
                np.savez(path, **said)
            with np.load(path) as stored:
                found[task] = {key: stored[key] for key in stored.files}
        return found

    def differences(self, name: str, model: PreTrainedModel) -> dict[str, Any]:
        """Return, for each task and each of its measures, both models' values by language and their mean difference."""
        before, after = self.items(_DENSE), self.items(name, model)
        found: dict[str, Any] = {}
        for task in self.subject.tasks:
            for group, names in within(task, list(before[task])).items():
                for label, measure in MEASURES[task].items():
                    found[f"{group}, {label}"] = {
                        "dense": {one: round(measure(before[task][one]), 2) for one in names},
                        "compact": {one: round(measure(after[task][one]), 2) for one in names},
                        "difference": difference(measure, before[task], after[task], names),
                    }
        return found


def digest(source: str) -> str | None:
    """Return the SHA-256 of a local model's weights."""
    path = Path(source) / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


if __name__ == "__main__":
    main()
