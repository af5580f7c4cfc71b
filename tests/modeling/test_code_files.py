"""The code that travels: without the docstrings of functions and classes, and otherwise what it was."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_compact_embeddings as hce
from hf_compact_embeddings.modeling.code_files import shipped_files, without_docstrings

from ..tools import PACKAGE

MODELING = PACKAGE / "modeling"
# What a model carries, by its method, and what the tokenizer without a vocabulary carries.
SHIPPED = {method: shipped_files(MODELING / "modeling_compact.py", {method}) for method in hce.methods()}
SHIPPED["tokenizer"] = shipped_files(MODELING / "tokenization_hash.py")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(source: str | bytes) -> Iterator[Documented]:
    """Yield what has a docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and ast.get_docstring(node) is not None:
            yield node


def comments(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if line.strip().startswith("#")]


@pytest.mark.parametrize("carrier", SHIPPED)
def test_only_modules_have_docstrings(carrier: str) -> None:
    for name, content in SHIPPED[carrier].items():
        compile(content, name, "exec")
        assert [type(node) for node in documented(content)] == [ast.Module], name
        whole = (MODELING / name).read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(content)) == ast.get_docstring(ast.parse(whole)), name
        assert comments(content.decode()) == comments(whole), name


class _Undocumented(ast.NodeTransformer):
    """The same tree, with `...` in the place of docstrings that are all there is, and without the others."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, Documented) and not isinstance(node, ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Expr(ast.Constant(...))]
        return node


@pytest.mark.parametrize("path", sorted(MODELING.glob("*.py")), ids=lambda path: path.stem)
def test_the_code_is_what_it_was(path: Path) -> None:
    whole = path.read_bytes()
    shipped = without_docstrings(whole)
    assert ast.dump(ast.parse(shipped)) == ast.dump(_Undocumented().visit(ast.parse(whole)))
    assert without_docstrings(shipped) == shipped, "a model that was loaded as remote code saves the same files"


def test_what_is_shipped_ships_again(tmp_path: Path) -> None:
    for carrier, start in {"rotated": "modeling_compact.py", "tokenizer": "tokenization_hash.py"}.items():
        folder = tmp_path / carrier
        folder.mkdir()
        for name, content in SHIPPED[carrier].items():
            (folder / name).write_bytes(content)
        assert shipped_files(folder / start, {carrier}) == SHIPPED[carrier]


@pytest.mark.parametrize(
    "whole, left",
    [
        ('def f():\n    """Say."""\n    return 1\n', "def f():\n    return 1\n"),
        ('def f():\n    """Say.\n\n    More.\n    """\n\n    # Why.\n    x = 1\n', "def f():\n    # Why.\n    x = 1\n"),
        ('def f():\n    r"""Say \\d."""\n    return 1\n', "def f():\n    return 1\n"),
        ("def f():\n    ('one '\n     'two')\n    return 1\n", "def f():\n    return 1\n"),
        ('def f():\n    """All there is."""\n', "def f():\n    ...\n"),
        ('def f():\n    """All\n    there is.\n    """\n\n\nx = 1\n', "def f():\n    ...\n\n\nx = 1\n"),
        ('def f(): "eᵀ"\n', "def f(): ...\n"),
        ('def f(): "Say."; return 1\n', "def f(): ...; return 1\n"),
        ('def f():\n    """Say."""  # noqa: D1\n    return 1\n', "def f():\n    ...  # noqa: D1\n    return 1\n"),
        ('def f():\n    """One."""\n    """Two."""\n    return 1\n', "def f():\n    return 1\n"),
        ('def f():\n    "One."; "Two."\n    return 1\n', "def f():\n    ...; ...\n    return 1\n"),
        ('async def f():\n    """Say."""\n    return 1\n', "async def f():\n    return 1\n"),
        (
            '@a\nclass C:\n    """Say."""\n\n    x: int = 1\n\n    @b\n    def f(self):\n        """Say."""\n\n'
            '        def g():\n            """Say."""\n            return "text"\n\n        return g\n',
            "@a\nclass C:\n    x: int = 1\n\n    @b\n    def f(self):\n        def g():\n"
            '            return "text"\n\n        return g\n',
        ),
        ('@dataclass\nclass C(B):\n    """All there is."""\n', "@dataclass\nclass C(B):\n    ...\n"),
        ('"""Of the module."""\n\n# A licence.\nx = "Say."\n', '"""Of the module."""\n\n# A licence.\nx = "Say."\n'),
        ('def f():\n    f"""{1}"""\n    return """Say."""\n', 'def f():\n    f"""{1}"""\n    return """Say."""\n'),
    ],
)  # fmt: skip
def test_docstrings_are_cut_out_as_one_would_by_hand(whole: str, left: str) -> None:
    assert without_docstrings(whole.encode()).decode() == left
    assert without_docstrings(left.encode()).decode() == left
