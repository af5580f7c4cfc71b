"""What is private to Transformers passes through three files, where the next release may break it in sight."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizer, Trainer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto import auto_factory, configuration_auto

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.modeling_compact import CompactConfigMixin, CompactModelMixin
from hf_compact_embeddings.transformers_internals import OVERRIDDEN

from .tools import PACKAGE

# What travels with models, what travels with the tokenizer, and what stays in the package.
MODEL_INTERNALS = PACKAGE / "modeling" / "transformers_internals.py"
TOKENIZER_INTERNALS = PACKAGE / "modeling" / "tokenizer_internals.py"
PACKAGE_INTERNALS = PACKAGE / "transformers_internals.py"
INTERNALS = {MODEL_INTERNALS, TOKENIZER_INTERNALS, PACKAGE_INTERNALS}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path not in INTERNALS)
# Where Transformers keeps what this package has to do with.
SOURCES = (PreTrainedModel, PreTrainedConfig, Trainer, GradientCheckpointingLayer, auto_factory, configuration_auto)
LISTED = [(class_name, name) for class_name, names in OVERRIDDEN.items() for name in names]
# Modules without a promise: their names may move in any release.
UNDOCUMENTED = ("initialization", "core_model_loading", "conversion_mapping", "models", "integrations")


def private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.startswith("__")


def names_in(tree: ast.AST, defined_only: bool) -> Iterator[str]:
    """Yield the names that a source defines (functions, classes, fields), or also the attributes that it uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not defined_only:
            # Arguments by name, and attributes that are asked for by name.
            yield node.value
        elif isinstance(node, ast.Attribute) and not defined_only:
            yield node.attr


def private_to_transformers() -> set[str]:
    """Return the private names in the source of what the package has to do with, but for torch's own."""
    modules = {inspect.getmodule(one) for one in SOURCES}
    modules |= {inspect.getmodule(base) for base in PreTrainedTokenizer.__mro__ if "transformers" in base.__module__}
    names = {
        name
        for module in modules
        if module is not None
        for name in names_in(ast.parse(inspect.getsource(module)), defined_only=False)
        if private(name)
    }
    return names - set(dir(nn.Module())) - set(dir(object))


PRIVATE = private_to_transformers()
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
OWN = {name for tree in TREES.values() for name in names_in(tree, defined_only=True) if private(name)}


def uses(tree: ast.AST) -> Iterator[str]:
    """Yield what a file uses of Transformers' private parts: `line: name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE - OWN:
            yield f"{node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            names = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            yield from (f"{node.lineno}: {name}" for name in names if name in PRIVATE - OWN)
        elif isinstance(node, ast.keyword) and node.arg in PRIVATE - OWN:
            yield f"{node.value.lineno}: {node.arg}="
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                parts = f"{module}.{alias.name}".strip(".").split(".")
                if parts[0] == "transformers" and not getattr(node, "level", 0):
                    if parts[1:] and (parts[1] in UNDOCUMENTED or any(map(private, parts))):
                        yield f"{node.lineno}: {'.'.join(parts)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_file_uses_what_is_private(path: Path) -> None:
    assert list(uses(TREES[path])) == [], f"{path.name}: see transformers_internals.py"


@pytest.mark.parametrize("path", sorted(INTERNALS), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_private_name_stands_beside_the_versions_that_it_was_seen_in(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    lines, found = source.splitlines(), list(uses(ast.parse(source)))
    assert found
    for use in found:
        line = int(use.partition(":")[0])
        # The comment may stand on the line before, or behind the last line of the statement.
        near = "".join(lines[line - 2 : line + 1])
        assert "5.11" in near and "5.24" in near, f"{path.name}, line {use}"


def test_nothing_travels_that_no_checkpoint_runs() -> None:
    travels = {name for path in (MODEL_INTERNALS, TOKENIZER_INTERNALS) for name in defined_in(path)}
    shipped = [path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "modeling").glob("*.py"))]
    for name in travels:
        assert sum(source.count(name) for source in shipped) > 1, f"only the package uses {name}()"


def defined_in(path: Path) -> Iterator[str]:
    """Yield the names of a file's functions."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    yield from (node.name for node in body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize(
    "code",
    [
        "model._tied_weights_keys = None",
        "config._commit_hash",
        "config._attn_implementation = 'eager'",
        "set(model._keys_to_ignore_on_save)",
        "module._is_hf_initialized = True",
        "AutoModel._model_mapping",
        "self._added_tokens_decoder = {}",
        "self._prepare_inputs(inputs)",
        "getattr(config, '_commit_hash', None)",
        "cached_file('x', 'y', _commit_hash=None)",
        "from transformers.modeling_utils import _load_parameter_into_model",
        "from transformers import initialization",
        "import transformers.models.auto.auto_factory",
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES",
    ],
)
def test_the_check_can_fail(code: str) -> None:
    assert list(uses(ast.parse(code)))


def classes_of_the_package() -> Iterator[tuple[type, tuple[type, ...]]]:
    """Yield every class of the package and the classes of Transformers that it derives from."""
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        for found in vars(module).values():
            if isinstance(found, type) and found.__module__ == module.__name__:
                yield found, tuple(base for base in found.__mro__ if base.__module__.startswith("transformers."))
    # At run time the mixins derive from nothing.
    for made in (hce.CompactBertModel, hce.CompactBertConfig):
        for place, mixin in enumerate(made.__mro__):
            if issubclass(mixin, CompactModelMixin | CompactConfigMixin):
                yield mixin, made.__mro__[place + 1 :]


def test_every_private_method_that_is_overridden_is_listed() -> None:
    for found, natives in classes_of_the_package():
        # Python itself writes `_abc_impl` into every class that derives from an abstract one.
        for name in filter(private, vars(found).keys() - {"_abc_impl"}):
            if any(name in vars(native) for native in natives if native.__module__.startswith("transformers.")):
                assert name in {one for _, one in LISTED}, (
                    f"{found.__name__}.{name} overrides a private part of Transformers"
                )


@pytest.mark.parametrize("class_name, name", LISTED)
def test_transformers_has_what_is_overridden(class_name: str, name: str) -> None:
    assert hasattr(getattr(transformers, class_name), name)
    assert any(name in vars(found) for found, natives in classes_of_the_package() if natives), "nothing overrides it"
