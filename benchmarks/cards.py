"""Makes the cards in model_cards/: all-MiniLM-L6-v2 by every method of the registry, each at some sizes.

    python -m benchmarks.cards                       # all methods
    python -m benchmarks.cards --method subspace     # one method's cards anew
    python -m benchmarks.cards --sts stsb_test.jsonl # with the STS benchmark's test split, before and after

The file for `--sts` has a JSON object a line, with sentence1, sentence2 and score: the columns of
sentence-transformers/stsb on the Hub. Without it the cards hold how well the models agree on demo sentences.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import hf_compact_embeddings as hce

from .common.library import HUB_ID, agreement, compress_within, find_model, make_card, sentence_vectors, sts_score
from .common.record import read_rows

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
DEMO_SENTENCES = Path(hce.__file__).parent / "cli" / "demo_sentences.txt"

# For each method, the options of each card; ratios are of all bytes. A method that is not here has a card of its
# default options.
SIZES: dict[str, tuple[dict[str, Any], ...]] = {
    "subspace": ({"num_subspaces": 48}, {"num_subspaces": 24}, {"num_subspaces": 8}),
    "scalar": ({"bits": 8}, {"bits": 4, "group_size": 32}, {"bits": 4}),
    "rotated": ({"ratio": 25}, {"ratio": 100}, {"ratio": 500}),
    "blocks": ({"ratio": 25}, {"ratio": 100}, {"ratio": 500}),
    "hash": ({"variant": "pool"}, {"variant": "proj", "hashing": "lsh"}),
    "factorized": ({"ratio": 4}, {"ratio": 8}, {"ratio": 20}),
}

Measure = Callable[[PreTrainedModel], hce.TaskResult]


def main() -> None:
    """Make the cards that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=hce.methods(), action="append", help="by default all")
    parser.add_argument("--sts", type=Path, help="the STS benchmark's test split, a JSON object a line")
    parser.add_argument("--threads", type=int, help="by default all cores")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = find_model()
    dense, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    measures = [_agreement(dense, tokenizer)]
    if options.sts is not None:
        measures.append(_sts(dense, tokenizer, options.sts))
    CARDS.mkdir(exist_ok=True)
    for method in options.method or hce.methods():
        for old in CARDS.glob(f"*-{method}-*.md"):
            old.unlink()
        for settings in SIZES.get(method, ({},)):
            path = write_card(dense, tokenizer, method, settings, measures)
            print(path.relative_to(CARDS.parent))


def write_card(
    dense: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: str,
    settings: dict[str, Any],
    measures: list[Measure],
) -> Path:
    """Compress, measure, and write one card."""
    compact = compress_within(dense, method, settings, tokenizer)
    report = hce.inspect(compact, against=dense)
    results = [measure(compact) for measure in measures]
    card = make_card(compact, report, base_model=HUB_ID, results=results, sentences=True)
    path = CARDS / f"{HUB_ID.rpartition('/')[2]}-{method}-{report.ratio:.0f}x.md"
    path.write_text(str(card), encoding="utf-8")
    return path


def _agreement(dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Measure:
    sentences = DEMO_SENTENCES.read_text(encoding="utf-8").splitlines()
    original = sentence_vectors(dense, tokenizer, sentences)

    def measure(compact: PreTrainedModel) -> hce.TaskResult:
        return hce.TaskResult(
            task_type="sentence-similarity",
            dataset_name=f"the original's similarities of {len(sentences)} demo sentences",
            metric="spearmanr",
            before=1.0,
            after=agreement(original, sentence_vectors(compact, tokenizer, sentences)),
        )

    return measure


def _sts(dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> Measure:
    pairs = read_rows(path)
    before = sts_score(dense, tokenizer, pairs) / 100

    def measure(compact: PreTrainedModel) -> hce.TaskResult:
        return hce.TaskResult(
            task_type="sentence-similarity",
            dataset_name="STS benchmark",
            dataset_id="sentence-transformers/stsb",
            split="test",
            metric="spearmanr",
            before=before,
            after=sts_score(compact, tokenizer, pairs) / 100,
        )

    return measure


if __name__ == "__main__":
    main()
