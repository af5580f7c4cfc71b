"""Subspace embeddings: the paper's counts, dispersed tuples, and codes of any width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation.reading import count_collisions
from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.modeling.codes import packed_width
from hf_compact_embeddings.modeling.errors import CheckpointError
from hf_compact_embeddings.modeling.structure_subspace import SubspaceEmbedding, smallest_base

# The paper's tables: vocabulary, subspaces, floats at a width of 768, and their share that is gone in per cent.
PAPER = {
    "RoBERTa, 2": (50_265, 2, 172_800, 99.55),
    "RoBERTa, 3": (50_265, 3, 28_416, 99.93),
    "XLM-R, 2": (250_002, 2, 384_768, 99.80),
    "XLM-R, 3": (250_002, 3, 48_384, 99.975),
    "BERT, 3": (30_522, 3, 24_576, 99.895),
}


def empty(rows: int, width: int = 24, **options) -> SubspaceEmbedding:
    config = hce.SubspaceConfig(**options)
    with torch.device("meta"):
        return SubspaceEmbedding(config, SubspaceEmbedding.layout_for(config, rows, width), rows, width)


def random(rows: int, width: int = 24, **options) -> SubspaceEmbedding:
    torch.manual_seed(0)
    config = hce.SubspaceConfig(init="random", **options)
    structure = SubspaceEmbedding(config, SubspaceEmbedding.random_layout(config, rows, width), rows, width)
    structure.reset_parameters()
    return structure


@pytest.mark.parametrize(("rows", "subspaces", "floats", "gone"), PAPER.values(), ids=PAPER)
def test_the_papers_parameter_counts(rows: int, subspaces: int, floats: int, gone: float) -> None:
    structure = empty(rows, 768, assignment="dispersed", num_subspaces=subspaces, storage_dtype="float32")
    assert sum(parameter.numel() for parameter in structure.parameters()) == floats
    assert 100 * (1 - floats / (rows * 768)) == pytest.approx(gone, abs=0.005)
    assert structure.nbytes == 4 * floats, "dispersed tuples are not stored"
    assert not list(structure.buffers())


@pytest.mark.parametrize("base", [2, 3, 10, 46, 223, 500])
@pytest.mark.parametrize("digits", [1, 2, 3, 4, 5, 8])
def test_the_base_at_perfect_powers(base: int, digits: int) -> None:
    count = base**digits
    assert smallest_base(count, digits) == base + 1
    assert smallest_base(count - 1, digits) == base
    assert smallest_base(count + 1, digits) == (base + 2 if digits == 1 else base + 1)


@given(count=st.integers(1, 10**9), digits=st.integers(1, 12))
def test_the_base_is_the_smallest_whose_power_exceeds_the_count(count: int, digits: int) -> None:
    base = smallest_base(count, digits)
    assert base**digits > count >= (base - 1) ** digits


@given(rows=st.integers(1, 3_000), subspaces=st.integers(1, 6))
def test_dispersed_tuples_are_unique_digits(rows: int, subspaces: int) -> None:
    structure = empty(rows, assignment="dispersed", num_subspaces=subspaces)
    every = torch.arange(rows)
    tuples = structure.codes_of(every)
    assert tuples.shape == (rows, subspaces)
    assert int(tuples.min()) >= 0 and int(tuples.max()) < structure.entries
    power = torch.tensor([structure.entries**i for i in range(subspaces)])
    assert torch.equal((tuples * power).sum(-1), every), "the digits of the id, and so all different"


@given(
    rows=st.integers(1, 50),
    subspaces=st.integers(1, 24),
    entries=st.sampled_from([1, 2, 3, 16, 17, 256, 257, 1_000]),
    seed=st.integers(0, 1_000),
)
def test_rows_are_the_entries_that_their_codes_name(rows: int, subspaces: int, entries: int, seed: int) -> None:
    structure = random(rows, num_subspaces=subspaces, codebook_size=entries)
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randn(entries, 24, generator=generator)
    tuples = torch.randint(entries, (rows, subspaces), generator=generator)
    structure.set_tables(tables, tuples)
    assert torch.equal(structure.codes_of(torch.arange(rows)), tuples)
    width = 24 // subspaces
    edges = [*range(0, width * subspaces, width), 24]
    slices = [tables[tuples[:, i], edges[i] : edges[i + 1]] for i in range(subspaces)]
    assert torch.equal(structure.dense(), torch.cat(slices, dim=1))


@pytest.mark.parametrize(
    ("entries", "bits"),
    [(1, 1), (2, 1), (5, 3), (16, 4), (100, 7), (256, 8), (257, 9), (4_000, 12), (65_536, 16), (70_000, 17)],
)
def test_codes_take_as_few_bits_as_they_can(entries: int, bits: int) -> None:
    structure = random(50, num_subspaces=3, codebook_size=entries)
    assert structure.code_bits == bits
    assert structure.codes.shape == (50, packed_width(3, bits))
    assert structure.nbytes == 50 * packed_width(3, bits) + 2 * entries * 24
    hidden = torch.randn(4, 24)
    torch.testing.assert_close(structure.project(hidden), hidden @ structure.dense().T, atol=1e-5, rtol=1e-4)
    assert int(structure.codes_of(torch.arange(50)).max()) < entries


@pytest.mark.parametrize(("width", "subspaces"), [(24, 5), (24, 7), (24, 23), (16, 3), (7, 2), (24, 1), (24, 24)])
def test_the_last_subspace_takes_the_remainder(width: int, subspaces: int) -> None:
    structure = random(40, width, num_subspaces=subspaces, codebook_size=6)
    floats = {name: tuple(parameter.shape) for name, parameter in structure.named_parameters()}
    rest = width % subspaces
    assert sum(parameter.numel() for parameter in structure.parameters()) == 6 * width
    assert floats["codebooks"] == (subspaces - bool(rest), 6, width // subspaces)
    assert floats.get("last_codebook") == ((6, width // subspaces + rest) if rest else None)
    assert structure.dense().shape == (40, width)


def test_the_default_sizes() -> None:
    assert empty(1_000, num_subspaces=8).layout.codebook_size == 256
    assert empty(1_000, num_subspaces=3, assignment="dispersed").layout.codebook_size == 11
    assert empty(30_522, 384, num_subspaces=48).nbytes == 30_522 * 48 + 256 * 384 * 2


def test_random_tables_are_uniform_as_the_papers() -> None:
    structure = random(5_000, 64, num_subspaces=4)
    tables = structure.codebooks.detach()
    assert -0.1 <= float(tables.min()) < -0.099
    assert 0.099 < float(tables.max()) <= 0.1
    assert abs(float(tables.mean())) < 0.002
    counts = torch.bincount(structure.codes_of(torch.arange(5_000)).flatten(), minlength=256)
    assert counts.min() > 0, "all entries are used"


def test_collisions_are_counted_exactly() -> None:
    structure = random(6, num_subspaces=2, codebook_size=4)
    tuples = torch.tensor([[0, 1], [1, 0], [0, 1], [0, 1], [3, 3], [1, 0]])
    structure.set_tables(torch.randn(4, 24), tuples)
    assert count_collisions(structure) == 3
    assert count_collisions(random(60, num_subspaces=3, assignment="dispersed")) == 0


def test_codes_beyond_the_tables_are_found() -> None:
    structure = random(50, num_subspaces=4, codebook_size=11)
    structure.check_values()
    structure.codes[17] = 0xFF
    with pytest.raises(CheckpointError, match="`codes` holds 15, but `codebook_size` is 11"):
        structure.check_values()


@pytest.mark.parametrize("storage_dtype", ["float32", "float16", "bfloat16"])
def test_one_entry_for_all_is_the_mean(storage_dtype: str) -> None:
    table = torch.randn(30, 24)
    config = hce.SubspaceConfig(num_subspaces=2, codebook_size=1, storage_dtype=storage_dtype)
    structure = fit_structure(config, FitSource(table))
    dense = structure.dense()
    assert torch.equal(dense, dense[:1].expand(30, -1))
    torch.testing.assert_close(dense[0], table.mean(0), atol=5e-3, rtol=1e-2)
    assert count_collisions(structure) == 29
