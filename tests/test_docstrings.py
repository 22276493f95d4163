"""Docstrings begin with a sentence, tell of arguments, results and errors, and hold no code and nothing cut off."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sim
import theory
import ufm

ROOT = Path(ufm.__file__).parents[1]
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
    for package in (ufm, theory, sim)
    for path in sorted(Path(package.__file__).parent.rglob("*.py"))
}
SECTIONS = ("Args", "Attributes", "Returns", "Raises")
SIMPLE = (ast.Assign, ast.AugAssign, ast.Return, ast.Import, ast.ImportFrom, ast.Assert, ast.Raise, ast.Delete)
COMPOUND = re.compile(r"(for|if|elif|while|with|def|class|try|except|else)\b.*:$")
MANY = 5
"""So many arguments need a section, unless the text says whose they are."""

Definition = ast.FunctionDef | ast.ClassDef


def faults(source: str) -> Iterator[str]:
    """What is wrong with the docstrings of a module, with the names they belong to."""
    for name, node in definitions(ast.parse(source)):
        text, private = ast.get_docstring(node), any(part.startswith("_") for part in name.split("."))
        if text:
            result = [*faults_of_text(text, is_module=isinstance(node, ast.Module))]
            result += [] if private else faults_of_contents(node, text)
        else:
            result = [] if private else ["has no docstring"]
        yield from (f"{name} {fault}" for fault in result)


def definitions(node: ast.Module | Definition, path: str = "") -> Iterator[tuple[str, ast.Module | Definition]]:
    """A module, and every function, class and method of it, by name."""
    if isinstance(node, ast.Module):
        yield "the module", node
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield path + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from definitions(child, f"{path}{child.name}.")


def faults_of_text(text: str, *, is_module: bool) -> Iterator[str]:
    """Whether a docstring is whole: a first sentence, sections that are known and say something, an end, no code."""
    first = text.split("\n\n")[0].strip()
    if not first.endswith((".", ":")) or len(re.findall(r"\w+", first)) < 3 or re.match(r"The same\b", first):
        yield f"does not begin with a sentence: {first}"
    if not (is_module or text.rstrip().endswith((".", ".)", ":", "``"))) or odd(text):
        yield "is cut off"
    if not is_module:  # there, formulas stand by themselves
        yield from (f"has code: {line.strip()}" for line in text.splitlines() if is_code(line.strip()))
    yield from (f"has an unknown section: {name}" for name in re.findall(r"^(\w+):$", text, re.M) if name not in SECTIONS)
    for name, entries in sections(text).items():
        if not entries or not all(said for _, said in entries):
            yield f"says nothing under {name}"


def faults_of_contents(node: ast.Module | Definition, text: str) -> Iterator[str]:
    """Whether a docstring tells of all arguments or attributes, of results that are several, of errors."""
    told = {name: {part for head, _ in entries for part in head.split(", ")} for name, entries in sections(text).items()}
    if isinstance(node, ast.FunctionDef) and not any(
        "command" in ast.unparse(decorator) for decorator in node.decorator_list
    ):
        args = node.args
        every = [
            *args.posonlyargs,
            *args.args,
            *args.kwonlyargs,
            *(argument for argument in (args.vararg, args.kwarg) if argument),
        ]
        arguments = {argument.arg for argument in every} - {"self", "cls"}
        if "Args" in told and told["Args"] != arguments:
            yield f"has other arguments than it tells of: {sorted(told['Args'] ^ arguments)}"
        if "Args" not in told and len(arguments) >= MANY and not re.search(r"[Aa]rguments|[Aa]s (for )?`", text):
            yield f"tells of none of its arguments {sorted(arguments)}"
        if "Returns" not in told and several(node.returns) and not re.search(r", | and ", text):
            yield "does not tell its results apart"
        if "Raises" not in told and refuses(node) and not re.search(r"[Ee]rrors|[Rr]efuse|``ValueError", text):
            yield "does not tell of its errors"
    if isinstance(node, ast.ClassDef) and is_record(node):
        fields = {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
        fields = {name for name in fields if not name.startswith("_")}
        if told.get("Attributes", set()) != fields and ("Attributes" in told or len(fields) > 2):
            yield f"has other attributes than it tells of: {sorted(told.get('Attributes', set()) ^ fields)}"


def odd(text: str) -> bool:
    """Whether a bracket or a backtick is left open; half-open intervals are not."""
    text = re.sub(r"[(\[][^()\[\]]*, [^()\[\]]*[)\]]", "", re.sub(r"``.*?``", "", text, flags=re.S))
    return text.count("`") % 2 == 1 or text.count("(") != text.count(")")


def is_code(line: str) -> bool:
    """Whether a line is a statement of Python."""
    try:
        body = ast.parse(line).body
    except (SyntaxError, ValueError):
        return bool(COMPOUND.match(line))
    return any(
        isinstance(statement, SIMPLE) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call))
        for statement in body
    )


def sections(text: str) -> dict[str, list[tuple[str, str]]]:
    """The sections of a docstring, each as pairs of what an entry is about and what it says."""
    result: dict[str, list[tuple[str, str]]] = {}
    current = None
    for line in text.splitlines():
        if not line.startswith(" ") and line.strip():
            name = line.rstrip().removesuffix(":")
            current = result.setdefault(name, []) if name in SECTIONS and line.endswith(":") else None
        elif current is not None and line.strip():
            if line.startswith("     ") and current:
                head, said = current[-1]
                current[-1] = head, f"{said} {line.strip()}"
            else:
                head, _, said = line.strip().partition(":")
                current.append((head, said.strip() or ("" if line.endswith(":") else head)))
    return result


def several(returns: ast.expr | None) -> bool:
    """Whether a function returns several things that have no names."""
    if isinstance(returns, ast.BinOp):  # or None
        return several(returns.left)
    words = "" if returns is None else ast.unparse(returns)
    return words.startswith("tuple[") and "..." not in words and isinstance(returns.slice, ast.Tuple)


def refuses(node: ast.FunctionDef) -> bool:
    """Whether a function raises something or requires it, functions inside it left aside."""
    inside = {
        id(x)
        for child in ast.walk(node)
        if isinstance(child, ast.FunctionDef) and child is not node
        for x in ast.walk(child)
    }
    own = [child for child in ast.walk(node) if id(child) not in inside]
    calls = [child.func.id for child in own if isinstance(child, ast.Call) and isinstance(child.func, ast.Name)]
    return "require" in calls or any(isinstance(child, ast.Raise) and child.exc is not None for child in own)


def is_record(node: ast.ClassDef) -> bool:
    """Whether a class is a dataclass or a named tuple."""
    words = [ast.unparse(expression) for expression in (*node.decorator_list, *node.bases)]
    return any("dataclass(" in word or word in ("dataclass", "NamedTuple") for word in words)


@pytest.mark.parametrize("name", FILES)
def test_docstrings_say_what_they_have_to(name):
    assert list(faults(FILES[name].read_text(encoding="utf-8"))) == []


GOOD = """Add two numbers (or none) in [0, 1).

