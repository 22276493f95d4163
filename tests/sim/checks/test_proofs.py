"""The proofs on the pages of a report: found, cut out of the documentation, and rendered with their links."""

import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from sim.checks import proofs, report
from sim.checks.markdown import to_html
from sim.checks.verify import Verdict
from tests.browser import PROGRAM, browser
from theory import REGISTRY
from theory.routes import Evidence

ROOT = Path(__file__).parents[3]

EVIDENCE = (Evidence("instances", True, 60, 0.5, 1.0),)
FELL = (Evidence("instances", False, 60, -0.5, 1.0),)


def pages(folder, names):
    """The pages of statements that hold, by file."""
    report.write_verification(folder, [Verdict(REGISTRY[name], EVIDENCE, FELL) for name in names], {})
    return {path.name: path.read_text() for path in (folder / "statements").iterdir()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of pages of all statements, and their texts."""
    folder = tmp_path_factory.mktemp("pages")
    return folder, pages(folder, REGISTRY)


@pytest.mark.parametrize("name", REGISTRY)
def test_the_proof_of_every_statement_is_on_its_page(name, written):
    html = unescape(written[1][f"{name}.html"])
    part = html[html.index('<h2 id="proof">') : html.index("<h2>Evidence</h2>")]
    assert "<strong>Claim" in part
    assert "<strong>Proof" in part
    # Nothing is left of the Markdown: no formula, role or label, and not the beginning of the next proof.
    prose = re.sub(r"<annotation.*?</annotation>|<pre>.*?</pre>", "", part, flags=re.DOTALL)
    assert not re.search(r"\$|\{(doc|ref|py:\w+)\}|\(proof-of-|\*\*|^#", prose, re.MULTILINE)
    others = [other.title for other in REGISTRY.values() if other.proof == REGISTRY[name].proof and other.id != name]
    assert all(title in html for title in others)


def test_all_links_lead_somewhere_and_nothing_is_loaded(written):
    folder, htmls = written
    for file, html in htmls.items():
        assert not re.search(r"<(link|img|script[^>]*src)\b", html), file
        for link in re.findall(r'href="([^"]+)"', html):
            if link.startswith("https://arxiv.org/"):
                continue
            path, _, anchor = link.partition("#")
            target = folder / "statements" / (path or file)
            assert target.exists(), (file, link)
            assert not anchor or f'id="{anchor}"' in target.read_text(), (file, link)
    assert 'href="N14.order.html#proof"' in "".join(htmls.values())
    assert 'href="notation.html#fact-1"' in "".join(htmls.values())


def test_no_page_is_wider_than_a_phone(written, tmp_path):
    if PROGRAM is None:
        pytest.skip("needs a browser")
    with browser(tmp_path / "profile") as page:
        for path in (written[0] / "statements").iterdir():
            page.open(path, width=390)
            assert page.value("document.documentElement.scrollWidth") <= 390, path.name
        assert page.problems == []


def test_a_statement_that_has_no_page_is_named_and_not_linked(tmp_path):
    html = pages(tmp_path, ["theorem-3.6.target"])["theorem-3.6.target.html"]
    assert "<code>theorem-3.6.limits</code> (Concepts between the extremes vanish)" in html
    assert set(re.findall(r'href="([\w.-]+\.html)', html)) == {"notation.html"}


def test_symbols_are_those_that_occur():
    notations = [symbol.notation for symbol in proofs.symbols([r"$F_C(\alpha)$ and $$\mathbb{E}_\alpha[g] \, M(z)$$"])]
    assert notations == [
        r"$\alpha$",
        "$M(z)$",
        r"$\operatorname{E}_\alpha[M]$, $\operatorname{Var}_\alpha[M]$",
        r"$F_C(\alpha)$",
    ]
    # A letter that means something else: a function g or f, a number s.
    assert [symbol.notation for symbol in proofs.symbols(["$g > 0$, $f$, $s$"])] == []
    assert [symbol.notation for symbol in proofs.symbols(["$g(j)$, $f(c_j)$"])] == ["$c_j$", "$g(j)$", "$f(c_j)$"]


def test_symbols_of_corpora_are_not_taken_for_those_behind_a_norm():
    assert [symbol.notation for symbol in proofs.symbols_of(REGISTRY["N7"])] == ["$v$", r"$\alpha$"]
    assert "$a_z$, $b_z$" in [symbol.notation for symbol in proofs.symbols_of(REGISTRY["lemma-B.4"])]


def test_words_in_a_formula_are_no_symbols():
    assert [symbol.notation for symbol in proofs.symbols([r"$x\ \text{every step of}\ y$"])] == []


def test_a_letter_that_a_proof_defines_anew_is_not_explained_by_the_glossary():
    notations = [symbol.notation for symbol in proofs.symbols_of(REGISTRY["N18"])]
    assert r"$\sigma$" not in notations
    assert "$M(z)$" in notations


def test_a_route_is_explained_before_the_table_and_the_twin_has_a_verdict(written):
    html = written[1]["N1.html"]
    table = html.index('<table class="matrix evidence">\n<thead><tr><th>route')
    assert html.index("closed forms over random instances") < table
    assert "rejected by 1 of 1 routes" in html
    assert "symbolic</dt>" not in html
    assert "the least slope of a log-odds curve" in written[1]["theorem-3.6.target.html"]


FRACTIONS, FLOATS = ", a table in fractions,", " in floats, which are exact numbers too,"


@pytest.mark.parametrize(
    ("name", "kind"), [("N1", FRACTIONS), ("N7", FLOATS), ("N14.order", FLOATS), ("N16.turns", FRACTIONS)]
)
def test_the_counterexample_of_a_twin_is_in_fractions_for_tables_only(name, kind, written):
    assert f"--twin</code> finds a counterexample{kind} and confirms it" in unescape(written[1][f"{name}.html"])


def test_a_twin_that_was_not_tried_is_said_not_to_have_been(tmp_path):
    report.write_verification(tmp_path, [Verdict(REGISTRY["N1"], EVIDENCE)], {})
    assert "It was not put to the routes" in (tmp_path / "statements" / "N1.html").read_text()
    assert "not tried" in (tmp_path / "index.html").read_text()


def test_a_page_whose_proof_is_not_at_hand_says_where_to_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(proofs, "page", lambda name: None)
    htmls = pages(tmp_path, ["N1"])
    assert "It is <code>docs/proofs/N1.md</code>" in htmls["N1.html"]
    assert "docs/proofs/" in htmls["notation.html"]


def test_markdown_of_the_documentation():
    text = (
        "# A {doc}`../idea` and {ref}`a fact <fact>`\n\n(here)=\n\n| a |\n|---|\n| $x < 1$ |\n\n{py:func}`~sim.load` <b>\n"
    )
    html = to_html(text, {"fact": "notation.html#fact"}, level=3)
    assert '<h3>A idea and <a href="notation.html#fact">a fact</a></h3>' in html
    assert '<a id="here"></a>' in html
    assert "&lt;</mo>" in html
    assert "<code>sim.load</code>" in html


def test_an_installation_brings_the_proofs_along(tmp_path):
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("ufm", "theory", "sim"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    shutil.copytree(ROOT / "docs" / "proofs", source / "docs" / "proofs")
    for name in ("pyproject.toml", "README.md", "LICENSE", "docs/glossary.md", "docs/normalised.md", "docs/practice.md"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"

    def run(*arguments, **options):
        return subprocess.run(arguments, check=True, capture_output=True, text=True, **options).stdout

    wheel = run(sys.executable, "-W", "ignore", "-c", build, tmp_path, cwd=source).splitlines()[-1]
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, tmp_path / wheel)
    shutil.rmtree(source)
    code = "from sim.checks import proofs; print(proofs.folder(), proofs.page('proofs/N2').splitlines()[0]); "
    code += "import sim.pages; assert all(map(proofs.page, sim.pages.GUIDES))"
    environment = os.environ | {"PYTHONPATH": str(target)}
    out = run(sys.executable, "-c", code, cwd=tmp_path, env=environment)
    assert out.strip() == f"{target / 'share' / 'doc' / 'ufm-steering'} # N2: the order of the peaks"
