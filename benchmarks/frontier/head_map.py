r"""What a map of its own would bring to a head that scores through the codes: scores = (A h)·ê + b, at equal bytes.

    python -m benchmarks.frontier.head_map --model smollm2-135m-instruct --texts wikitext2/train.txt \
        --held-out wikitext2/valid.txt --ratios 16 25 --output benchmarks/frontier/results/head_map.json

No structure stores such a map: this says what one is worth. Rows are read as ever, and the map is paid for out of the
same budget: what it takes, the codes have less.

- closed: A = argmin Σ r_v |e_v − Aᵀê_v|² over the probability r_v that the model gives token v on texts, drawn to the
  identity, and b = (e − Aᵀê)·h̄ for the mean state h̄; A − I at 4 bits with a scale a row, b at 8 bits with one scale.
- low rank: A − I of rank 32, both factors at 8 bits, no b; from the closed A, then trained for some steps of Adam to
  the original's predictions, behind the layers that read the compact rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import hf_compact_embeddings as hce

from ..common.library import stream_pieces
from ..common.record import layout, write
from .tied import first_tokens

_PIECE_LENGTH = 512
_RIDGE = 1e-2
# Of the mean, where rows and states are made white for the steps.
_DAMPING = 0.1
_RATE = 3e-4
_STATES_PER_STEP = 256
_CLIPS = 14


def main() -> None:
    """Fit within each budget, with and without room for a map, and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal model with a tied head")
    parser.add_argument("--texts", required=True, help="text file to compress with, and to find the map on")
    parser.add_argument("--held-out", required=True, help="text file for the predictions")
    parser.add_argument("--pieces", type=int, default=16, help="of 512 tokens, of the text held out")
    parser.add_argument("--learned-pieces", type=int, default=32, help="of the other")
    parser.add_argument("--ratios", type=float, nargs="*", default=[16, 25])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dense = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    rows, width = dense.get_input_embeddings().weight.shape
    learned, held_out = (
        _pieces(path, tokenizer, count)
        for path, count in ((options.texts, options.learned_pieces), (options.held_out, options.pieces))
    )
    original = _Side(dense.get_input_embeddings().weight.detach(), _states(dense, learned), _states(dense, held_out))
    # Floats of 2 bytes: a scale a row of A, one for all of b; one for each factor's row or column.
    taken = {
        "no map": 0,
        "closed": (width * width // 2 + 2 * width) + (rows + 2),
        "low rank": 2 * options.rank * (width + 2),
    }
    results: list[dict[str, Any]] = []
    for ratio in options.ratios:
        for name, less in taken.items():
            config = hce.RotatedConfig(max_bytes=int(rows * width * 4 / ratio) - less)
            compact = hce.compress(dense, config, tokenizer=tokenizer, texts=options.texts)
            codes = hce.inspect(compact).compact_bytes
            table = compact.get_input_embeddings().dense().detach()
            side = _Side(table, _states(compact, learned), _states(compact, held_out))
            began = time.process_time()
            maps = _maps(name, original, side, options.rank, options.steps)
            seconds = time.process_time() - began
            for words, bytes_of_map, weight, bias in maps:
                found = _measured(original, side, weight, bias, held_out)
                more = {"bytes": codes + bytes_of_map * less, "map_bytes": bytes_of_map * less}
                results.append({"ratio": ratio, "map": words, **more, **found, "map_seconds": round(seconds, 1)})
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
            if options.output:
                write(options.output, results, held_out=Path(options.held_out).name, tokens=found["tokens"])
    cells = [
        [f"{r['ratio']:g}x, {r['map']}", f"{r['bytes']:,}", f"{r['over_dense']:.4f}", f"{r['kl']:.4f}"] for r in results
    ]
    print(layout(["table, map", "bytes", "perplexity over dense", "KL"], cells))


@dataclasses.dataclass(frozen=True)
class _Side:
    """A model as its head sees it: its rows (V, D), and what enters the head (n, D), learned and held out."""

    table: Tensor
    learned: Tensor
    held_out: Tensor


def _pieces(path: str, tokenizer: Any, count: int) -> Tensor:
    texts = first_tokens(path, tokenizer, count * _PIECE_LENGTH)
    return torch.tensor(list(stream_pieces(texts, tokenizer, _PIECE_LENGTH)))[:count]


@torch.no_grad()
def _states(model: PreTrainedModel, pieces: Tensor) -> Tensor:
    """Return what enters the head (n, D) where a next token is known."""
    layers = model.get_decoder()
    found = [layers(input_ids=piece[None], use_cache=False).last_hidden_state[0, :-1] for piece in pieces]
    return torch.cat(found)


def _maps(
    name: str, original: _Side, side: _Side, rank: int, steps: int
) -> list[tuple[str, bool, Tensor, Tensor | None]]:
    """Return what to measure: in words, whether its map is paid for, A, and b."""
    unit = torch.eye(side.table.shape[1])
    if name == "no map":
        given = _given(original)
        free = _closed(original, side, given)
        return [("none", False, unit, None), ("closed, for free", False, free, _bias(original, side, free))]
    closed = _closed(original, side, _given(original))
    if name == "closed":
        coded = unit + _rounded(closed - unit, 4)
        bias = _rounded(_bias(original, side, coded)[None], 8)[0]
        return [("none, with the codes that a map leaves", False, unit, None), (name, True, coded, bias)]
    start, end = _low_rank(original, side, closed, rank, steps)
    return [(f"{name}, closed", True, start, None), (f"{name}, trained", True, end, None)]


@torch.no_grad()
def _given(original: _Side) -> Tensor:
    """Return each token's probability on the learned text (V,)."""
    chunks = original.learned.split(_STATES_PER_STEP)
    return torch.stack([(chunk @ original.table.T).softmax(1).sum(0) for chunk in chunks]).sum(0) / len(
        original.learned
    )


def _closed(original: _Side, side: _Side, given: Tensor) -> Tensor:
    """Return the A (D, D) of least squares."""
    weighted = side.table * given[:, None]
    power, cross = (weighted.T @ side.table).double(), (weighted.T @ original.table).double()
    ridge = _RIDGE * power.diagonal().mean() * torch.eye(len(power), dtype=torch.float64)
    return torch.linalg.solve(power + ridge, cross + ridge).float()


def _bias(original: _Side, side: _Side, weight: Tensor) -> Tensor:
    return (original.table - side.table @ weight) @ original.learned.mean(0)


def _rounded(values: Tensor, bits: int) -> Tensor:
    """Round to so many bits, with the scale of each row that errs least."""
    top = 2 ** (bits - 1) - 1
    largest = values.abs().amax(1, keepdim=True).clamp(min=1e-12)
    candidates = []
    for share in torch.linspace(0.35, 1.0, _CLIPS):
        scale = (share * largest / top).half().float().clamp(min=1e-7)
        candidates.append((values / scale).round().clamp(-top - 1, top) * scale)
    errors = torch.stack([(one - values).square().sum(1) for one in candidates])
    return torch.stack(candidates)[errors.argmin(0), torch.arange(len(values))]


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix.double())
    return ((vectors * (values + _DAMPING * values.mean()) ** exponent) @ vectors.T).float()


