"""Names say what they are of: no identifier of the packages is a word that stands for any of them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EMPTY = {"one", "some", "found", "given", "there", "e", "thing", "stuff", "tmp", "foo"}


def empty_names(source):
    """The names that a module gives to values, arguments and functions, of those that say nothing; with their lines."""
    for node in ast.walk(ast.parse(source)):
        stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        name = node.id if stored else getattr(node, "arg", getattr(node, "name", None))
        if isinstance(node, ast.Name | ast.arg | ast.FunctionDef | ast.ExceptHandler) and name in EMPTY:
            yield f"{name} in line {node.lineno}"


@pytest.mark.parametrize("package", ["ufm", "theory", "sim"])
def test_no_name_says_nothing(package):
    modules = sorted((ROOT / package).rglob("*.py"))
    assert len(modules) > 20
    seen = {str(path.relative_to(ROOT)): names for path in modules if (names := [*empty_names(path.read_text("utf-8"))])}
    assert seen == {}


def test_such_names_are_seen():
    source = "one = 1\ndef f(given, n):\n    for some in n: pass\n    try: return n.found\n    except ValueError as e: raise"
    assert [*empty_names(source)] == ["one in line 1", "given in line 2", "some in line 3", "e in line 5"]
