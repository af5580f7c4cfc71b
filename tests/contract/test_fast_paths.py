"""Compiled loops that read codes give what the plain path gives, and follow every change of a table."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_compact_embeddings.fitting import FitSource, fit_structure
from hf_compact_embeddings.kernels import fast_path, materialize, rows
from hf_compact_embeddings.kernels.memory import resident_bytes
from hf_compact_embeddings.modeling.options import StructureConfig
from hf_compact_embeddings.modeling.structure import CompactEmbedding, structure_class_of
from hf_compact_embeddings.modeling.structure_scalar import ScalarConfig

from ..cases import EXTRAS, Case, all_cases, build_structure, for_all_with_extras
from ..tools import LargestTensor, reading_plainly

numba_errors = pytest.importorskip("numba.core.errors")
FOLDER = Path(fast_path.__file__).parent
CASES = [case for case in all_cases("project") if (FOLDER / f"read_{case.method}.py").exists()]
for_fast = pytest.mark.parametrize("case", CASES, ids=str)
IDS = torch.tensor([[0, 3, 7, 31], [59, 59, 1, 3]])


@pytest.fixture(autouse=True)
def _needs_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    if not rows.numba_works():
        pytest.skip("numba is not installed")
    # The tables here are small.
    monkeypatch.setattr("hf_compact_embeddings.kernels.read_scalar._LEAST_VALUES", 0)


@contextmanager
def counted() -> Iterator[list[bool]]:
    """Gather for each call whether compiled loops answered it."""
    answered: list[bool] = []

    def ask(table: CompactEmbedding, inputs: Tensor, project: bool) -> Tensor | None:
        found = fast_path.read_codes(table, inputs, project)
        answered.append(found is not None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompactEmbedding, "fast_path", ask)
        yield answered


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    """1e-5 of the largest number in float32; in half precision, two of its last bits."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    if wanted.numel():
        most = wanted.float().abs().max() * max(1e-5, 2 * torch.finfo(wanted.dtype).eps)
        assert (found.float() - wanted.float()).abs().max() <= most


@torch.no_grad()
def assert_reads_as_plainly(table: CompactEmbedding) -> None:
    ids = torch.arange(table.num_embeddings)
    hidden = [torch.randn(count, table.embedding_dim).to(table.dtype) for count in (1, 2, 8, 19)]
    with reading_plainly():
        wanted = [table(ids), *(table(queries, project=True) for queries in hidden)]
    with counted() as answered:
        found = [table(ids), *(table(queries, project=True) for queries in hidden)]
    assert answered == [True] * 5
    for one, other in zip(found, wanted, strict=True):
        assert_equal(one, other)


@for_all_with_extras("project", "dense")
def test_rows_and_scores(case: Case, extras: dict) -> None:
    if case not in CASES:
        pytest.skip("has no compiled loops")
    table = build_structure(case, **extras)
    assert_reads_as_plainly(table)
    with torch.no_grad():
        every = table(torch.arange(table.num_embeddings))
        for ids in (IDS, IDS.T, IDS[0, 0], IDS[:, :0], IDS[:, ::2], IDS.int(), IDS.short()):
            assert_equal(table(ids), every[ids.long()])
        for shape in ((0, 24), (24,), (2, 3, 24)):
            hidden = torch.randn(shape)
            flat = table(hidden.view(-1, 24), project=True)
            assert_equal(table(hidden, project=True), flat.view(*shape[:-1], table.num_embeddings))
        wide = torch.randn(3, 48)[:, ::2]
        assert_equal(table(wide, project=True), table(wide.contiguous(), project=True))
        for wrong in (-1, table.num_embeddings):
            with pytest.raises(IndexError, match="has no row"):
                table(torch.tensor([wrong]))


def drawn(config: StructureConfig, count: int, width: int) -> CompactEmbedding:
    structure_class = structure_class_of(config.method)
    table = structure_class(config, structure_class.random_layout(config, count, width), count, width)
    table.reset_parameters()
    return table


def config_for(case: Case, width: int, **changes: Any) -> StructureConfig:
    """Groups that do not divide a width become whole rows."""
    size = case.options.get("group_size")
    return case.config(**changes, **({"group_size": None} if size and width % size else {}))


def fitted_to_uneven_rows(case: Case, count: int, width: int) -> CompactEmbedding:
    """Rows and axes of very different lengths, so that there are several tiers, and some without bits."""
    table = torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    table = table * torch.logspace(-2, 1, count).unsqueeze(1) * torch.logspace(0, -1, width)
    return fit_structure(config_for(case, width), FitSource(table[torch.randperm(count)]))


