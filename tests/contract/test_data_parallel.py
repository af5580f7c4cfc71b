"""Data-parallel training: all processes end alike, and nobody broadcasts the codes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from ..cases import Case, compress_tiny, first_cases, for_all, for_each_method
from ..launching import run_together

SCRIPT = Path(__file__).parent / "data_parallel_script.py"


@for_all()
def test_the_codes_are_listed_as_not_to_be_broadcast(case: Case) -> None:
    for architecture in ("bert", "t5"):
        _, compact = compress_tiny(architecture, case)
        path = compact.input_table_path
        codes = {f"{path}.{name}" for name, _ in compact.get_input_embeddings().named_buffers()}
        assert set(compact._ddp_params_and_buffers_to_ignore) == codes
        assert codes <= set(compact.state_dict())


@for_each_method()
def test_loaded_models_list_them_too(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case, head="BertForSequenceClassification")
    compact.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded._ddp_params_and_buffers_to_ignore == compact._ddp_params_and_buffers_to_ignore


def test_accelerate_launch_with_two_processes(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", first_cases("project")[0], head="BertForSequenceClassification")
    compact.save_pretrained(tmp_path)
    run_together(SCRIPT, tmp_path, home=tmp_path / "home")
    one, two = (json.loads((tmp_path / f"result-{rank}.json").read_text()) for rank in range(2))
    assert one["processes"] == two["processes"] == 2
    assert one["kept"] and two["kept"], "the codes of one process were sent to the other"
    assert one["before"] == two["before"]
    assert one["after"] == two["after"] != one["before"]
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    structure, start = trained.get_input_embeddings(), compact.get_input_embeddings()
    assert all(
        torch.equal(tensor, start.state_dict()[name]) != tensor.is_floating_point()
        for name, tensor in structure.state_dict().items()
        if name != "private_vectors"
    )
