"""inspect(): every figure of the report equals a direct computation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation import reading
from hf_compact_embeddings.kernels.memory import resident_bytes
from hf_compact_embeddings.modeling.errors import CompactConfigError

from ..cases import Case, compress_tiny, for_all, for_each_method
from ..tiny_models import VOCABULARY, tiny_model
from ..tools import tiny_texts, tiny_tokenizer

FIGURES = {
    "method",
    "dense_bytes",
    "compact_bytes",
    "memory_bytes",
    "ratio",
    "byte_reduction",
    "parameter_reduction",
    "bits_per_weight",
    "relative_mse",
    "mean_cosine",
    "shannon_bound",
    "gap_db",
    "collisions",
}


@for_all("project", "dense")
@pytest.mark.parametrize("architecture", ["bert", "electra", "llama-untied", "t5"])
def test_figures_equal_a_direct_computation(architecture: str, case: Case) -> None:
    dense, compact = compress_tiny(architecture, case)
    report = hce.inspect(compact, against=dense)
    structure = compact.get_input_embeddings()
    table = dense.get_input_embeddings().weight.detach().double()
    decoded = structure.dense().detach().double()
    rows, width = table.shape
    floats = sum(parameter.numel() for parameter in structure.parameters())
    assert (report.method, report.rows, report.width) == (case.method, rows, width)
    assert {compact.input_table_path: report.options} == compact.config.compact_embeddings
    assert report.dense_bytes == rows * width * 4
    assert report.compact_bytes == structure.nbytes
    assert report.memory_bytes == resident_bytes(structure) > 0
    assert report.ratio == pytest.approx(report.dense_bytes / report.compact_bytes)
    assert report.byte_reduction == pytest.approx(100 - 100 * report.compact_bytes / report.dense_bytes)
    assert report.parameter_reduction == pytest.approx(100 - 100 * floats / table.numel())
    assert report.bits_per_weight == pytest.approx(8 * report.compact_bytes / table.numel())
    error = (decoded - table).square().sum() / (table - table.mean(0)).square().sum()
    assert report.relative_mse == pytest.approx(float(error), rel=1e-6)
    cosine = torch.nn.functional.cosine_similarity(decoded, table, dim=1).mean()
    assert report.mean_cosine == pytest.approx(float(cosine), rel=1e-6)
    assert report.collisions == rows - len(torch.unique(decoded, dim=0))
    assert report.private_rows == len(structure.private_id_list())
    assert 0 < report.shannon_bound < 1
    assert math.isfinite(report.gap_db)
    assert report.gap_db == pytest.approx(10 * math.log10(report.relative_mse / report.shannon_bound))


def test_the_bound_is_reverse_water_filling() -> None:
    dense = tiny_model("bert")
    report = hce.inspect(hce.compress(dense, hce.SubspaceConfig(num_subspaces=2, codebook_size=8)), against=dense)
    variances = torch.linalg.eigvalsh(torch.cov(dense.get_input_embeddings().weight.detach().double().T, correction=0))
    level = report.shannon_bound * float(variances.sum())
    # The level θ whose distortion is the bound must have the report's rate.
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if float(variances.clamp(max=theta).sum()) < level else (low, theta)
    rate = float((variances / theta).log2().clamp(min=0).sum()) / 2 / len(variances)
    assert rate == pytest.approx(report.bits_per_weight, rel=1e-4)


@for_each_method("project")
def test_the_report_is_plain_json_and_a_table(case: Case) -> None:
    dense, compact = compress_tiny("bert", case)
    full = hce.inspect(compact, against=dense)
    values = full.to_dict()
    assert values.keys() >= FIGURES
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    text = str(full)
    assert case.method in text and f"{full.compact_bytes:,}" in text and f"{full.ratio:.1f}x" in text
    assert "Shannon" in text and "cosine" in text


@for_each_method("project")
def test_without_the_dense_model_there_is_no_fidelity(case: Case) -> None:
    dense, compact = compress_tiny("bert", case)
    alone, full = hce.inspect(compact), hce.inspect(compact, against=dense)
    assert (alone.relative_mse, alone.mean_cosine, alone.shannon_bound, alone.gap_db) == (None,) * 4
    assert (alone.dense_bytes, alone.compact_bytes, alone.ratio) == (full.dense_bytes, full.compact_bytes, full.ratio)
    assert "Shannon" not in str(alone)


@for_each_method("project")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dense_bytes_are_counted_in_the_sources_dtype(case: Case, dtype: torch.dtype) -> None:
    dense = tiny_model("bert").to(dtype)
    report = hce.inspect(hce.compress(dense, case.config()), against=dense)
    assert report.dense_bytes == VOCABULARY * 24 * 2
    assert report.compact_bytes == hce.inspect(hce.compress(dense.float(), case.config())).compact_bytes
    assert math.isfinite(report.relative_mse)


@for_each_method("project", "resize")
def test_added_rows_are_counted(case: Case) -> None:
    _, compact = compress_tiny("bert", case)
    before = hce.inspect(compact)
    compact.resize_token_embeddings(130)
    after = hce.inspect(compact)
    assert after.private_rows == before.private_rows + 10
    size = compact.get_input_embeddings().stored_dtype("private_vectors").itemsize
    assert after.compact_bytes == before.compact_bytes + 10 * (24 * size + 4)


@for_each_method()
def test_the_code_beside_the_table_and_the_evidence(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    report = hce.inspect(compact)
    compact.save_pretrained(tmp_path)
    files = list(tmp_path.glob("*.py"))
    assert (report.code_files, report.code_bytes) == (len(files), sum(file.stat().st_size for file in files))
    assert f"{report.code_bytes:,} bytes in {report.code_files} files" in str(report)
    assert report.evidence is not None and report.evidence in str(report)


def test_collisions_are_those_of_the_codes() -> None:
    dense = tiny_model("bert")
    one = hce.inspect(hce.compress(dense, hce.SubspaceConfig(num_subspaces=1, codebook_size=4)))
    # Four entries, and the padding row, which is kept exactly.
    assert one.collisions == VOCABULARY - 5
    unique = hce.SubspaceConfig(num_subspaces=2, codebook_size=12, unique_codes=True)
    assert hce.inspect(hce.compress(dense, unique)).collisions == 0


@for_each_method("project")
def test_a_perfect_table(case: Case) -> None:
    dense = tiny_model("bert")
    options = case.without_budget() | {"storage_dtype": "float32", "private_rows": VOCABULARY}
    report = hce.inspect(
        hce.compress(dense, case.method, token_counts=torch.ones(VOCABULARY), **options), against=dense
    )
    assert report.relative_mse == 0.0
    assert report.mean_cosine == pytest.approx(1.0)
    assert report.ratio < 1 and report.byte_reduction < 0


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_model("bert")
    compact = hce.compress(dense, hce.SubspaceConfig(num_subspaces=4, codebook_size=16))
    whole = hce.inspect(compact, against=dense)
    monkeypatch.setattr(reading, "_ROWS_PER_CHUNK", 7)
    chunked = hce.inspect(compact, against=dense)
    for figure in ("relative_mse", "mean_cosine", "shannon_bound", "gap_db"):
        assert getattr(chunked, figure) == pytest.approx(getattr(whole, figure))


@for_each_method("project")
def test_a_model_of_another_size(case: Case) -> None:
    _, compact = compress_tiny("bert", case)
    with pytest.raises(CompactConfigError, match=r"`against` has a table \(121, 24\).*\(120, 24\)"):
        hce.inspect(compact, against=tiny_model("bert", vocab_size=121))


@pytest.mark.parametrize("tables", ["head", "all"])
def test_each_table_is_reported(tables: str) -> None:
    dense = tiny_model("llama-untied")
    with torch.no_grad():
        dense.lm_head.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    compact = hce.compress(
        dense, "scalar", bits=4, private_rows=3, token_counts=torch.arange(VOCABULARY), tables=tables
    )
    report = hce.inspect(compact, against=dense)
    assert [table.path for table in report.tables] == list(compact.compact_tables)
    natives = {"input": dense.get_input_embeddings().weight, "head": dense.lm_head.weight}
    for table, structure in zip(report.tables, compact.compact_tables.values(), strict=True):
        native, decoded = natives[table.table].detach().double(), structure.dense().detach().double()
        error = (decoded - native).square().sum() / (native - native.mean(0)).square().sum()
        assert table.relative_mse == pytest.approx(float(error), rel=1e-6) and 0 < table.relative_mse < 0.1
        assert (table.compact_bytes, table.private_rows) == (structure.nbytes, 3)
        assert table.dense_bytes == native.numel() * 4
    assert report.dense_bytes == sum(table.dense_bytes for table in report.tables)
    assert report.compact_bytes == sum(structure.nbytes for structure in compact.compact_tables.values())
    assert report.bits_per_weight == pytest.approx(8 * report.compact_bytes / (len(report.tables) * VOCABULARY * 24))
    assert report.relative_mse == report.tables[0].relative_mse
    assert set(report.other_tables) == ({"model.embed_tokens.weight"} if tables == "head" else set())
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    text = str(report)
    for table in report.tables if tables == "all" else ():
        line = f"120 x 24, scalar: {table.dense_bytes:,} -> {table.compact_bytes:,} bytes"
        assert f"{table.table} table".ljust(24) + line in text


@pytest.mark.parametrize("tables", ["head", "all"])
def test_the_size_counts_what_a_file_holds_of_both(tables: str, tmp_path: Path) -> None:
    compact = hce.compress(tiny_model("llama-untied"), "subspace", num_subspaces=4, codebook_size=16, tables=tables)
    compact.save_pretrained(tmp_path)
    size = hce.inspect(compact).model_bytes
    assert 0 < (tmp_path / "model.safetensors").stat().st_size - size < 8192


def test_an_original_without_that_head() -> None:
    compact = hce.compress(tiny_model("llama-untied"), "scalar", tables="all")
    with pytest.raises(CompactConfigError, match="`against` has no output head, .* its `lm_head.table`"):
        hce.inspect(compact, against=tiny_model("llama-untied", "LlamaModel"))


def test_both_tables_are_evaluated() -> None:
    dense = tiny_model("llama-untied")
    compact = hce.compress(dense, "scalar", bits=4, tables="all")
    found, report = hce.evaluate(compact, task="fidelity", against=dense).metrics, hce.inspect(compact, against=dense)
    assert found["head_relative_mse"].compact == (report.tables[1].relative_mse,)
    assert found["relative_mse"].compact == (report.tables[0].relative_mse,)
    data = [{"text": text} for text in tiny_texts(8)]
    measured = hce.evaluate(compact, task="perplexity", against=dense, data=data, tokenizer=tiny_tokenizer())
    assert all(math.isfinite(value) for value in measured.metrics["perplexity"].compact)