@for_fast
@pytest.mark.parametrize("shape", [(700, 40), (257, 33), (40, 24)], ids=str)
def test_tiers_and_odd_sizes(case: Case, shape: tuple[int, int]) -> None:
    table = fitted_to_uneven_rows(case, *shape)
    if case.name in ("tiers", "clusters") and shape[0] > 500:
        assert len(table.layout.tier_rows) > 1
    assert_reads_as_plainly(table)
    # More ids than rows are decoded at a time, and more rows than are sorted at a time.
    ids = torch.randint(shape[0], (1500,))
    with torch.no_grad():
        assert_equal(table(ids), table(torch.arange(shape[0]))[ids])


@for_fast
def test_more_rows_than_are_read_at_a_time(case: Case) -> None:
    count, width = 9_001, 17
    budget = {"bits_per_weight": 2.0} if "bits_per_weight" in case.options else {}
    assert_reads_as_plainly(drawn(config_for(case, width, init="random", **budget), count, width))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(("width", "group"), [(128, 16), (128, 32), (96, 48), (120, 12), (128, None), (77, None)])
def test_scales_of_groups(bits: int, width: int, group: int | None) -> None:
    """Sixteen bytes are read at a time: groups have more, or fewer, or end among them."""
    table = drawn(ScalarConfig(bits=bits, group_size=group, init="random"), 70, width)
    with torch.no_grad():
        table.scales.uniform_(0.5, 1.5)
    assert_reads_as_plainly(table)
    assert_reads_as_plainly(table.half())


def test_groups_that_share_bytes_are_read_plainly() -> None:
    table = drawn(ScalarConfig(bits=4, group_size=3, init="random"), 20, 24)
    with torch.no_grad(), counted() as answered:
        table(torch.tensor([3, 19])), table(torch.randn(1, 24), project=True)
    assert answered == [False, False]


@for_fast
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    table = build_structure(case, **EXTRAS["everything"]).to(dtype)
    exact = copy.deepcopy(table).float()
    ids, hidden = torch.arange(table.num_embeddings), torch.randn(5, 24).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), counted() as answered:
        found = table(ids, scale=1.0), table(hidden, project=True)
    assert answered == [True, True]
    with torch.no_grad(), reading_plainly():
        wanted = exact(ids, scale=1.0).to(dtype), exact(hidden.float(), project=True).to(dtype)
    for one, other in zip(found, wanted, strict=True):
        assert_equal(one, other)


@for_fast
def test_changes_are_seen(case: Case) -> None:
    table = build_structure(case, **EXTRAS["everything"])
    assert_reads_as_plainly(table)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    with counted() as answered:
        (table(IDS).square().sum() + table(torch.randn(3, 24), project=True).square().mean()).backward()
    assert answered == [False, False], "training reads the plain path"
    before = table(IDS).detach()
    optimizer.step()
    assert not torch.equal(table(IDS), before)
    assert_reads_as_plainly(table)
    assert_reads_as_plainly(table.resized(70))
    assert_reads_as_plainly(table.resized(50))
    other = copy.deepcopy(table)
    with torch.no_grad():
        other.codes.random_(0, 2) if getattr(other, "codes", None) is not None else other.codebooks.normal_()
    table.load_state_dict(other.state_dict())
    assert_reads_as_plainly(table)
    with torch.no_grad(), reading_plainly():
        wanted = other(IDS[:1])
    with torch.no_grad():
        assert_equal(table(IDS[:1]), wanted)
    for copied in (copy.deepcopy(table), pickle.loads(pickle.dumps(table)), table._apply(torch.clone)):
        assert_reads_as_plainly(copied)
    table.to("meta")
    table.to_empty(device="cpu").load_state_dict(other.state_dict())
    assert_reads_as_plainly(table)
    with torch.inference_mode():
        assert_reads_as_plainly(build_structure(case))


@for_fast
def test_what_is_read_once_is_not_stored(case: Case) -> None:
    table = build_structure(case)
    size, state = len(pickle.dumps(copy.deepcopy(table))), list(table.state_dict())
    assert_reads_as_plainly(table)
    assert list(table.state_dict()) == state
    # A flag that says that something was read is all that may be added.
    assert len(pickle.dumps(table)) < size + 64


@for_fast
def test_memory_is_counted_and_small(case: Case) -> None:
    """What is read once takes at most four bytes a row beside the codes, six with clusters, and the axes."""
    options = {"bits_per_weight": 1.0} if "bits_per_weight" in case.options else {}
    count, width = 20_000, 24
    table = drawn(case.config(init="random", **options), count, width)
    table.requires_grad_(False)
    stored = sum(tensor.nbytes for tensor in table.state_dict().values())
    found = resident_bytes(table)
    tiers, clusters = hasattr(table.layout, "tier_rows"), getattr(table.layout, "clusters", 0)
    least = count * (4 * tiers + 2 * (clusters > 0))
    # Axes and rings, and centroids in float32; values of a window of 16 bits.
    most = 8 * width * width + 4 * width * clusters + (1 << 18)
    assert stored + least <= found <= stored + least + tiers * most
    table(torch.randn(1, width), project=True)
    assert resident_bytes(table) == found
    assert resident_bytes(materialize(table, "float16")) == found + count * (2 * width + 4)


