"""The one table of what the contract tests run with: for each method, a few tiny configurations."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from transformers import PreTrainedModel

import hf_compact_embeddings as hce
from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.fitting.methods import make_config
from hf_compact_embeddings.modeling.options import BUDGETS, StructureConfig
from hf_compact_embeddings.modeling.structure import CompactEmbedding

from .tiny_models import ARCHITECTURES, tiny_model

# What a structure may declare that it cannot do; it then has to raise a CompactEmbeddingsError.
ABILITIES = ("project", "dense", "resize")
# Every method runs on these, and all its cases on the first; on other architectures one case has to do.
MAIN_ARCHITECTURES = ("bert", "llama", "t5", "gemma3_text", "gpt2")


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration that fits the tiny models (120 rows, width 24 or 16).

    Attributes:
        method: the method's name.
        name: what tells this case from the method's others.
        options: of the method's configuration.
        lacks: the abilities that the structure does not have, out of ABILITIES.
    """

    method: str
    name: str
    options: Mapping[str, Any]
    lacks: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.method}-{self.name}"

    def without_budget(self) -> dict[str, Any]:
        """Return the options for a table whose rows are all kept exactly: they take more than any budget."""
        options = {name: value for name, value in self.options.items() if name not in BUDGETS}
        # The bit a value that there is then is too little for the means of several tiers of a tiny table.
        return options | ({"tiers": 1} if hasattr(self.config(), "tiers") else {})

    def config(self, **changes: Any) -> StructureConfig:
        return make_config(self.method, **{**self.options, **changes})


def _case(method: str, name: str, lacks: Sequence[str] = (), **options: Any) -> Case:
    return Case(method, name, options, frozenset(lacks))


_CASES = (
    _case("subspace", "cluster", num_subspaces=4, codebook_size=16),
    # Neither width nor codes fall on a boundary: 24 = 4 · 4 + 8, and codes of 4 bits with 11 of 16 used.
    _case("subspace", "uneven", num_subspaces=5, codebook_size=11, storage_dtype="bfloat16"),
    _case("subspace", "dispersed", num_subspaces=3, assignment="dispersed", storage_dtype="float32"),
    _case("rotated", "tiers", bits_per_weight=4.0),
    _case("rotated", "clusters", bits_per_weight=9.0, clusters=13, storage_dtype="float32"),
    _case("rotated", "plain-basis", bits_per_weight=15.0, tiers=1, basis="float16", metric="plain"),
    _case("blocks", "tiers", bits_per_weight=3.0, codebook_size=4),
    _case("blocks", "plain", bits_per_weight=16.0, tiers=1, codebook_size=11, basis="float16", codebooks="float16"),
    _case("scalar", "int8"),
    _case("scalar", "int4", bits=4, group_size=8),
    _case("factorized", "svd", rank=6, fit="svd"),
    _case("factorized", "autoencoder", parameter_ratio=2.5, restore_norm=True, hidden_width=3),
    _case("hash", "proj", source="vocabulary"),
    _case("hash", "add", source="vocabulary", variant="add", storage_dtype="bfloat16"),
    _case("hash", "pool", source="vocabulary", variant="pool", hash_seed=3),
    _case("hash", "emb", source="vocabulary", variant="emb", buckets=103, storage_dtype="float32"),
    _case("factorized", "int8", rank=5, fit="svd", int8_codes=True, storage_dtype="bfloat16"),
)
TINY_CASES = {method: [case for case in _CASES if case.method == method] for method in {c.method for c in _CASES}}


def all_cases(*abilities: str) -> list[Case]:
    """Return the cases of all registered methods that have the abilities."""
    cases = [case for method in hce.methods() for case in TINY_CASES.get(method, [])]
    return [case for case in cases if not case.lacks & set(abilities)]


def first_cases(*abilities: str) -> list[Case]:
    """Return one case of each method."""
    firsts: dict[str, Case] = {}
    for case in all_cases(*abilities):
        firsts.setdefault(case.method, case)
    return list(firsts.values())


def for_all(*abilities: str) -> pytest.MarkDecorator:
    """Run a test with the `case` of every structure that has the abilities."""
    return pytest.mark.parametrize("case", all_cases(*abilities), ids=str)


def for_each_method(*abilities: str) -> pytest.MarkDecorator:
    """Run a test with one `case` of each method that has the abilities."""
    return pytest.mark.parametrize("case", first_cases(*abilities), ids=str)


def for_pairs(*abilities: str, architectures: Sequence[str] = tuple(ARCHITECTURES)) -> pytest.MarkDecorator:
    """Run a test with pairs (`architecture`, `case`) that cover every architecture and every case."""
    cases, firsts = all_cases(*abilities), first_cases(*abilities)
    main = [name for name in architectures if name in MAIN_ARCHITECTURES]
    pairs = [(name, case) for name in main for case in (cases if name == main[0] else firsts)]
    pairs += [(name, case) for name in architectures if name not in main for case in cases[:1]]
    parameters: list[ParameterSet] = [pytest.param(*pair, id=f"{pair[0]}-{pair[1]}") for pair in pairs]
    return pytest.mark.parametrize(("architecture", "case"), parameters)


# Fits are made once: what differs from test to test is what is done with them.
_COMPRESSED: dict[tuple[str | None, ...], PreTrainedModel] = {}
_FITTED: dict[tuple[str, str], CompactEmbedding] = {}


def compress_tiny(
    architecture: str, case: Case, head: str | None = None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return a tiny model and its compact copy; further options go to compress()."""
    model = tiny_model(architecture, head)
    key = (architecture, str(case), head, repr(options))
    if key not in _COMPRESSED:
        _COMPRESSED[key] = hce.compress(model, case.method, **{**case.options, **options})
    return model, copy.deepcopy(_COMPRESSED[key])


def build_structure(
    case: Case,
    rows: int = 60,
    width: int = 24,
    private: Sequence[int] = (),
    padding_idx: int | None = None,
    mask_padding: bool = False,
    added: int = 0,
    scale: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> CompactEmbedding:
    """Fit a structure to a random table, with some rows stored exactly and some added afterwards."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(rows, width, generator=generator)
    config = case.config(**options)
    ids = torch.tensor(private, dtype=torch.int64)
    source = FitSource(table, private_ids=ids, padding_idx=padding_idx, scale=scale, seed=seed)
    key = (str(case), repr((rows, width, private, padding_idx, mask_padding, scale, seed, options)))
    if key not in _FITTED:
        _FITTED[key] = fit_structure(config, source)
    structure = copy.deepcopy(_FITTED[key])
    structure.layout = dataclasses.replace(structure.layout, mask_padding=mask_padding)
    return structure.resized(rows + added, torch.randn(added, width, generator=generator)) if added else structure


# What a table may have beside its codes, alone and all together.
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "private": {"private": (0, 7, 59)},
    "masked": {"padding_idx": 3, "mask_padding": True},
    "added": {"added": 5},
    "everything": {"private": (0, 7, 59), "padding_idx": 3, "mask_padding": True, "added": 5, "scale": 2.5},
}


def for_all_with_extras(*abilities: str) -> pytest.MarkDecorator:
    """Run a test with every `case` plain and with all `extras`, and with each of the extras on each method."""
    firsts = first_cases(*abilities)
    parameters = [
        pytest.param(case, extras, id=f"{case}-{name}")
        for case in all_cases(*abilities)
        for name, extras in EXTRAS.items()
        if case in firsts or name in ("plain", "everything")
    ]
    return pytest.mark.parametrize(("case", "extras"), parameters)
