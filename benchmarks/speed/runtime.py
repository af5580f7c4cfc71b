"""Look-up, tied head and text generation, from codes and from rows that `materialize()` decodes, beside dense.

    python -m benchmarks.speed.runtime --threads 2 --causal MODEL --output benchmarks/speed/results/runtime.json

All arms of a measurement run in turn, so that a machine that others use slows them alike; medians are given.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import hf_compact_embeddings as hce

from ..common.library import configuration, find_model, fit_rows, resident_bytes
from ..common.record import layout, write

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rotated, 25x": ("rotated", {"ratio": 25.0}),
    "rotated, 100x": ("rotated", {"ratio": 100.0}),
    "blocks, 25x": ("blocks", {"ratio": 25.0}),
    "subspace, f = 16": ("subspace", {"num_subspaces": 16}),
    "subspace, f = 96": ("subspace", {"num_subspaces": 96}),
    "scalar, 8 bits": ("scalar", {"bits": 8}),
}
RUNTIMES = (None, "int8", "float16")
# Decoded rows are alike, whatever they were decoded from.
MATERIALIZED = "rotated, 25x"
LARGE = (250_002, 768)
TOKENS = 1024
BATCHES = (1, 8, 32)
# A call that has taken so many seconds in all is left at so many rounds.
ENOUGH_SECONDS = 10.0
LEAST_ROUNDS = 3
PROMPT = "Gravity is the force by which"

Calls = Mapping[str, Callable[[], object]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9, help="of each head; look-ups take ten times as many")
    parser.add_argument("--model", help="whose table is measured; by default all-MiniLM-L6-v2")
    parser.add_argument("--causal", metavar="MODEL", help="causal model that generates text; by default none does")
    parser.add_argument("--compact", metavar="FOLDER", help="that model, compact already; by default it is fitted")
    parser.add_argument("--ratio", type=float, default=25.0, help="by which its table is made smaller")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Measure both tables, and the causal model."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    small = AutoModel.from_pretrained(find_model(options.model)).get_input_embeddings().weight.detach()
    tables = [*measure_table(small, options.rounds, {}), *measure_table(torch.randn(LARGE), options.rounds, RANDOM)]
    print(layout(["table", "arm", "disk MB", "memory MB", "look-up", *map(str, BATCHES)], list(map(cells, tables))))
    generated = [] if options.causal is None else measure_generation(options)
    for result in generated:
        print(f"{result['arm']:<10}{result['tokens_per_second']:>8.1f} tokens a second")
    if options.output:
        write(options.output, {"tables": tables, "generation": generated}, threads=options.threads)


# Random codes, so that nothing waits for a fit of a large table.
RANDOM = {"init": "random"}


def measure_table(weight: torch.Tensor, rounds: int, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return sizes and times of all arms on a table (V, D)."""
    rows, width = weight.shape
    arms: dict[str, nn.Module] = {"dense": nn.Embedding(rows, width, _weight=weight)}
    for name, (method, options) in METHODS.items():
        fitted = fit_rows(configuration(method, (rows, width), **options, **given), weight).eval()
        runtimes = RUNTIMES if name == MATERIALIZED else RUNTIMES[:1]
        arms |= {f"{name}, {runtime or 'codes'}": in_runtime(fitted, runtime) for runtime in runtimes}
    ids = torch.randint(rows, (8, TOKENS // 8))
    times = {"look_up": medians({name: partial(table, ids) for name, table in arms.items()}, 10 * rounds)}
    for batch in BATCHES:
        hidden = torch.randn(batch, width)
        heads = {name: partial(head, table, hidden) for name, table in arms.items()}
        times[f"head_{batch}"] = medians(heads, rounds)
    return [
        {"rows": rows, "width": width, "arm": name, **sizes(table)}
        | {f"{what}_ms": round(1e3 * found[name], 4) for what, found in times.items()}
        | {f"{what}_over_dense": round(found[name] / found["dense"], 3) for what, found in times.items()}
        for name, table in arms.items()
    ]


def in_runtime(table: Any, runtime: str | None) -> Any:
    """Return a copy of a model or a table that reads codes, or rows decoded into a type."""
    return hce.materialize(copy.deepcopy(table), runtime)


def head(table: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Score all rows, as a tied head does."""
    return (
        nn.functional.linear(hidden, table.weight) if isinstance(table, nn.Embedding) else table(hidden, project=True)
    )


def sizes(table: Any) -> dict[str, int]:
    """Return the bytes of a table as saved, and in memory with what was read from it once and the decoded rows."""
    if isinstance(table, nn.Embedding):
        return {"disk_bytes": table.weight.nbytes, "memory_bytes": table.weight.nbytes}
    return {"disk_bytes": table.nbytes, "memory_bytes": resident_bytes(table)}


def medians(calls: Calls, rounds: int) -> dict[str, float]:
    """Return the median seconds of each call, after one that does not count; they run in turn, slow ones less often."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            if len(seconds[name]) > LEAST_ROUNDS and sum(seconds[name]) > ENOUGH_SECONDS:
                continue
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def measure_generation(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return tokens a second of greedy generation, dense and from each runtime."""
    dense = AutoModelForCausalLM.from_pretrained(options.causal, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.causal)
    if options.compact is not None:
        compact = AutoModelForCausalLM.from_pretrained(options.compact, dtype=torch.float32).eval()
    else:
        with torch.enable_grad():
            compact = hce.compress(dense, "rotated", tokenizer=tokenizer, ratio=options.ratio)
    arms = {"dense": dense, **{runtime or "codes": in_runtime(compact, runtime) for runtime in RUNTIMES}}
    inputs = tokenizer(PROMPT, return_tensors="pt")

    def generate(model: PreTrainedModel) -> object:
        count = options.new_tokens
        return model.generate(**inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0)

    times = medians({name: partial(generate, model) for name, model in arms.items()}, 3)
    found = {name: round(options.new_tokens / seconds, 2) for name, seconds in times.items()}
    table: Any = dense.get_input_embeddings()
    ratio = round(table.weight.nbytes / compact.compact_embedding.nbytes, 2)
    return [{"arm": name, "ratio": ratio, "tokens_per_second": speed} for name, speed in found.items()]


def cells(result: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    found = [f"{result['rows']:,} x {result['width']}", result["arm"]]
    found += [f"{result[f'{where}_bytes'] / 1e6:,.1f}" for where in ("disk", "memory")]
    for what in ("look_up", *(f"head_{batch}" for batch in BATCHES)):
        found.append(f"{result[f'{what}_ms']:.2f} ms ({result[f'{what}_over_dense']:.2f})")
    return found


if __name__ == "__main__":
    main()
