"""The documentation: its code runs and prints what the pages say, it covers the packages, and the site builds offline."""

import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jax
import pytest

import sim
import theory
import ufm
from sim.bridge import fetch
from sim.checks.proofs import proof
from sim.directions.estimators import WAYS
from tests.docs.running import printed_by
from theory import routes
from theory.statements import MODULE_OF

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\n+^```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)
EXTERNAL = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href|srcset)=\"(?:https?:)?//[^\"]*\"")
EXTERNAL_STYLE = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')\s]+")


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.stem)
def test_code_of_a_page_prints_what_the_page_says(page):
    """```python blocks run in order in one namespace; a ```text block right after one is what it prints."""
    text = page.read_text()
    namespace = {"__name__": page.stem}
    with jax.enable_x64(True):
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            # Newlines in front, so that a traceback points at the line of the page.
            code = compile("\n" * line + block["code"], str(page), "exec")
            assert printed_by(code, namespace) == (block["output"] or ""), f"{page.name}, line {line}"


def test_the_first_theory_of_the_readme_runs(capsys):
    (code,) = (block["code"] for block in BLOCK.finditer(README.read_text()))
    exec(compile(code, str(README), "exec"), {})
    assert "holds" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not fetch.default_model().is_file(), reason="SmolLM2 is not in the cache: ufm fetch")
@pytest.mark.parametrize(
    ("page", "count"),
    [(DOCS / "language-models.md", 2), (DOCS / "plans.md", 1), (README, 1)],
    ids=lambda x: getattr(x, "stem", None),
)
def test_code_for_the_real_model_prints_what_the_page_says(page, count):
    """```py blocks of a page that a ```text block follows: they need the default model."""
    text = page.read_text()
    lines = r"((?:(?!```).*\n)*)```\n"
    blocks = re.findall(rf"```py\n{lines}\n+```text\n{lines}", text)
    assert len(blocks) == count
    namespace: dict[str, object] = {}
    with jax.enable_x64(False):
        for code, output in blocks:
            assert printed_by(code, namespace) == output


def reference(package):
    """The reference of a package: its page, and those of the folder of its name."""
    pages = [DOCS / "reference" / f"{package.__name__}.md", *(DOCS / "reference" / package.__name__).glob("*.md")]
    return "\n".join(page.read_text() for page in pages)


@pytest.mark.parametrize("package", [ufm, theory, sim], ids=lambda p: p.__name__)
def test_every_public_module_is_in_the_reference_once(package):
    names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    documented = re.findall(r"^\.\. automodule:: (\S+)$", reference(package), re.MULTILINE)
    assert sorted(documented) == sorted(n for n in names if "._" not in n)


def test_every_name_of_sim_is_in_its_reference_once_and_not_again_with_its_module():
    text = reference(sim)
    documented = re.findall(r"^\.\. auto(?:class|function):: sim\.(\w+)$", text, re.MULTILINE)
    linked = re.findall(r"\{py:class\}`~(ufm\.\w+)\.(\w+)`", text)
    assert sorted([*documented, *(name for _, name in linked)]) == sorted(sim.__all__)
    assert all(getattr(sim, name).__module__ == module for module, name in linked)
    # A module's own section leaves out what stands above under its public name.
    options = re.findall(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", text, re.MULTILINE)
    for module, lines in options:
        home = set(dir(import_module(module))) & {n for n in documented if getattr(sim, n).__module__ == module}
        excluded = re.search(r":exclude-members: (.*)", lines)
        assert home == (set(excluded[1].split(", ")) if excluded else set()), module


@pytest.mark.parametrize("name", theory.REGISTRY)
def test_every_statement_has_its_proof_and_those_of_the_project_a_page_and_a_module_of_their_number(name):
    proof, module = theory.REGISTRY[name].proof, MODULE_OF[name].rpartition(".")[2]
    assert f"(proof-of-{name})=\n" in (DOCS / f"{proof}.md").read_text()
    if number := re.match(r"N\d+", name):
        assert proof == f"proofs/{number[0]}"
        assert module.split("_")[0] == number[0].lower()


def paragraph(name, start):
    """The paragraph of a statement's proof that begins with a bold word or two, without them and on one line."""
    known = proof(theory.REGISTRY[name])
    assert known is not None
    (found,) = re.findall(rf"^\*\*{start}\*\* ((?:.+\n?)+)", known.text, re.MULTILINE)
    return found.replace("\n", " ")


@pytest.mark.parametrize("name", theory.REGISTRY)
def test_a_proof_needs_the_hypotheses_of_its_statement(name):
    """They are A1 and A2 and what is in italics, those that only the checks ask for among them."""
    named = {plain or italic for plain, italic in re.findall(r"\b(A\d)\b|\*([\w-]+)\*", paragraph(name, "Needs"))}
    assert named == set(theory.REGISTRY[name].hypotheses)


@pytest.mark.parametrize("name", theory.REGISTRY)
def test_a_proof_lists_the_routes_of_its_statement(name):
    """In their order, up to the full stop; what each does is in parentheses."""
    listed = re.split(r"[.;]", re.sub(r"\s*\([^()]*\)", "", paragraph(name, "Checked by")))[0]
    claim = theory.REGISTRY[name].claim
    assert listed.strip().split(", ") == [route for route in routes.ROUTES if routes.applies(claim, route)]


@pytest.mark.parametrize("name", theory.REGISTRY)
def test_a_proof_has_one_false_twin(name):
    assert paragraph(name, r"False twin\.")


def test_the_table_of_directions_has_every_way():
    page = (DOCS / "directions.md").read_text()
    assert all(f"\n| `{way}` |" in page for way in WAYS)


def test_the_table_of_proofs_names_the_figures_of_statements():
    rows = [line[1:-1].split("|") for line in (DOCS / "proofs" / "index.md").read_text().splitlines()]
    cells = {row[2].strip(): row[3] for row in rows if len(row) == 4}
    for module in set(MODULE_OF.values()):
        shown = {theory.REGISTRY[name].figure for name, home in MODULE_OF.items() if home == module} - {""}
        cell = cells[f"{{py:mod}}`{module}`"]
        assert all(figure in cell for figure in shown), module
        assert bool(cell.strip()) == bool(shown), module


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_external(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "trees"]
    done = subprocess.run([*command, DOCS, tmp_path / "html"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "html").rglob("*.html"))
    styles = list((tmp_path / "html").rglob("*.css"))
    external = [m[0] for p in pages for m in EXTERNAL.finditer(p.read_text())]
    external += [m[0] for p in styles for m in EXTERNAL_STYLE.finditer(p.read_text())]
    assert not external
    statements = (tmp_path / "html" / "statements.html").read_text()
    assert statements.count('<math xmlns="') + statements.count("<math ") >= 2 * len(theory.REGISTRY)
