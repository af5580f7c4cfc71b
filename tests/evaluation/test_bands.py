"""inspect(): errors of frequent tokens are told from those of rare ones."""

from __future__ import annotations

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation import bands, reading
from hf_compact_embeddings.evaluation.bands import Band, BandErrors
from hf_compact_embeddings.evaluation.reading import read_rows

from ..tiny_models import tiny_model
from ..tools import tiny_tokenizer


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_ENDS", (3, 20, 10**9))
    monkeypatch.setattr(reading, "_ROWS_PER_CHUNK", 7)


def frequency_bands(structure: hce.CompactEmbedding, table: torch.Tensor, counts: torch.Tensor) -> list[Band]:
    errors = BandErrors(table, counts)
    read_rows(structure, [errors])
    return errors.bands()


def test_shares_add_up_and_are_those_of_the_rows() -> None:
    dense = tiny_model("bert")
    compact = hce.compress(dense, "subspace", num_subspaces=2, codebook_size=8)
    table = dense.get_input_embeddings().weight.detach()
    counts = torch.rand(len(table), generator=torch.Generator().manual_seed(0)) ** 4
    found = frequency_bands(compact.compact_embedding, table, counts)
    assert [(band.first, band.last) for band in found] == [(1, 3), (4, 20), (21, len(table))]
    assert sum(band.read for band in found) == pytest.approx(1) == sum(band.felt for band in found)
    decoded = compact.compact_embedding.dense().detach()
    error = (decoded - table).double().square().sum(1)
    most = counts.argsort(descending=True)[:3]
    assert found[0].read == pytest.approx(float(counts[most].sum() / counts.sum()), rel=1e-5)
    assert found[0].felt == pytest.approx(float((counts * error)[most].sum() / (counts * error).sum()), rel=1e-5)
    energy = (table - table.mean(0)).double().square().sum(1)
    assert found[0].relative_mse == pytest.approx(float(error[most].sum() / energy[most].sum()), rel=1e-5)
    cosines = torch.cosine_similarity(decoded[most], table[most])
    assert found[0].mean_cosine == pytest.approx(float(cosines.mean()), rel=1e-5)


def test_a_tokenizer_tells_them() -> None:
    dense = tiny_model("bert")
    compact = hce.compress(dense, "subspace", num_subspaces=2, codebook_size=8)
    assert hce.inspect(compact, against=dense).bands == hce.inspect(compact, tokenizer=tiny_tokenizer()).bands == []
    report = hce.inspect(compact, against=dense, tokenizer=tiny_tokenizer())
    assert len(report.bands) == 3 and report.to_dict()["bands"][0]["first"] == 1
    assert "tokens 1 to 3" in str(report) and "of the error met" in str(report)


def test_a_table_without_error_has_none_anywhere() -> None:
    dense = tiny_model("bert")
    table = dense.get_input_embeddings().weight.detach()
    with torch.no_grad():
        table.copy_(table.half())
    counts = torch.ones(len(table))
    kept = {"private_rows": len(table), "token_counts": counts}
    compact = hce.compress(dense, "subspace", num_subspaces=1, codebook_size=4, **kept)
    found = frequency_bands(compact.compact_embedding, table, 0 * counts)
    assert all(band.felt == band.read == band.relative_mse == 0 for band in found)
