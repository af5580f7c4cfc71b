"""Large tables: the dense one is never built, not to start from scratch and not to load."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

import hf_compact_embeddings as hce

from ..cases import Case, for_each_method
from ..tools import LargestTensor, last_json, run_python

ROWS, WIDTH = 262_144, 1_152
DENSE_MEGABYTES = ROWS * WIDTH * 4 / 1e6

MEASURE = """
import json, re, sys, time
import torch
from transformers import AutoConfig, AutoModelForCausalLM
import hf_compact_embeddings
from transformers.models.gemma3 import modeling_gemma3

torch.set_num_threads(1)

def peak():
    # Of this program alone: what `resource` tells includes the process that started it.
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1e3

folder, result = sys.argv[1], {}
config = AutoConfig.from_pretrained(folder)
AutoModelForCausalLM._model_mapping[type(config)]
start = peak()
seconds = []
for _ in range(3):
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder)
    seconds.append(time.perf_counter() - began)
result["load_seconds"] = min(seconds)
result["load"] = peak() - start
with torch.no_grad():
    logits = model.eval()(input_ids=torch.tensor([[7]]), logits_to_keep=1).logits
result["decode"] = peak() - start
result["logits"] = list(logits.shape)
model.save_pretrained(sys.argv[2])
result["save"] = peak() - start
del model, logits
AutoModelForCausalLM.from_config(config)
result["scratch"] = peak() - start
print(json.dumps(result))
"""

ONE_QUERY = """
import json, re, sys
import torch
import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.architectures import read_stored_tables
from hf_compact_embeddings.modeling.structure import structure_class_of

torch.set_num_threads(1)

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e3

rows, width = int(sys.argv[2]), int(sys.argv[3])
((options, _),) = read_stored_tables({"table": json.loads(sys.argv[1])}).values()
structure_class = structure_class_of(options.method)

def drawn(rows):
    made = structure_class(options, structure_class.random_layout(options, rows, width), rows, width)
    made.reset_parameters()
    return made

structure = drawn(rows)
# What is loaded once, whatever the table: compiled loops, and the compiler.
with torch.no_grad():
    drawn(1000).project(torch.ones(1, width))
# The peak is counted anew from here on.
open("/proc/self/clear_refs", "w").write("5")
start = memory("VmRSS")
with torch.no_grad():
    scores = structure.project(torch.ones(1, width))
taken = memory("VmHWM") - start
# 64 MB, to tell that the peak is seen: a query may do with what was freed before.
start, more = memory("VmRSS"), torch.ones(1 << 24)
print(json.dumps({"shape": list(scores.shape), "megabytes": taken, "seen": memory("VmHWM") - start}))
"""


def large_config(method_options: dict, rows: int = ROWS, width: int = WIDTH) -> transformers.PreTrainedConfig:
    return hce.CompactGemma3TextConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        compact_embeddings=method_options,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_table_of_gemmas_size(tmp_path: Path) -> None:
    """The peak of a process that loads 96 x 256 product codes in the place of 1,208 MB."""
    options = hce.SubspaceConfig(num_subspaces=96, init="random").to_dict()
    model = transformers.AutoModelForCausalLM.from_config(large_config(options))
    assert model.get_input_embeddings().nbytes < 27e6
    model.save_pretrained(tmp_path / "model")
    size = (tmp_path / "model" / "model.safetensors").stat().st_size / 1e6
    assert size < 30
    measured = last_json(run_python(MEASURE, tmp_path / "model", tmp_path / "again", home=tmp_path / "home"))
    assert measured["logits"] == [1, 1, ROWS]
    report = json.dumps(measured)
    assert measured["load"] < 4 * size, report
    assert measured["decode"] > size / 2, f"the peak is not seen: {report}"
    assert measured["load_seconds"] < 1.0, report
    assert measured["decode"] < DENSE_MEGABYTES / 4, report
    assert measured["save"] < DENSE_MEGABYTES / 4, report
    assert measured["scratch"] < DENSE_MEGABYTES / 2, report


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@for_each_method("project")
def test_scoring_one_query_takes_little_memory(case: Case, tmp_path: Path) -> None:
    """No tensor is as large as the table; what is freed between tensors that are kept must not add up to it either."""
    rows, width = ROWS // 2, WIDTH
    options = json.dumps(case.config(init="random").to_dict())
    measured = last_json(run_python(ONE_QUERY, options, rows, width, home=tmp_path))
    assert measured["shape"] == [1, rows]
    assert measured["megabytes"] < 64, f"the dense table takes {DENSE_MEGABYTES / 2:.0f} MB"
    assert measured["seen"] > 60, "what is taken is not seen"


@for_each_method("project")
def test_no_operation_gives_a_dense_table(case: Case, tmp_path: Path) -> None:
    rows, width = 50_000, 96
    config = large_config(case.config(init="random").to_dict(), rows, width)
    with LargestTensor() as building:
        model = transformers.AutoModelForCausalLM.from_config(config)
    with LargestTensor() as saving:
        model.save_pretrained(tmp_path)
    with LargestTensor() as loading:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(), LargestTensor() as decoding:
        loaded(input_ids=torch.tensor([[7]]))
    for largest in (building, saving, loading, decoding):
        assert 0 < largest.bytes < rows * width * 4


def test_the_measure_sees_a_dense_table() -> None:
    config = transformers.BertConfig(vocab_size=5_000, hidden_size=32, num_hidden_layers=1, num_attention_heads=1)
    with LargestTensor() as building:
        transformers.BertModel(config)
    assert building.bytes >= 5_000 * 32 * 4