@for_fast
def test_gradients_and_traces_take_the_plain_path(case: Case) -> None:
    table = build_structure(case)
    table.requires_grad_(False)
    hidden = torch.randn(3, 24, requires_grad=True)
    with counted() as answered:
        table(hidden, project=True).square().sum().backward()
        assert answered == [False]
        table(hidden.detach(), project=True)
        assert answered == [False, True], "nothing is trained"
        with torch.no_grad():
            assert_equal(torch.vmap(lambda one: table(one, project=True))(hidden), table(hidden, project=True))
    with pytest.MonkeyPatch.context() as patch, counted() as answered:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        table(IDS)
    assert answered == [False]
    with torch.no_grad(), counted() as answered:
        copy.deepcopy(table).double()(IDS)
    assert answered == [False], "float32 loops have not the precision"


@for_fast
def test_without_numba_the_plain_path_answers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    table = build_structure(case)
    with reading_plainly(), torch.no_grad():
        wanted = table(IDS)
    monkeypatch.setattr(fast_path, "numba_works", lambda: False)
    fast_path._loops_for.cache_clear()
    try:
        with counted() as answered, torch.no_grad():
            assert torch.equal(table(IDS), wanted)
        assert answered == [False]
    finally:
        fast_path._loops_for.cache_clear()


@for_fast
def test_loops_that_do_not_compile_are_done_without(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = build_structure(case)
    module, tries = fast_path._loops_for(type(table)), []

    def fail(*inputs: object) -> None:
        tries.append(inputs)
        raise numba_errors.NumbaError("no such processor")

    with reading_plainly(), torch.no_grad():
        wanted = table(IDS)
    monkeypatch.setattr(module, "look_up", fail)
    monkeypatch.setattr(fast_path, "_broken", set())
    monkeypatch.setattr(logging.getLogger("hf_compact_embeddings"), "propagate", True)
    with torch.no_grad():
        assert torch.equal(table(IDS), wanted) and torch.equal(table(IDS), wanted)
    assert len(tries) == 1
    assert [record.getMessage() for record in caplog.records if "no such processor" in record.getMessage()]


@for_fast
def test_threads(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    table = build_structure(case)
    hidden, before = torch.randn(8, 24), torch.get_num_threads()
    with torch.no_grad():
        wanted = table(hidden, project=True), table(IDS)
    monkeypatch.setattr("hf_compact_embeddings.kernels.threads._LEAST_WORK", 1)
    torch.set_num_threads(2)

    def read(_: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return table(hidden, project=True), table(IDS)

    try:
        # Threads that find nothing read yet read at the same time.
        table = copy.deepcopy(table)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(read, range(32)):
                for one, other in zip(found, wanted, strict=True):
                    assert_equal(one, other)
    finally:
        torch.set_num_threads(before)


@for_fast
def test_no_tensor_is_as_large_as_the_table(case: Case) -> None:
    count, width = 40_000, 64
    table = drawn(case.config(init="random"), count, width)
    with torch.no_grad(), LargestTensor() as scoring:
        table(torch.randn(2, width), project=True)
    assert 0 < scoring.bytes < count * width * 4 / 2


@for_fast
def test_no_loop_reads_outside_a_table(case: Case) -> None:
    table = build_structure(case)
    for wrong in (-1, 60, 1 << 40):
        assert table.fast_path(torch.tensor([3, wrong]), False) is None
    with torch.no_grad():
        if case.method == "scalar" or case.name == "dispersed":
            # All codes have a value, and digits of rows that there are cannot be damaged.
            return
        if case.method == "subspace":
            # Codes of 4 bits, of which "uneven" has entries for 11: the last one answers for those that have none.
            table.codes.fill_(255)
            last = table.codebooks[-1] if table.last_codebook is None else table.last_codebook
            assert torch.equal(table.fast_path(IDS, False)[0, 0, -4:], last[-1, -4:])
            return
        # Bits and tiers for which the codes are not cut, and codes without an entry.
        tables = [table.axis_bits] if case.method == "rotated" else [table.codes]
        if table.tier_index is not None:
            tables.append(table.tier_index)
        for damaged in tables:
            kept = damaged.clone()
            assert table.fast_path(IDS, False) is not None
            damaged.fill_(255)
            assert table.fast_path(IDS, False) is None and table.fast_path(torch.randn(1, 24), True) is None
            damaged.copy_(kept)
