"""The house's rules that a reader of the source can check: who imports whom, and who may know which name."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_compact_embeddings.fitting import Method, registered_methods
from hf_compact_embeddings.modeling.transformers_internals import model_mappings

from .tools import PACKAGE

FILES = sorted(PACKAGE.rglob("*.py"))
MODELING = sorted((PACKAGE / "modeling").glob("*.py"))
SHIPPED = [path for path in MODELING if path.name != "__init__.py"]

# The rooms from the ground up, and the files beside them; one may import what stands on a lower line, and nothing else.
# Rooms of a line do not import each other.
FLOORS = (
    ("version", "modeling", "progress", "drafts"),
    ("transformers_internals",),
    ("registration", "kernels", "fitting", "model_outputs", "checkpoints", "effort", "settings"),
    ("evidence", "checked_models"),
    ("judging",),
    ("planning",),
    ("finetuning",),
    ("training", "evaluation", "layers"),
    ("compression",),
    ("hub", "export", "scripts", "quantization"),
    ("cli",),
    ("__init__",),
)
LEVELS = {room: level for level, floor in enumerate(FLOORS) for room in floor}
LIBRARIES = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def for_files(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=named)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the full names, in parts, of all modules and names that a file imports, wherever in the file."""
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            yield from ((*module, alias.name) for alias in node.names)


def rooms_imported(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each other room of the package that a file imports, and the full name of what it imports there."""
    for name in imported(path):
        if name[0] != PACKAGE.name:
            continue
        # The package itself is the room of its public names.
        known = len(name) > 1 and ((PACKAGE / name[1]).is_dir() or (PACKAGE / f"{name[1]}.py").exists())
        room = name[1] if known else "__init__"
        if room != room_of(path):
            yield room, ".".join(name)


@for_files(FILES)
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in LEVELS, f"{named(path)}: say in FLOORS where this room stands"
    for other, name in rooms_imported(path):
        assert LEVELS[other] < LEVELS[room], f"{named(path)} imports {name}"


def test_every_room_has_one_place() -> None:
    rooms = {room_of(path) for path in FILES}
    assert len(LEVELS) == sum(map(len, FLOORS)), "a room stands on two lines"
    # Planned and not built yet, and the files that evidence/ takes in.
    absent = {"export", "evidence", "origin", "exact_rows", "token_statistics", "sensitivity"}
    assert set(LEVELS) - rooms <= absent


@for_files(MODELING)
def test_modeling_files_know_only_their_siblings(path: Path) -> None:
    siblings = {sibling.stem for sibling in SHIPPED}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            roots = {alias.name.partition(".")[0] for alias in node.names}
            assert roots <= LIBRARIES, f"{named(path)} imports {roots - LIBRARIES}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None and node.module.partition(".")[0] in LIBRARIES, f"{node.module}"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module in siblings, f"{named(path)}: `from .sibling import name` only"


@for_files(SHIPPED)
def test_transformers_finds_the_siblings_that_a_file_needs(path: Path) -> None:
    """It looks for imports in the text, so one in a docstring or under TYPE_CHECKING would be copied too."""
    top_level = {node.module for node in tree_of(path).body if isinstance(node, ast.ImportFrom) and node.level == 1}
    everywhere = {
        node.module for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom) and node.level == 1
    }
    assert set(get_relative_imports(path)) == everywhere == top_level


def test_everything_in_modeling_is_flat() -> None:
    assert [path for path in (PACKAGE / "modeling").glob("*/**/*.py")] == []


@for_files(FILES)
def test_no_architecture_is_imported(path: Path) -> None:
    for name in imported(path):
        if name[:2] == ("transformers", "models"):
            assert name[2:3] == ("auto",), f"{named(path)} imports {'.'.join(name)}"


NATIVE_TYPES = {name for name in CONFIG_MAPPING_NAMES if not name.startswith("compact-")}
NATIVE_CLASSES = {
    name
    for names in (CONFIG_MAPPING_NAMES, *model_mappings().values())
    for key, value in names.items()
    if not key.startswith("compact-") and value is not None
    for name in ([value] if isinstance(value, str) else value)
}
ARCHITECTURE_NAMES = NATIVE_TYPES | {name.replace("-", "_") for name in NATIVE_TYPES} | NATIVE_CLASSES


def conditions(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.match_case):
            yield node.pattern
            if node.guard is not None:
                yield node.guard
        elif isinstance(node, ast.Compare | ast.BoolOp):
            yield node


@for_files(FILES)
def test_no_condition_asks_for_an_architecture(path: Path) -> None:
    for condition in conditions(tree_of(path)):
        for node in ast.walk(condition):
            names = {getattr(node, field, None) for field in ("id", "attr", "value")}
            known = {name for name in names if isinstance(name, str)} & ARCHITECTURE_NAMES
            assert not known, f"{named(path)}:{node.lineno} asks for {known}"


def test_the_check_of_conditions_can_fail() -> None:
    for code in (
        "if t == 'gemma3_text': pass",
        "x = 1 if isinstance(m, BertModel) else 2",
        "[a for a in b if a in ('t5',)]",
    ):
        found = {
            value
            for condition in conditions(ast.parse(code))
            for node in ast.walk(condition)
            for value in (getattr(node, field, None) for field in ("id", "attr", "value"))
            if isinstance(value, str)
        }
        assert found & ARCHITECTURE_NAMES, code


@pytest.mark.parametrize("registered", registered_methods(), ids=lambda method: method.name)
def test_a_methods_name_stands_in_its_own_files_only(registered: Method) -> None:
    method = registered.name
    own = {Path(inspect.getfile(registered.structure)), PACKAGE / "fitting" / f"fit_{method}.py"}
    for path in FILES:
        if path in own or method in path.stem:
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value != method, f"{named(path)}:{node.lineno} names the method {method!r}"


@pytest.mark.parametrize("registered", registered_methods(), ids=lambda method: method.name)
def test_a_method_is_imported_by_one_line_of_the_factory(registered: Method) -> None:
    module = Path(inspect.getfile(registered.structure)).stem
    assert module == f"structure_{registered.name}", "checkpoints find a method's file by its name"
    lines = [
        node
        for node in tree_of(PACKAGE / "modeling" / "modeling_compact.py").body
        if isinstance(node, ast.ImportFrom) and node.module == module
    ]
    assert len(lines) == 1
    own = {module, f"fit_{registered.name}"}
    for path in FILES:
        if path.name != "modeling_compact.py" and path.stem not in own and registered.name not in path.stem:
            if named(path) in ("cli/demo.py", "__init__.py"):
                continue  # the one shows what some methods do, the other makes their options public names
            assert not [name for name in imported(path) if module in name], f"{named(path)} imports {module}"


FORBIDDEN_CALLS = {"torch.load", "pickle.load", "pickle.loads", "eval", "exec", "input"}


@for_files(FILES)
def test_nothing_loads_pickled_data_or_runs_text(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"{named(path)}:{node.lineno}"
