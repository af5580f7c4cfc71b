#!/usr/bin/env python
"""Export a compact encoder for the page, and encode its sentences: `python examples/browser/prepare.py CHECKPOINT`.

It writes dist/, which `npm run build` then fills with the page; and expected.json, by which `npm run check` knows what
the browser has to give.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

import hf_compact_embeddings as hce

HERE = Path(__file__).resolve().parent
DIST = HERE / "dist"
# What the check types, and the sentence of the page that has to be among the first five.
QUERIES = {
    "a problem with my login": "I forgot the password of my account.",
    "wet weather later today": "It will rain in the afternoon.",
    "pets taking a nap": "Two cats are sleeping on the sofa.",
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder of a compact encoder, as `hf-compact compress` writes it")
    parser.add_argument("--about", default="", help="what the page says of the model")
    parser.add_argument("--query-prefix", default="", help='what the model wants before a query, as "query: "')
    parser.add_argument("--sentence-prefix", default="", help='and before what is searched, as "passage: "')
    return parser.parse_args(arguments)


def read_sentences() -> list[dict[str, str]]:
    """Return all sentences, each with its language."""
    with (HERE / "sentences.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [{"language": language, "text": row[language]} for language in rows[0] for row in rows]


def encode(path: Path, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    """Return the vectors (n, D) that an exported graph gives texts, one at a time as the page does."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    vectors = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="np", truncation=True)
        given = session.run(["sentence_embedding"], {name: inputs[name].astype(np.int64) for name in names})
        vectors.append(given[0][0])
    return np.stack(vectors)


@torch.no_grad()
def encode_in_torch(checkpoint: str, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[float]]:
    """Return the mean-pooled vectors that the compact checkpoint itself gives texts."""
    model = AutoModel.from_pretrained(checkpoint).eval()
    vectors = []
    for text in texts:
        states = model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state
        vectors.append(torch.nn.functional.normalize(states.mean(1), dim=-1)[0].tolist())
    return vectors


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, encode, and write what the page and its check read."""
    options = parse_arguments(arguments)
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    exported = hce.export_onnx(options.checkpoint, DIST / "model", layers="int8", pooling="mean")
    print(exported)
    tokenizer = AutoTokenizer.from_pretrained(DIST / "model")
    sentences = read_sentences()
    quantized = DIST / "model" / "onnx" / "model_quantized.onnx"
    vectors = encode(quantized, tokenizer, [options.sentence_prefix + one["text"] for one in sentences])
    (DIST / "vectors.bin").write_bytes(vectors.astype("<f4").tobytes())
    write_json(DIST / "sentences.json", sentences)
    write_json(DIST / "settings.json", {"about": options.about, "query_prefix": options.query_prefix})
    queries = [options.query_prefix + query for query in QUERIES]
    expected = {
        "queries": QUERIES,
        "texts": queries,
        "torch": encode_in_torch(options.checkpoint, tokenizer, queries),
        "quantized": encode(quantized, tokenizer, queries).tolist(),
    }
    write_json(HERE / "expected.json", expected)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
