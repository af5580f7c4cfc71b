"""Peak memory and time of a training step with a table of XLM-R's size, compact beside dense.

    python -m benchmarks.speed.step_memory --output benchmarks/speed/results/step_memory.json

A masked LM of two layers with a tied head takes two steps of AdamW on random tokens, in a process of its own for each
arm. What the process held before the model was built is taken off.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

import hf_compact_embeddings as hce

from ..common.record import layout, write

ARMS: dict[str, Any] = {
    "dense": None,
    "subspace, f = 8": hce.SubspaceConfig(num_subspaces=8, init="random"),
    "blocks, 0.25 bits": hce.BlocksConfig(bits_per_weight=0.25, init="random"),
    "rotated, 0.25 bits": hce.RotatedConfig(bits_per_weight=0.25, init="random"),
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=250_002)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--arm", choices=ARMS, help="measure only this one, here")
    return parser.parse_args()


def main() -> None:
    """Measure every arm in a process of its own."""
    options = parse()
    if options.arm:
        print(json.dumps(measure(options)))
        return
    results = []
    for arm in ARMS:
        command = [sys.executable, "-m", "benchmarks.speed.step_memory", *sys.argv[1:], "--arm", arm]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results.append({"arm": arm, **json.loads(printed.splitlines()[-1])})
    header = ["table", "peak", "gradients and optimiser", "step"]
    print(layout(header, [cells(result) for result in results]))
    if options.output:
        write(options.output, results, threads=options.threads)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Train, and return megabytes and CPU seconds."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    before = peak_megabytes()
    model = new_model(options)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(5, options.rows, (options.batch, options.length))
    # As in training: a loss at a seventh of the tokens.
    labels = torch.where(torch.rand(ids.shape) < 0.15, ids, -100)
    for _ in range(2):
        optimizer.zero_grad()
        started = time.process_time()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    gradients = sum(value.grad.nbytes for value in model.parameters() if value.grad is not None)
    state = sum(part.nbytes for entry in optimizer.state.values() for part in entry.values() if torch.is_tensor(part))
    return {
        "peak_mb": round(peak_megabytes() - before),
        "gradients_and_optimizer_mb": round((gradients + state) / 1e6, 1),
        "step_cpu_seconds": round(time.process_time() - started, 2),
    }


def new_model(options: argparse.Namespace) -> PreTrainedModel:
    """Return a masked LM with a table of the asked kind."""
    shape = {
        "vocab_size": options.rows,
        "hidden_size": options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": max(1, options.width // 64),
        "intermediate_size": 4 * options.width,
        "max_position_embeddings": options.length,
    }
    method = ARMS[options.arm]
    if method is None:
        return BertForMaskedLM(BertConfig(**shape))
    return hce.CompactBertForMaskedLM(hce.CompactBertConfig(**shape, compact_embeddings=method))


def peak_megabytes() -> float:
    """Return the most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def cells(result: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    kept = f"{result['gradients_and_optimizer_mb']:,.0f} MB"
    return [result["arm"], f"{result['peak_mb']:,} MB", kept, f"{result['step_cpu_seconds']:.1f} CPU s"]


if __name__ == "__main__":
    main()
