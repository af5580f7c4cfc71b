r"""Our methods and other libraries' at equal bytes, on the table of all-MiniLM-L6-v2 and on made ones.

    python -m benchmarks.frontier.run --texts wikitext2/train.txt reviews.txt --pairs stsb/en/validation.jsonl \
        stsb/en/test.jsonl --output benchmarks/frontier/results/equal_bytes.json
    python -m benchmarks.frontier.run --spectra --output benchmarks/frontier/results/made_spectra.json

Every byte is counted, and every method keeps the same few special tokens exactly. Each fit runs in a process of its
own, on one thread. Results are saved one by one: stopped and started again with the same arguments, it goes on where
it was. The other libraries come with `pip install 'hf_compact_embeddings[peers]'`; those that are missing are left
out. Writes a plot (SVG) beside the JSON file, and prints a table.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from ..common.library import (
    count_tokens,
    covariance,
    exact_ids,
    find_model,
    find_sensitivity,
    private_bytes,
    sts_score,
)
from ..common.record import read_lines, read_rows
from ..common.texts import one_sentence_of_each_line
from .fit import CHANCE_POWER, Inputs
from .measuring import Judge, Results, available, checks, run, show, show_checks
from .peers import Floats
from .plot import plot
from .settings import Table, all_settings
from .spectra import made_tables


class Source:
    """A real model: its table, its sentence similarity with other tables, and what texts say about its tokens."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Load the model."""
        folder = find_model(options.model)
        self.name = "all-MiniLM-L6-v2" if options.model is None else Path(folder).name
        self.texts: list[str] = options.texts
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.weight = self.model.get_input_embeddings().weight.detach()
        self.table = self.weight.clone()
        self.exact = np.array(exact_ids(self.model, self.tokenizer))
        self.pairs = {Path(path).stem: read_rows(path) for path in options.pairs}

    def scores(self, rows: Floats) -> dict[str, float]:
        """Return the sentence similarity with other rows (V, D)."""
        self.weight.copy_(torch.from_numpy(rows))
        found = {name: sts_score(self.model, self.tokenizer, lines) for name, lines in self.pairs.items()}
        self.weight.copy_(self.table)
        return found

    def counts(self) -> NDArray[np.float64]:
        """Count the tokens of the texts."""
        lines = (line for path in self.texts for line in read_lines(path))
        return count_tokens(lines, self.tokenizer, len(self.table)).numpy()

    def metric(self) -> NDArray[np.float64]:
        """Measure what errors cost."""
        return find_sensitivity(one_sentence_of_each_line(self.texts), self.tokenizer, self.model).metric.numpy()


def kept(folder: Path, name: str, measure: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return an array that lies in a folder, or measure it and leave it there."""
    path = folder / f"{name}.npy"
    if not path.exists():
        np.save(path, measure())
    return np.load(path)


def real_table(options: argparse.Namespace, results: Results, folder: Path) -> None:
    """Measure everything on the table of a real model."""
    source = Source(options)
    table, (rows, width) = source.table, source.table.shape
    counts = kept(folder, "counts", source.counts)
    Inputs(table.numpy(), private_ids=source.exact).write(folder)
    weights = counts + 1.0
    weights[source.exact] = 0.0
    variances = torch.linalg.eigvalsh(covariance(table)[1])
    drawn = torch.linalg.eigvalsh(covariance(table, torch.from_numpy((counts + 1.0) ** CHANCE_POWER))[1])
    facts = Table(rows, width, private_bytes(len(source.exact), width), variances.numpy(), drawn.numpy())
    here = available()
    settings = [
        setting
        for setting in all_settings(facts)
        if setting.library in here and (options.only is None or options.only in setting.name)
    ]
    judge = Judge(table.numpy(), table.numel(), variances, weights)
    # What needs no sentences comes first, and is there soon.
    run([setting for setting in settings if not setting.scored], source.name, folder, judge, results)
    scored = [setting for setting in settings if setting.scored]
    if scored:
        kept(folder, "metric", source.metric)
        if not any(result["name"] == "dense" for result in results.found):
            dense = {"rows": rows, "width": width, "bytes": table.nbytes, **source.scores(table.numpy())}
            results.add({"source": source.name, "name": "dense", "group": "dense", **dense})
    run(scored, source.name, folder, judge, results, source.scores)
    if options.only is None:
        results.keep([(source.name, name) for name in ["dense", *(setting.name for setting in settings)]])
    report(results, list(source.pairs), exact_rows=len(source.exact))


def report(results: Results, scores: list[str], **details: object) -> None:
    """Print tables, and draw the plot."""
    outcome = checks(results.found)
    results.write(**details, checks=outcome)
    print(f"{show(results.found, scores)}\n\n{show_checks(outcome)}")
    dense = next((result for result in results.found if result["name"] == "dense"), None)
    if dense is not None:
        print("\ndense: " + ", ".join(f"{name} {dense[name]:.2f}" for name in scores))
        best = [result for result in results.found if result.get("best")]
        plot(best, dense[scores[-1]], scores[-1], results.path.with_suffix(".svg"))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", nargs="+", default=[], help="texts to count and read")
    parser.add_argument("--pairs", nargs="+", default=[], help="files of scored pairs; the last is plotted")
    parser.add_argument("--model", help="folder or Hub id; by default the demo's")
    parser.add_argument("--spectra", action="store_true", help="tables of made spectra instead, no texts needed")
    parser.add_argument("--only", help="only settings whose names contain this")
    parser.add_argument("--again", help="measure settings whose names contain this again")
    parser.add_argument("--work", type=Path, help="existing folder; counts and metric of the same texts are kept there")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write")
    options = parser.parse_args()
    if not options.spectra and not (options.texts and options.pairs):
        parser.error("--texts and --pairs are needed, or --spectra")
    return options


def main() -> None:
    """Measure."""
    options = parse()
    # For the processes that fit, before any starts.
    os.environ.update({name: "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
    torch.set_num_threads(1)
    results = Results(options.output, options.again)
    if options.spectra:
        made_tables(options, results)
        return
    with tempfile.TemporaryDirectory() as scratch:
        real_table(options, results, options.work or Path(scratch))


if __name__ == "__main__":
    main()
