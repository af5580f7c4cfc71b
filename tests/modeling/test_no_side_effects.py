"""Loading a stranger's checkpoint as remote code changes nothing outside itself, but for registering its classes."""

from __future__ import annotations

from pathlib import Path

from ..cases import compress_tiny, first_cases
from ..tiny_models import tiny_model
from ..tools import last_json, run_python

# Compares everything that code could replace in this process, before and after loading, saving and training.
CHECK = """
import json, sys
from collections import OrderedDict
import torch, transformers
import transformers.initialization
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.models.auto import configuration_auto, image_processing_auto, modeling_auto, tokenization_auto

root = sys.argv[1]
PLAIN = (dict, OrderedDict)
WATCHED = ("trainer", "trainer_callback", "training_args", "modeling_utils", "configuration_utils",
           "tokenization_utils_base", "dynamic_module_utils", "initialization")
transformers.utils.logging.set_verbosity_error()


def classes_of(module):
    return [value for value in vars(module).values() if isinstance(value, type)]


def content_of(value):
    # What a table holds, too: it may be changed where it is.
    return repr(value) if type(value) in (*PLAIN, list, set, tuple) else None


def watched():
    modules = [module for name, module in sys.modules.items() if name.split(".")[:2] == ["torch", "nn"]]
    modules += [sys.modules["transformers." + name] for name in WATCHED]
    owners = [owner for module in modules for owner in (module, *classes_of(module))]
    owners += [torch.Tensor]
    return {id(owner): owner for owner in owners}.values()


def attributes():
    return {
        (getattr(owner, "__module__", ""), owner.__name__, name): (value, content_of(value))
        for owner in watched()
        for name, value in list(vars(owner).items())
        if name not in ("__builtins__", "_abc_impl", "__weakref__", "__dict__")
    }


def mappings():
    found = {}
    for module in (configuration_auto, modeling_auto, tokenization_auto, image_processing_auto):
        for name, value in vars(module).items():
            value = getattr(value, "_model_mapping", value)
            if type(value) in PLAIN or hasattr(value, "_extra_content"):
                found[id(value)] = (f"{module.__name__}.{name}", value)
    return found.values()


def use(model, folder):
    model.save_pretrained(folder)
    ids = torch.tensor([[5, 6, 7]])
    arguments = TrainingArguments(folder + "/run", use_cpu=True, max_steps=1)
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
    trainer.train()
    trainer.save_model()


def tables():
    rows = {}
    for table, mapping in mappings():
        for name in ("_extra_content", "_mapping", "_config_mapping", "_reverse_config_mapping", "_model_mapping"):
            held = getattr(mapping, name, None)
            if type(held) in PLAIN:
                rows |= {(table, name, repr(key)): repr(value) for key, value in held.items()}
        if type(mapping) in PLAIN:
            rows |= {(table, "", repr(key)): repr(value) for key, value in mapping.items()}
    return rows


# What Transformers itself makes at first use is made now.
use(AutoModelForMaskedLM.from_pretrained(root + "/dense"), root + "/used/dense")
before, tables_before = attributes(), tables()
classes = []
for name in sys.argv[2:]:
    model = AutoModelForMaskedLM.from_pretrained(root + "/" + name, trust_remote_code=True)
    classes.append(type(model).__name__)
    use(model, root + "/used/" + name)
after, tables_after = attributes(), tables()

changed = [
    ".".join(key)
    for key in before.keys() | after.keys()
    if key not in before or key not in after or before[key][0] is not after[key][0] or before[key][1] != after[key][1]
]
rows = {key: value for key, value in tables_after.items() if tables_before.get(key) != value}
print(json.dumps({
    "classes": classes,
    "count": len(before),
    "changed": sorted(changed),
    "gone": [key for key in tables_before if key not in tables_after],
    "foreign": [name for name in sys.modules if name.partition(".")[0] == "hf_compact_embeddings"],
    "registered": [[*key, value] for key, value in rows.items()],
}))
"""


def test_a_checkpoint_changes_nothing_outside_itself(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "dense")
    cases = first_cases("project")
    for case in cases:
        compress_tiny("bert", case)[1].save_pretrained(tmp_path / str(case))
    output = run_python(CHECK, tmp_path, *cases, home=tmp_path / "home", without_package=True)
    found = last_json(output)
    assert found["foreign"] == [] and found["classes"] == ["CompactBertForMaskedLM"] * len(cases)
    assert found["count"] > 5000, "what is compared is there"
    # Older releases note there, for an exporter, every class that a model was ever made of.
    assert set(found["changed"]) <= {".transformers.modeling_utils._CAN_RECORD_REGISTRY"}
    assert found["gone"] == []
    # The checkpoints' own classes, under configurations that are their own too.
    assert len(found["registered"]) >= len(cases)
    for _, table, key, value in found["registered"]:
        assert table == "_extra_content" and "transformers_modules" in key and "transformers_modules" in value