Args:
    a, b: what is added, which
        may take a second line.

Returns:
    The sum.

Raises:
    ValueError: a negative number.
"""
BAD = {
    "begin": ("Add two numbers (or none) in [0, 1).", "The same."),
    "arguments": ("a, b: what", "a: what"),
    "says nothing": ("The sum.", ""),
    "cut off": ("or none)", "or none"),
    "has code": ("    The sum.", "    total = a + b"),
    "unknown section": ("Returns:", "Return:"),
    "errors": ("Raises:\n    ValueError: a negative number.", ""),
    "apart": ("Returns:\n    The sum.", ""),
}


def with_docstring(text):
    indented = text.replace("\n", "\n    ")
    body = f'def add(a, b) -> tuple[int, int]:\n    """{indented}"""\n    require(a, b)\n'
    return f'"""A module that adds."""\n{body}'


@pytest.mark.parametrize("fault", BAD)
def test_faults_of_docstrings_are_found(fault):
    good, bad = BAD[fault]
    assert list(faults(with_docstring(GOOD))) == []
    assert good in GOOD
    text = GOOD.replace(good, bad)
    if fault == "apart":
        text = text.replace("a, b: what is added, which", "a: one.\n    b: another,").replace(", ", " or ")
    assert any(fault in line for line in faults(with_docstring(text)))


@pytest.mark.parametrize("package", [ufm, theory], ids=["ufm", "theory"])
def test_exports(package):
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert (value.__doc__ or "").strip(), name
