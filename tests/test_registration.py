"""Importing the package registers every config and head, quickly, and leaves the native ones alone."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import pickle
import re
import tomllib
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, TOKENIZER_MAPPING_NAMES

import hf_compact_embeddings as hce
from hf_compact_embeddings import registration, version
from hf_compact_embeddings.modeling.modeling_compact import config_class, model_class
from hf_compact_embeddings.modeling.transformers_internals import heads_of, model_mappings

from .cases import Case, compress_tiny, for_each_method
from .tiny_models import ARCHITECTURES, tiny_config
from .tools import REPOSITORY, last_json, run_python, tiny_texts, tiny_tokenizer

IMPORT = """
import json, sys, time
from transformers import AutoModel, PreTrainedModel

modules, began = set(sys.modules), time.process_time()
import hf_compact_embeddings
seconds = time.process_time() - began
added = set(sys.modules) - modules
models = [name for name in added if name.startswith("transformers.models.") and ".auto." not in name]
result = {
    "seconds": seconds,
    "models": sorted(name for name in models if ".modeling_" in name or ".tokenization_" in name),
    "new": sorted({name.partition(".")[0] for name in added}),
}
print(json.dumps(result))
"""


def twin(name: str | tuple[str, ...], prefix: str = "Compact") -> str | tuple[str, ...]:
    return prefix + name if isinstance(name, str) else tuple(prefix + one for one in name)


def test_every_configuration_has_its_twin() -> None:
    natives = {name: cls for name, cls in CONFIG_MAPPING_NAMES.items() if not name.startswith("compact-")}
    assert len(natives) > 400
    for native, config_name in natives.items():
        assert CONFIG_MAPPING_NAMES[f"compact-{native}"] == f"Compact{config_name}"


@pytest.mark.parametrize("auto_class", model_mappings())
def test_every_head_has_its_twin(auto_class: str) -> None:
    names = model_mappings()[auto_class]
    natives = {name: cls for name, cls in names.items() if not name.startswith("compact-") and cls is not None}
    assert natives
    for native, head in natives.items():
        assert names[f"compact-{native}"] == twin(head)


def test_every_tokenizer_has_its_twin() -> None:
    natives = {n: t for n, t in TOKENIZER_MAPPING_NAMES.items() if not n.startswith("compact-") and t is not None}
    assert len(natives) > 100
    assert all(TOKENIZER_MAPPING_NAMES[f"compact-{native}"] == name for native, name in natives.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_mappings_give_the_compact_classes(architecture: str) -> None:
    native_config = type(tiny_config(architecture))
    compact_config = config_class(native_config)
    assert CONFIG_MAPPING[compact_config.model_type] is compact_config
    assert issubclass(compact_config, native_config)
    assert AutoConfig.for_model(compact_config.model_type).model_type == f"compact-{native_config.model_type}"
    heads = heads_of(native_config.model_type)
    assert heads
    for auto_class, head in heads.items():
        found = getattr(transformers, auto_class)._model_mapping[compact_config]
        found = found[0] if isinstance(found, tuple) else found
        assert found is model_class(getattr(transformers, head))
        assert found is getattr(hce, f"Compact{head}")
        assert found.config_class is compact_config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_native_classes_are_untouched(architecture: str) -> None:
    config = tiny_config(architecture)
    native = type(config)
    getattr(hce, f"Compact{native.__name__}")
    assert type(AutoConfig.for_model(config.model_type)) is native
    assert type(AutoModel.from_config(config)).__name__ == heads_of(config.model_type)["AutoModel"]
    for auto_class, head in heads_of(config.model_type).items():
        found = getattr(transformers, auto_class)._model_mapping[native]
        assert getattr(transformers, head) in (found if isinstance(found, tuple) else (found,))
    # A tokenizer whose library is missing is listed as None.
    if TOKENIZER_MAPPING_NAMES.get(config.model_type) is not None:
        assert TOKENIZER_MAPPING[native] == TOKENIZER_MAPPING[config_class(native)]


def test_registering_twice_changes_nothing() -> None:
    before = copy.deepcopy((dict(CONFIG_MAPPING_NAMES), {n: dict(m) for n, m in model_mappings().items()}))
    registration.register()
    assert before == (dict(CONFIG_MAPPING_NAMES), {name: dict(names) for name, names in model_mappings().items()})
    assert not [name for name in CONFIG_MAPPING_NAMES if name.startswith("compact-compact-")]


def test_classes_are_names_of_the_package() -> None:
    from hf_compact_embeddings import CompactBertConfig, CompactBertForSequenceClassification

    assert issubclass(CompactBertForSequenceClassification, transformers.BertForSequenceClassification)
    assert issubclass(CompactBertConfig, transformers.BertConfig)
    assert CompactBertForSequenceClassification.__name__ == "CompactBertForSequenceClassification"
    assert CompactBertForSequenceClassification.__doc__ and CompactBertConfig.__doc__
    listed = dir(hce)
    assert listed == sorted(set(listed))
    assert {"CompactBertForSequenceClassification", "CompactBertConfig", "compress", "methods"} <= set(listed)
    assert len([name for name in listed if name.startswith("Compact")]) > 1_500
    assert set(hce.__all__) <= set(listed)


@pytest.mark.parametrize(
    "name", ["CompactNonsenseModel", "CompactAutoModel", "CompactPipeline", "BertModel", "nothing"]
)
def test_other_names_are_no_attributes(name: str) -> None:
    assert not hasattr(hce, name)
    with pytest.raises(AttributeError, match=name):
        getattr(hce, name)
    with pytest.raises(ImportError):
        exec(f"from hf_compact_embeddings import {name}")


@pytest.mark.parametrize("name", ["CompactBertModel", "CompactT5ForConditionalGeneration", "CompactGemma3TextConfig"])
def test_classes_can_be_pickled(name: str) -> None:
    cls = getattr(hce, name)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert getattr(importlib.import_module(cls.__module__), name) is cls


def test_importing_is_quick_and_imports_no_architecture(tmp_path: Path) -> None:
    # The processor time of one try can suffer from what else the machine does, that of three hardly.
    for _ in range(3):
        measured = last_json(run_python(IMPORT, home=tmp_path))
        assert measured["models"] == []
        assert not {"numba", "scipy", "sklearn", "datasets", "matplotlib", "pandas"} & set(measured["new"])
        if measured["seconds"] < 0.5:
            return
    raise AssertionError(f"importing the package takes {measured['seconds']:.2f} s: {measured['new']}")


@for_each_method("project")
def test_auto_classes_read_a_compact_folder_without_trust(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    compact.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is hce.CompactBertConfig
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path)) is hce.CompactBertForMaskedLM
    assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)) is hce.CompactBertModel
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = tiny_texts(1)[0]
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


@for_each_method("project")
def test_the_native_tokenizer_class_reads_a_compact_folder(case: Case, tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", case)
    compact.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is TOKENIZER_MAPPING[transformers.BertConfig]
    assert tokenizer("hello world")["input_ids"] == [2, 5, 6, 3]


@pytest.mark.parametrize("installed", ["4.57.1", "5.0.0", "5.6.2", "5.9.0", "5.10.4", "5.11.0rc1"])
def test_an_old_transformers_is_refused(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    with pytest.raises(ImportError, match=rf"needs transformers 5\.11\.0 or newer, but {re.escape(installed)} is"):
        version.require_supported_transformers()


@pytest.mark.parametrize("installed", ["5.11.0", "5.23.0", "5.100.0", "6.1.0.dev0"])
def test_a_newer_transformers_is_taken(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    version.require_supported_transformers()


def test_lower_bounds_are_those_that_the_tests_run_with() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [Requirement(line) for group in (project["dependencies"], *extras.values()) for line in group]
    bounds = {one.name: str(one.specifier).removeprefix(">=") for one in asked if str(one.specifier).startswith(">=")}
    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", (REPOSITORY / "constraints-lowest.txt").read_text(), re.MULTILINE))
    assert {"torch", "transformers", "numpy", "huggingface-hub", "datasets", "peft"} <= bounds.keys() & pinned.keys()
    for name in bounds.keys() & pinned.keys():
        # A first release that was withdrawn, or does not work, makes the pin another patch of the same release.
        assert Version(pinned[name]).release[:2] == Version(bounds[name]).release[:2], name
        assert Version(pinned[name]) >= Version(bounds[name]), name
    assert {Requirement(line).name for line in project["dependencies"]} <= pinned.keys(), "all of them are pinned"
    assert Version(bounds["transformers"]) == Version(version.LOWEST_TRANSFORMERS)
