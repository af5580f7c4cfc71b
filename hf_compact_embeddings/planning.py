"""plan(): from a budget to configurations, best first, judged on a sample of the table."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoints import load_dense
from .evidence import Evidence, gather, read_texts
from .fitting import FitSource, fit_structure, predictor_of
from .fitting.spectrum import covariance, gap_db, shannon_bound
from .modeling.architectures import find_input_table
from .modeling.errors import CompactConfigError, config_error
from .modeling.structure import StructureConfig, config_classes, stored_bytes

_SAMPLE_ROWS = 8192
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration that keeps a budget.

    Attributes:
        config: give it to `compress()`.
        bytes: what it takes, exactly, rows kept exactly included.
        ratio: dense over compact bytes.
        predicted_error: the relative MSE that a full fit is expected to leave, weighted by token frequency
            where counts are known.
        bound: the relative MSE that a Gaussian source allows at this rate.
        gap_db: predicted_error over bound, in decibels.
        head_cost: work of scoring all tokens, over that of a dense head; None where the head is not tied.
    """

    config: StructureConfig
    bytes: int
    ratio: float
    predicted_error: float
    bound: float
    gap_db: float
    head_cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON."""
        return {**dataclasses.asdict(self), "config": self.config.to_dict()}


def plan(
    model: PreTrainedModel | str | Path,
    *,
    ratio: float | None = None,
    max_bytes: int | str | None = None,
    bits_per_weight: float | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_counts: Tensor | Literal["tokenizer"] | None = None,
    texts: Any = None,
    private_rows: int = 0,
    tied: bool | None = None,
    seed: int = 0,
) -> list[Plan]:
    """Return the candidates of all methods that keep a budget, the least predicted error first.

    Args:
        model: a dense model, or a Hub id or folder of one.
        ratio: the table becomes at least this many times smaller; or
        max_bytes: at most this large, as a number or as "1MB"; or
        bits_per_weight: at most this many bits for each value of the table.
        tokenizer: the model's tokenizer; room is left for its special tokens, which are kept exactly.
        token_counts: how often each token occurs (V,); errors then weigh by it. "tokenizer": as far as the tokenizer
            itself tells.
        texts: texts to count tokens in instead, as `compress()` takes them.
        private_rows: room is left for so many rows that are kept exactly, those special tokens among them.
        tied: whether an output head scores through the table; read from the model by default.
        seed: of the sample and the fits.
    """
    texts = None if texts is None else read_texts(texts)
    if isinstance(model, str | Path):
        model = load_dense(model)
    evidence = gather(
        model, find_input_table(model), tokenizer=tokenizer, token_counts=token_counts, texts=texts, seed=seed
    )
    return plan_for(
        evidence,
        ratio=ratio,
        max_bytes=max_bytes,
        bits_per_weight=bits_per_weight,
        private_rows=private_rows,
        tied=tied,
    )


def plan_for(
    evidence: Evidence,
    *,
    ratio: float | None = None,
    max_bytes: int | str | None = None,
    bits_per_weight: float | None = None,
    private_rows: int = 0,
    tied: bool | None = None,
) -> list[Plan]:
    """Return what `plan()` does, from evidence that is gathered already."""
    weight = evidence.table.module.weight.detach()
    rows, width = weight.shape
    budget = budget_in_bytes(weight, ratio, max_bytes, bits_per_weight)
    # Which rows are the most frequent only counts tell; room is left for so many all the same.
    counted = evidence.counts is not None
    source = evidence.fit_source({"counts"}, private_rows=private_rows if counted else 0)
    configs = _candidates(rows, width, budget, max(private_rows, source.private_ids.numel()))
    if tied is None:
        tied = source.tied
    sample = _Sample(source.table, source.counts, source.private_ids, bool(tied), evidence.seed)
    plans = []
    for config in tqdm(configs, desc="Planning", unit="candidate", leave=False, delay=1.0):
        size, error = sample.predict(config)
        bound = shannon_bound(sample.eigenvalues, 8 * size / weight.numel())
        cost = config.head_cost(rows, width) / weight.numel() if tied else None
        plans.append(Plan(config, size, weight.nbytes / size, error, bound, gap_db(error, bound), cost))
    return sorted(plans, key=lambda found: found.predicted_error)


def budget_in_bytes(
    table: Tensor, ratio: float | None, max_bytes: int | str | None, bits_per_weight: float | None
) -> int:
    """Return the bytes that one of three ways of giving a budget allows for a table (V, D)."""
    given = {"ratio": ratio, "max_bytes": max_bytes, "bits_per_weight": bits_per_weight}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise CompactConfigError(f"Exactly one of `ratio`, `max_bytes` and `bits_per_weight` must be given: {given}.")
    if ratio is not None:
        if not ratio > 1:
            raise config_error("ratio", ratio, "it must be above 1")
        budget = int(table.nbytes / ratio)
    elif bits_per_weight is not None:
        if not bits_per_weight > 0:
            raise config_error("bits_per_weight", bits_per_weight, "it must be above 0")
        budget = int(table.numel() * bits_per_weight / 8)
    else:
        assert max_bytes is not None
        budget = parse_size(max_bytes)
    if budget >= table.nbytes:
        raise config_error(chosen[0], given[chosen[0]], f"the dense table takes {table.nbytes:,} bytes already")
    return budget


def parse_size(size: int | str) -> int:
    """Return the bytes of a size as "500KB", "1.5 MB" or 1000000."""
    match = re.fullmatch(r"([0-9.]+)\s*([KMG]?B)?", str(size).strip().upper())
    try:
        return int(float(match.group(1)) * _UNITS[match.group(2) or ""])  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        raise config_error("max_bytes", size, 'it must be a size as 1000000, "500KB" or "1.5MB"') from None


def _candidates(rows: int, width: int, budget: int, private: int) -> list[StructureConfig]:
    """Ask every method for candidates, with the rows that are kept exactly."""
    left = budget - stored_bytes_of_private_rows(width, private)
    found = []
    for config_class in config_classes() if left > 0 else []:
        for config in config_class.candidates(rows, width, left):
            if predictor_of(config) is None:
                config = config.resolved(rows, width)
            config = dataclasses.replace(config, private_rows=private, mask_padding=False)
            if predictor_of(config) is not None or stored_bytes(config, rows, width) <= budget:
                found.append(config)
    if not found:
        raise CompactConfigError(
            f"The budget is {budget:,} bytes, but the smallest candidate for a table of {rows:,} x {width:,} takes "
            f"{_smallest(rows, width, private):,} bytes."
        )
    return found


def stored_bytes_of_private_rows(width: int, count: int) -> int:
    """Return the bytes of rows kept exactly: two a value, and four for the id."""
    return count * (2 * width + 4)


def _smallest(rows: int, width: int, private: int) -> int:
    """Return the least budget that has a candidate, to within a hundredth."""
    low, high = 1, rows * width * 4
    while high > low * 1.01 + 1:
        middle = (low + high) // 2
        some = any(config_class.candidates(rows, width, middle) for config_class in config_classes())
        low, high = (low, middle) if some else (middle, high)
    return high + stored_bytes_of_private_rows(width, private)


class _Sample:
    """Some rows of a table, on which candidates are fitted to see how they would do on all of them.

    Where counts are known, the rows that weigh most are all in it: a few of them often weigh more than all others. The
    others are drawn at random, and each stands for several.
    """

    def __init__(self, table: Tensor, counts: Tensor | None, private_ids: Tensor, tied: bool, seed: int) -> None:
        self.rows = len(table)
        self.seed = seed
        weights = FitSource(table, counts=counts).row_weights(1.0)
        weights = torch.ones(self.rows) if weights is None else weights
        mean, spread = covariance(table, weights)
        self.eigenvalues = torch.linalg.eigvalsh(spread)
        self.source = FitSource(table, counts=counts, private_ids=private_ids, seed=seed, tied=tied)
        self.ids, self.multiplicity = _draw(weights if counts is not None else None, self.rows, seed)
        self.exact = torch.isin(self.ids, private_ids)
        self.table = table[self.ids].float()
        self.counts = None if counts is None else counts[self.ids]
        self.weights = weights[self.ids].double()
        self.energy = (self.table.double() - mean).square().sum(1)
        # Fits weigh by about the root of the counts.
        self.fit_weights = self.weights.sqrt() * self.multiplicity
        self.effective_rows = _effective_rows(weights.double().sqrt())

    @torch.no_grad()
    def predict(self, config: StructureConfig) -> tuple[int, float]:
        """Return the bytes of a fit to the whole table and the relative MSE to expect of it.

        Some methods know. Else: the more rows share the same tables, the worse they are served, so that the error of
        a fit to N rows grows about as e - c / N. Fits to the sample and to half of it give e and c.
        """
        predictor = predictor_of(config)
        if predictor is not None:
            ids, place = self.ids.sort()
            bytes_of_codes, decoded = predictor(config, self.source, ids)
            private = stored_bytes_of_private_rows(self.table.shape[1], config.private_rows)
            return bytes_of_codes + private, self._relative_error(decoded[place.argsort()])
        stored = stored_bytes(config, self.rows, self.table.shape[1])
        size = len(self.table)
        error = self._error(config, size)
        if size == self.rows:
            return stored, error
        grown = max(0.0, error - self._error(config, size // 2))
        half, whole = _effective_rows(self.fit_weights[: size // 2]), _effective_rows(self.fit_weights)
        return stored, error + grown * _share_to_come(1 / half, 1 / whole, 1 / self.effective_rows)

    def _error(self, config: StructureConfig, size: int) -> float:
        """Return the relative MSE of a fit to the first rows of the sample."""
        counts = None if self.counts is None else self.counts[:size]
        source = FitSource(
            self.table[:size],
            counts=counts,
            multiplicity=None if counts is None else self.multiplicity[:size],
            tied=self.source.tied,
            seed=self.seed,
        )
        return self._relative_error(fit_structure(config.for_rows(size), source).dense())

    def _relative_error(self, decoded: Tensor) -> float:
        """Compare decoded rows with the first rows of the sample; those that are kept exactly have no error."""
        size = len(decoded)
        error = (decoded.double() - self.table[:size].double()).square().sum(1).masked_fill(self.exact[:size], 0.0)
        weights = self.weights[:size] * self.multiplicity[:size]
        return float((weights * error).sum() / (weights * self.energy[:size]).sum())


def _draw(weights: Tensor | None, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ids of a sample (n,), so that its first half is a sample too, and how many rows each stands for (n,)."""
    size = min(rows, _SAMPLE_ROWS)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    if weights is None or size == rows:
        return order[:size], torch.full((size,), rows / size)
    heavy = weights[order].argsort(descending=True, stable=True)[: size // 2].sort().values
    others = torch.ones(rows, dtype=torch.bool).index_fill(0, heavy, False).nonzero().squeeze(1)[: size - size // 2]
    places = torch.cat([heavy, others])
    multiplicity = torch.ones(size)
    multiplicity[len(heavy) :] = (rows - len(heavy)) / len(others)
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[places[mixed]], multiplicity[mixed]


def _effective_rows(weights: Tensor) -> float:
    """Return how many rows of equal weight would say as much as rows of these weights (n,)."""
    return float(weights.sum().square() / weights.square().sum())


def _share_to_come(half: float, whole: float, table: float) -> float:
    """Return how much an error still grows from sample to table, for what it grew from half of the sample to all.

    Args:
        half: one over the effective rows of half of the sample.
        whole: the same of the sample.
        table: the same of the table.
    """
    if half <= whole:
        # A few rows that weigh nearly everything are in one half: the halves do not tell how errors grow.
        return 0.0
    return min(1.0, max(0.0, (whole - table) / (half - whole)))
