"""A method by the steps of CONTRIBUTING.md: two registrations, and everything else finds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import hf_compact_embeddings as hce
from hf_compact_embeddings.fitting import FitSource, fit_structure, methods, register_method, registered_methods
from hf_compact_embeddings.fitting.methods import empty_structure
from hf_compact_embeddings.modeling import structure as structures
from hf_compact_embeddings.modeling.options import StructureConfig, StructureLayout, integer
from hf_compact_embeddings.modeling.structure import CompactEmbedding, register_structure

from .tiny_models import tiny_inputs, tiny_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(StructureConfig):
    """Options of the toy method: every row is one of a few, by its id."""

    method: ClassVar[str] = "toy"

    shared: int | None = integer(None, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyLayout(StructureLayout):
    """Its sizes."""

    shared: int = integer(least=1)


class ToyEmbedding(CompactEmbedding):
    """Row i is row i modulo `shared` of a small table."""

    options_class = ToyConfig
    layout_class = ToyLayout

    def allocate(self) -> None:
        self.table = nn.Parameter(torch.empty(self.layout.shared, self.embedding_dim))

    @classmethod
    def layout_for(cls, options, rows: int, width: int, max_bytes: int | None = None) -> ToyLayout:
        most = 8 if max_bytes is None else max_bytes // (width * options.float_bytes)
        return ToyLayout(coded_rows=rows, shared=options.shared or max(1, min(rows, most)))

    def coded_vectors(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids % self.layout.shared, self.table)

    def coded_scores(self, hidden: Tensor) -> Tensor:
        every = torch.arange(self.layout.coded_rows, device=hidden.device) % self.layout.shared
        return (hidden.float() @ self.table.float().T)[:, every]

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=0.02)

    def keep_rows(self, count: int) -> None:
        pass


def fit_toy(options: ToyConfig, source: FitSource) -> ToyEmbedding:
    structure: ToyEmbedding = empty_structure(options, source)
    for row in range(structure.layout.shared):
        structure.table[row] = source.table[row :: structure.layout.shared].float().mean(0)
    return structure


PARTS = {
    "structure": ToyEmbedding,
    "fit": fit_toy,
    "needs": lambda options: frozenset(),
    "candidates": lambda rows, width, max_bytes: [ToyConfig(shared=max(1, max_bytes // (2 * width)))],
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy method, for one test."""
    monkeypatch.setattr(structures, "_STRUCTURES", dict(structures._STRUCTURES))
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    register_structure(ToyEmbedding)
    register_method(**PARTS)
    yield


def test_everything_finds_it(toy: None) -> None:
    dense = tiny_model("bert")
    assert "toy" in hce.methods() and "toy" in [method.name for method in registered_methods()]
    compact = hce.compress(dense, "toy", shared=5)
    assert compact.get_input_embeddings().layout.shared == 5
    assert compact.get_input_embeddings().dense().isfinite().all()
    assert compact(**tiny_inputs(compact)).logits.isfinite().all()
    report = hce.inspect(compact, against=dense)
    # Five rows that are shared, and the padding row, which is kept exactly.
    assert report.method == "toy" and report.collisions == report.rows - 6
    assert "toy" in [plan.config.method for plan in hce.plan(dense, ratio=20)]
    compact.resize_token_embeddings(130)
    assert compact(**tiny_inputs(compact)).logits.shape[-1] == 130


def test_it_keeps_a_budget(toy: None) -> None:
    table = torch.randn(60, 24)
    structure = fit_structure(ToyConfig(ratio=8), FitSource(table, private_ids=torch.tensor([0, 3])))
    assert structure.nbytes <= table.nbytes / 8


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_is_said(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "_STRUCTURES", {**structures._STRUCTURES, "toy": ToyEmbedding})
    with pytest.raises(TypeError, match=f"A method lacks `{part}`, "):
        register_method(**{name: value for name, value in PARTS.items() if name != part})


def test_a_second_method_of_the_name_is_refused(toy: None) -> None:
    with pytest.raises(TypeError, match="'toy' is registered already: take another name"):
        register_method(**PARTS)

    class OtherToy(ToyEmbedding):
        pass

    with pytest.raises(TypeError, match="'toy' is ToyEmbedding already: take another name for OtherToy"):
        register_structure(OtherToy)


def half_a_structure(lacking: str) -> type[CompactEmbedding]:
    """Return the toy structure's class without one of its parts."""
    left_out = (lacking, "__dict__", "__weakref__")
    return type("Half", (CompactEmbedding,), {k: part for k, part in vars(ToyEmbedding).items() if k not in left_out})


@pytest.mark.parametrize("method", ["layout_for", "coded_vectors", "coded_scores", "reset_parameters", "keep_rows"])
def test_a_structure_that_is_not_whole_is_refused(method: str) -> None:
    Half = half_a_structure(method)
    with pytest.raises(TypeError, match=rf"Half lacks `{method}\(\)`"):
        register_method(**PARTS | {"structure": Half})


@pytest.mark.parametrize("attribute", ["options_class", "layout_class"])
def test_a_structure_that_does_not_name_its_dataclasses_is_refused(attribute: str) -> None:
    parts = {
        name: part for name, part in vars(ToyEmbedding).items() if name not in (attribute, "__dict__", "__weakref__")
    }
    Half = type("Half", (CompactEmbedding,), parts)
    with pytest.raises(TypeError, match=f"Half lacks the class attribute `{attribute}`"):
        register_method(**PARTS | {"structure": Half})


def test_a_need_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "_STRUCTURES", {**structures._STRUCTURES, "toy": ToyEmbedding})
    with pytest.raises(TypeError, match=r"needs \['luck'\]; what there is: counts, texts"):
        register_method(**PARTS | {"needs": lambda options: frozenset({"luck"})})
