"""A checkpoint carries its code: a process without the package loads it and computes the same bits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.code_files import shipped_files
from hf_compact_embeddings.modeling.transformers_internals import model_mappings

from ..cases import all_cases, compress_tiny, first_cases
from ..tiny_models import ARCHITECTURES, tiny_inputs
from ..tools import (
    PACKAGE,
    assert_same_state,
    last_json,
    outputs_of,
    reading_plainly,
    run_python,
    tiny_texts,
    tiny_tokenizer,
)

# Loads every folder that the plan lists, through its Auto class, and compares each output bit by bit.
CHECK = """
import copy, json, sys
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
root, results = Path(sys.argv[1]), {}
try:
    transformers.AutoModel.from_pretrained(root / "bert", trust_remote_code=False)
except ValueError as error:
    results["refused"] = str(error)
for job in json.loads((root / "plan.json").read_text()):
    folder = root / job["folder"]
    auto_class = getattr(transformers, job["auto_class"])
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    inputs = load_file(folder / "inputs.safetensors")
    wanted = load_file(folder / "outputs.safetensors")

    def outputs(model):
        # Copies, so that all tensors lie alike in memory.
        with torch.no_grad():
            leaves = tree_leaves(tuple(copy.deepcopy(model)(**inputs).values()))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

    got = outputs(model)
    same = torch.equal(model.get_input_embeddings()(inputs["input_ids"]), wanted.pop("rows"))
    if not job["new_head"]:
        same &= len(got) == len(wanted)
        same &= all(torch.equal(tensor, wanted[str(i)]) for i, tensor in enumerate(got))
    results[job["folder"]] = {
        "same": same,
        "class": type(model).__name__,
        "module": type(model).__module__.rpartition(".")[2],
        "config": type(model.config).__name__,
    }
    if job["again"]:
        model.save_pretrained(root / "again" / job["folder"])
        again = auto_class.from_pretrained(root / "again" / job["folder"], trust_remote_code=True)
        results[job["folder"]]["again"] = all(
            torch.equal(one, other) for one, other in zip(got, outputs(again), strict=True)
        )
