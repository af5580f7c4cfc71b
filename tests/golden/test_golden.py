"""Checkpoints of every format version keep loading, and give what they gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_compact_embeddings.checkpoints import load_compact
from hf_compact_embeddings.fitting import registered_methods
from hf_compact_embeddings.modeling.errors import CheckpointError

from .make import IDS, ROWS_TO_KEEP

GOLDEN = sorted(file.parent for file in Path(__file__).parent.glob("*/config.json"))


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_a_golden_checkpoint_gives_what_it_gave(folder: Path) -> None:
    model, expected = load_compact(folder).eval(), load_file(folder / "expected.safetensors")
    stored, path = load_file(folder / "model.safetensors"), model.input_table_path
    # What is stored is read bit by bit; sums may differ in the last bits between machines.
    for name, tensor in model.get_input_embeddings().state_dict().items():
        assert torch.equal(tensor, stored[f"{path}.{name}"].to(tensor.dtype)), name
    with torch.no_grad():
        rows, logits = model.get_input_embeddings().dense()[ROWS_TO_KEEP], model(IDS).logits
    torch.testing.assert_close(rows, expected["rows"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)


def stored_tables(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "config.json").read_text())["compact_embeddings"]


def test_every_format_version_of_every_method_has_one() -> None:
    found = {
        (table["method"], table["format_version"]) for folder in GOLDEN for table in stored_tables(folder).values()
    }
    classes = [method.structure.options_class for method in registered_methods()]
    assert found == {(one.method, version) for one in classes for version in range(1, one.format_version + 1)}


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_a_golden_checkpoint_is_small(folder: Path) -> None:
    # Long rows need a wide table, and so a wide model.
    most = 96 if folder.name.endswith("long_rows") else 28
    assert sum(file.stat().st_size for file in folder.iterdir()) < most * 1024


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    for file in GOLDEN[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for table in config["compact_embeddings"].values():
        table["format_version"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="written by a newer release"):
        load_compact(tmp_path)


def test_long_rows_are_as_long_as_those_of_real_checkpoints() -> None:
    (table,) = stored_tables(Path(__file__).parent / "rotated_1_long_rows").values()
    sizes = [size for size in table["layout"]["tier_bytes"] if size]
    assert sizes and all(38 <= size <= 95 for size in sizes)
    assert max(table["layout"]["tier_window_bits"]) == 16
