"""How fast exported graphs are beside PyTorch, and how far their sentence vectors are from it; all in one process.

python -m benchmarks.speed.exported COMPACT --texts examples/browser/sentences.tsv --output RECORD.json
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import hf_compact_embeddings as hce
from benchmarks.common.library import agreement, find_model
from benchmarks.common.record import layout, write

# Batch and length: a query, some sentences, a batch of passages.
SHAPES = ((1, 12), (8, 32), (8, 128))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("compact", help="folder of a compact encoder")
    parser.add_argument("--dense", help="its original; by default all-MiniLM-L6-v2")
    parser.add_argument("--texts", required=True, help="table of sentences, a language a column")
    parser.add_argument("--prefix", default="", help="what the model wants before a sentence")
    parser.add_argument("--rounds", type=int, default=15, help="of which the fastest counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output")
    return parser.parse_args(arguments)


def session_of(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(session: onnxruntime.InferenceSession) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what gives sentence vectors by a graph."""
    names = [one.name for one in session.get_inputs()]

    def run(inputs: dict[str, Tensor]) -> Tensor:
        given = session.run(["sentence_embedding"], {name: inputs[name].numpy() for name in names})
        return torch.from_numpy(given[0])

    return run


def torch_runner(model: Any) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return what gives sentence vectors by PyTorch."""

    @torch.inference_mode()
    def run(inputs: dict[str, Tensor]) -> Tensor:
        states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    return run


def times(runners: dict[str, Any], inputs: dict[str, Tensor], rounds: int) -> dict[str, float]:
    """Return the fastest milliseconds of each, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            run(inputs)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: round(min(every), 2) for name, every in taken.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, time, and compare."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    with open(options.texts, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [options.prefix + text for row in rows for text in row.values()]
    tokenizer = AutoTokenizer.from_pretrained(options.compact)
    with tempfile.TemporaryDirectory() as folder:
        exported = hce.export_onnx(options.compact, Path(folder) / "out", layers="int8", pooling="mean")
        print(exported)
        began = time.perf_counter()
        sessions = {name: session_of(Path(exported.folder) / name, options.threads) for name in exported.files}
        loading = round((time.perf_counter() - began) / len(sessions), 3)
        runners: dict[str, Any] = {
            "dense": torch_runner(AutoModel.from_pretrained(find_model(options.dense)).eval()),
            "compact": torch_runner(AutoModel.from_pretrained(options.compact).eval()),
            "onnx": runner(sessions["onnx/model.onnx"]),
            "onnx, int8 layers": runner(sessions["onnx/model_quantized.onnx"]),
        }
        timed = {}
        for batch, length in SHAPES:
            ids = torch.randint(1000, len(tokenizer), (batch, length), generator=torch.Generator().manual_seed(0))
            inputs = {name: torch.zeros_like(ids) for name in exported.inputs}
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            timed[f"{batch} x {length}"] = times(runners, inputs, options.rounds)
        vectors = {name: torch.cat([run(_read(tokenizer, text)) for text in texts]) for name, run in runners.items()}
    table = [[shape, *(f"{found[name]:.1f}" for name in runners)] for shape, found in timed.items()]
    print(layout(["milliseconds", *runners], table))
    kept = {
        name: {
            "mean cosine with compact": round(float((vectors[name] * vectors["compact"]).sum(1).mean()), 5),
            "agreement with dense": round(agreement(vectors[name], vectors["dense"]), 4),
        }
        for name in runners
    }
    for name, figures in kept.items():
        print(f"{name:<20}{figures}")
    results: dict[str, Any] = {
        "exported": exported.to_dict() | {"folder": "out"},
        "milliseconds": timed,
        "vectors": kept,
    }
    results |= {"seconds to load a graph": loading, "median ratio": _ratios(timed)}
    if options.output:
        write(options.output, results, packages={"onnxruntime": onnxruntime.__version__})


def _read(tokenizer: Any, text: str) -> dict[str, Tensor]:
    return dict(tokenizer(text, return_tensors="pt", truncation=True))


def _ratios(timed: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the median, over shapes, of how long each takes over dense PyTorch."""
    names = next(iter(timed.values()))
    return {
        name: round(statistics.median(found[name] / found["dense"] for found in timed.values()), 2) for name in names
    }


if __name__ == "__main__":
    main()