foreign = [name for name in sys.modules if name.partition(".")[0] == "hf_compact_embeddings"]
results["tokens"] = transformers.AutoTokenizer.from_pretrained(root / "bert", trust_remote_code=False)(
    sys.argv[2]
)["input_ids"]
print(json.dumps({"results": results, "foreign": foreign}))
"""


def save_job(root: Path, folder: str, model: transformers.PreTrainedModel, auto_class: str) -> dict[str, Any]:
    """Save a model with inputs and the outputs that it gives for them."""
    model.save_pretrained(root / folder)
    loaded, info = getattr(transformers, auto_class).from_pretrained(root / folder, output_loading_info=True)
    inputs = tiny_inputs(model)
    with reading_plainly():
        outputs = outputs_of(copy.deepcopy(loaded), inputs)
    # The package's compiled loops add numbers up in another order.
    torch.testing.assert_close(outputs_of(copy.deepcopy(loaded), inputs), outputs, atol=1e-5, rtol=1e-4)
    save_file(inputs, root / folder / "inputs.safetensors")
    tensors = {str(i): tensor.contiguous().clone() for i, tensor in enumerate(outputs)}
    tensors["rows"] = loaded.get_input_embeddings()(inputs["input_ids"])
    save_file(tensors, root / folder / "outputs.safetensors")
    job = {"folder": folder, "auto_class": auto_class, "new_head": bool(info["missing_keys"])}
    return job | {"again": folder in SAVED_AGAIN}


def auto_class_of(native: str) -> str:
    """Return an Auto class that leads to a native head."""
    mappings = model_mappings()
    return next(name for name in mappings if name != "AutoModelForPreTraining" and native in mappings[name].values())


# What the other process saves and loads once more.
SAVED_AGAIN = ("bert", "llama", "t5", "gemma3_text", "bert-classifier", "bert-new-head", "llama-classifier")
# With small layers: the architecture, and what they are.
LAYERS = {
    f"{architecture}-{layers}": (architecture, layers)
    for architecture in ("bert", "llama", "t5", "gpt2")
    for layers in ("int8", "int4", "float16")
}
SAVED_AGAIN += ("bert-int8", "llama-int4", "t5-int8", "gpt2-int4", "llama-float16")
# Further heads: the architecture, the class to save, and the Auto class to open it with.
HEADS = {
    "bert-base": ("bert", "BertModel", "AutoModel"),
    "gpt2-as-base": ("gpt2", "GPT2LMHeadModel", "AutoModel"),
    "bert-new-head": ("bert", "BertForMaskedLM", "AutoModelForSequenceClassification"),
    "llama-new-head": ("llama", "LlamaForCausalLM", "AutoModelForSequenceClassification"),
    "bert-classifier": ("bert", "BertForSequenceClassification", "AutoModelForSequenceClassification"),
    "bert-answers": ("bert", "BertForQuestionAnswering", "AutoModelForQuestionAnswering"),
    "llama-classifier": ("llama", "LlamaForSequenceClassification", "AutoModelForSequenceClassification"),
    "llama-tokens": ("llama", "LlamaForTokenClassification", "AutoModelForTokenClassification"),
    "t5-encoder": ("t5", "T5EncoderModel", "AutoModelForTextEncoding"),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, list[dict[str, str]]]:
    """What one process without the package makes of many checkpoints."""
    root = tmp_path_factory.mktemp("checkpoints")
    case = first_cases("project")[0]
    plan = []
    for architecture, (_, _, head) in ARCHITECTURES.items():
        _, compact = compress_tiny(architecture, case)
        plan.append(save_job(root, architecture, compact, auto_class_of(head)))
    for folder, (architecture, head, auto_class) in HEADS.items():
        _, compact = compress_tiny(architecture, case, head=head)
        plan.append(save_job(root, folder, compact, auto_class))
    for folder, (architecture, layers) in LAYERS.items():
        _, compact = compress_tiny(architecture, case)
        compact = hce.compress(compact, layers=layers)
        plan.append(save_job(root, folder, compact, auto_class_of(ARCHITECTURES[architecture][2])))
    for other in all_cases("project"):
        _, compact = compress_tiny("bert", other)
        plan.append(save_job(root, f"case-{other}", compact, "AutoModelForMaskedLM"))
    tiny_tokenizer().save_pretrained(root / "bert")
    (root / "plan.json").write_text(json.dumps(plan))
    output = run_python(CHECK, root, tiny_texts(1)[0], home=root / "home", without_package=True)
    answer = last_json(output)
    assert answer["foreign"] == []
    return answer["results"], root, plan


def test_every_checkpoint_gives_the_same_bits(loaded) -> None:
    results, _, plan = loaded
    assert len(plan) >= len(ARCHITECTURES) + len(HEADS)
    assert [job["folder"] for job in plan if not results[job["folder"]]["same"]] == []
    assert [job["folder"] for job in plan if job["new_head"]] == ["bert-new-head", "llama-new-head"]


def test_classes_are_the_ones_that_the_package_has(loaded) -> None:
    results, root, plan = loaded
    for job in plan:
        result, config = results[job["folder"]], json.loads((root / job["folder"] / "config.json").read_text())
        head = config["auto_map"][job["auto_class"]]
        assert head == f"{result['module']}.{result['class']}"
        assert result["module"] == "modeling_compact"
        assert config["auto_map"]["AutoConfig"] == f"modeling_compact.{result['config']}"
        assert hasattr(hce, result["class"]) and hasattr(hce, result["config"])


def test_saving_there_gives_a_checkpoint_that_loads_everywhere(loaded) -> None:
    results, root, plan = loaded
    jobs = [job for job in plan if job["again"]]
    assert len(jobs) == len(SAVED_AGAIN)
    for job in jobs:
        assert results[job["folder"]]["again"], job
        again = root / "again" / job["folder"]
        here = getattr(transformers, job["auto_class"]).from_pretrained(again)
        first = getattr(transformers, job["auto_class"]).from_pretrained(root / job["folder"])
        assert type(here) is type(first)
        one, other = (here.get_input_embeddings(), first.get_input_embeddings()) if job["new_head"] else (here, first)
        assert_same_state(one, other)
        assert json.loads((again / "config.json").read_text())["auto_map"] == first.config.auto_map


def test_the_code_in_checkpoints_is_the_packages(loaded) -> None:
    _, root, plan = loaded
    folders = [root / job["folder"] for job in plan]
    folders += [root / "again" / job["folder"] for job in plan if job["again"]]
    for folder in folders:
        shipped = {path.name: path.read_bytes() for path in folder.glob("*.py")}
        assert "modeling_compact.py" in shipped and "structure.py" in shipped
        config = json.loads((folder / "config.json").read_text())
        parts = {table["method"] for table in config["compact_embeddings"].values()}
        parts |= {"layers"} if folder.name in LAYERS else set()
        assert shipped == shipped_files(PACKAGE / "modeling" / "modeling_compact.py", parts), folder.name
        assert ("layers.py" in shipped) == (folder.name in LAYERS)


def test_the_tokenizer_of_a_compact_folder_needs_no_code(loaded) -> None:
    results, _, _ = loaded
    assert results["tokens"] == tiny_tokenizer()(tiny_texts(1)[0])["input_ids"]


def test_a_table_keeps_its_native_name_in_the_file(loaded) -> None:
    _, root, _ = loaded
    native = "bert.embeddings.word_embeddings."
    assert any(name.startswith(native) for name in load_file(root / "bert" / "model.safetensors"))


def test_code_runs_only_with_trust(loaded) -> None:
    results, _, _ = loaded
    assert "trust_remote_code=True" in results["refused"]