def _low_rank(original: _Side, side: _Side, closed: Tensor, rank: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return A (D, D) of low rank as it starts from the closed one, and as it is after training."""
    table, unit, given = side.table, torch.eye(side.table.shape[1]), _given(original)
    rows = (table * given[:, None]).T @ table - torch.outer(given @ table, given @ table)
    states = side.learned.T @ side.learned / len(side.learned)
    of_rows, of_states = _power(rows, -0.5), _power(states, -0.5)
    left, sizes, right = torch.linalg.svd(_power(rows, 0.5) @ (closed - unit) @ _power(states, 0.5))
    roots = sizes[:rank].sqrt()
    factors = [(left[:, :rank] * roots).requires_grad_(), (roots[:, None] * right[:rank]).requires_grad_()]

    def coded() -> Tensor:
        first, second = of_rows @ factors[0].detach(), factors[1].detach() @ of_states
        return unit + _rounded(first.T.contiguous(), 8).T @ _rounded(second, 8)

    start = coded()
    optimizer = torch.optim.Adam(factors, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, steps, pct_start=0.06, cycle_momentum=False)
    generator, order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < _STATES_PER_STEP:
            order = torch.randperm(len(side.learned), generator=generator)
        chosen, order = order[:_STATES_PER_STEP], order[_STATES_PER_STEP:]
        goal = (original.learned[chosen] @ original.table.T).log_softmax(1)
        weight = unit + (of_rows @ factors[0]) @ (factors[1] @ of_states)
        loss = torch.nn.functional.kl_div(
            (side.learned[chosen] @ weight.T @ table.T).log_softmax(1), goal, reduction="batchmean", log_target=True
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return start, coded()


@torch.no_grad()
def _measured(original: _Side, side: _Side, weight: Tensor, bias: Tensor | None, pieces: Tensor) -> dict[str, Any]:
    """Return how far predictions of the text held out are from the original's."""
    targets = pieces[:, 1:].flatten()
    apart, lost, alike = 0.0, 0.0, 0
    for chunk in torch.arange(len(targets)).split(_STATES_PER_STEP):
        goal = (original.held_out[chunk] @ original.table.T).log_softmax(1)
        scores = side.held_out[chunk] @ weight.T @ side.table.T
        found = (scores if bias is None else scores + bias).log_softmax(1)
        apart += float((goal.exp() * (goal - found)).sum())
        lost += float((goal - found).gather(1, targets[chunk, None]).sum())
        alike += int((goal.argmax(1) == found.argmax(1)).sum())
    count = len(targets)
    return {
        "over_dense": math.exp(lost / count),
        "kl": apart / count,
        "top1_agreement": alike / count,
        "tokens": count,
    }


if __name__ == "__main__":
    main()
