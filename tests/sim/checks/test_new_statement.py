"""A statement that is begun by the command passes the tests of a statement, in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sim import cli
from sim.checks.new_statement import _indexed, _referred, _registered, new_statement
from theory import REGISTRY

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path):
    for name in ("ufm", "theory", "sim", "docs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "_build", "*.npz")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    # Its tests find the programs of these tests compiled.
    compiled = ROOT / ".pytest_cache" / "compiled"
    compiled.mkdir(parents=True, exist_ok=True)
    (tmp_path / ".pytest_cache").mkdir()
    (tmp_path / ".pytest_cache" / "compiled").symlink_to(compiled)
    return tmp_path


def test_a_new_statement_is_complete(checkout):
    before = json.loads((checkout / "docs/data/assumption-1.json").read_text())["statements"]
    files = new_statement("my-statement", title="What I found", root=checkout)
    assert all(path.is_file() for path in files)
    after = json.loads((checkout / "docs/data/assumption-1.json").read_text())["statements"]
    assert [entry for entry in after if entry["id"] != "my-statement"] == before
    assert after[-1]["id"] == "my-statement"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(checkout)

    def run(*arguments):
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # What a statement is asked for: both verdicts, a proof, the reference, the data of assumption 1, the form of the code.
    tests = [
        *("theory/test_statements.py", "theory/test_examples.py", "docs/test_docs.py"),
        *("sim/checks/test_proofs.py", "sim/checks/test_assumption_1.py"),
    ]
    chosen = "my-statement or reference_once or table_of_proofs or every_situation or every_departure or left_over"
    out = run("pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", chosen, *(f"tests/{test}" for test in tests))
    assert int(re.search(r"^(\d+) passed", out, re.MULTILINE)[1]) >= 11, out
    run("ruff", "check", ".")
    run("ruff", "format", "--check", "theory")
    pages = checkout / "pages"
    assert "my-statement" in run("sim.cli", "verify", "my-statement", "--instances", "20", "--out", str(pages))
    assert "What I found" in (pages / "statements" / "my-statement.html").read_text()


def test_the_registry_keeps_the_order_of_imports_and_appends_to_the_modules():
    text = (ROOT / "theory/statements/__init__.py").read_text()
    for module in ("my_statement", "n99_more", "z"):
        new = _registered(text, module)
        imports = re.search(r"import \(\n(.*?)\)", new, re.DOTALL)[1].split()
        assert sorted(imports) == sorted([*re.search(r"import \(\n(.*?)\)", text, re.DOTALL)[1].split(), f"{module},"])
        assert new.count(f"    {module},\n") == 2
        assert re.search(rf"    {module},\n\)\n\nREGISTRY", new)
    # A later number than all there are.
    order = re.search(r"import \(\n(.*?)\)", _registered(text, "n99_more"), re.DOTALL)[1].split()
    numbered = [module for module in order if re.match(r"n\d", module)]
    assert numbered[-1] == "n99_more,"
    assert len(numbered) > 20


def test_pages_have_it_once():
    reference = _referred((ROOT / "docs/reference/theory.md").read_text(), "my_statement")
    assert reference.count(".. automodule:: theory.statements.my_statement\n```\n") == 1
    text = (ROOT / "docs/proofs/index.md").read_text()
    index = _indexed(text, "my-statement", "my_statement")
    assert "| my-statement | {doc}`my-statement` | {py:mod}`theory.statements.my_statement` | |\n\n" in index
    *_, last = re.search(r"```{toctree}\n(.*?)\n```", text, re.DOTALL)[1].split()
    assert f"\n{last}\nmy-statement\n```\n" in index


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("N1", "name: expected an id that no statement has, got 'N1'"),
        ("N4", "name: expected an id that no statement has, got 'N4', of N4.divergence"),
        ("My Statement", "name: expected small letters, digits and hyphens"),
        ("../x", "name: expected small letters"),
        ("class", "name: expected an id that is not a keyword of Python, got 'class'"),
        ("N99", r"name: expected the next number, N\d\d, got 'N99'"),
    ],
)
def test_names_that_do_not_fit_are_refused_and_nothing_is_written(monkeypatch, capsys, name, message):
    monkeypatch.setattr(sys, "argv", ["ufm", "new", "statement", name])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_installation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="root: expected a checkout of the project"):
        new_statement("my-statement", root=tmp_path)


@pytest.fixture
def pages(tmp_path):
    """The files of a checkout that a new statement changes, and their texts."""
    names = [
        "theory/statements/__init__.py",
        "docs/reference/theory.md",
        "docs/proofs/index.md",
        "docs/data/assumption-1.json",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path, texts_in(tmp_path)


def texts_in(folder):
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("title", ["Two\nlines", "ends in \\", 'a "quoted" word', "a tab\t"])
def test_titles_that_a_module_cannot_hold_are_refused_and_nothing_is_written(pages, title):
    root, before = pages
    with pytest.raises(ValueError, match="title: expected one line without double quotation marks and backslashes"):
        new_statement("my-statement", title=title, root=root)
    assert texts_in(root) == before


def test_a_numbered_statement_needs_a_title(pages):
    root, before = pages
    following = f"N{1 + max(int(found) for found in re.findall(r'N([0-9]+)', ' '.join(REGISTRY)))}"
    for title in ("", "ψ"):
        with pytest.raises(ValueError, match=f"title: expected a few words, for {following}"):
            new_statement(following, title=title, root=root)
    assert texts_in(root) == before


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt])
def test_a_checkout_is_as_it_was_after_a_failure(pages, monkeypatch, failure):
    root, before = pages
    written = []

    def fails(command, **_):
        written.extend(path for path, text in texts_in(root).items() if before.get(path) != text)
        (root / "docs/data/assumption-1.json").write_text("{")
        if failure is not None:
            raise failure
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr("sim.checks.new_statement.subprocess.run", fails)
    with pytest.raises(failure or ValueError):
        new_statement("my-statement", root=root)
    assert len(written) == 5
    assert texts_in(root) == before
