"""What `ufm reproduce` leaves: the numbers it is judged by, the data, the figures and the page."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from sim.checks import report
from sim.checks.refute import replay
from sim.checks.validation import Finding, Validation
from sim.checks.verify import DEFAULT_ROUTES, as_json, as_table, verify
from sim.figures import FIGURES
from sim.reproduction import reproduce, write_choice
from tests.browser import assert_readable, loaded
from tests.sim.bridge.test_model import letters
from theory import REGISTRY
from theory.routes import applies

SOME = ("theorem-3.6.target", "theorem-3.8", "N1", "N7")
"""The statements of the run: one of each kind."""

pytestmark = pytest.mark.xdist_group("reproduction")


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory):
    """A run with few random instances, and its folder."""
    folder = tmp_path_factory.mktemp("out")
    return reproduce(folder, seed=1, instances=60, statements=SOME, model=str(folder / "nowhere.gguf")), folder


def test_statements_hold(reproduction):
    result, _ = reproduction
    assert result.holds
    assert [verdict.statement.id for verdict in result.verdicts] == list(SOME)


@pytest.mark.slow
def test_every_statement_holds_by_every_route_and_every_twin_is_rejected():
    # Enough for twins that are wrong on one table in twenty.
    verdicts = verify(seed=1, instances=200, twins=True)
    assert [verdict.statement.id for verdict in verdicts] == list(REGISTRY)
    assert [verdict.statement.id for verdict in verdicts if not verdict.holds] == []


def test_a_short_run_rejects_a_twin_that_is_wrong_on_few_instances():
    (verdict,) = verify(["theorem-3.6.limits"], instances=5, names=["instances"], twins=True)
    assert verdict.holds
    assert [(found.checked > 100, found.holds) for found in verdict.twin] == [(True, False)]


def test_the_table_shows_statements_and_their_twins(reproduction):
    lines = as_table(reproduction[0].verdicts).splitlines()
    for name in SOME:
        row = next(k for k, line in enumerate(lines) if line.startswith(name))
        assert "FAILS" not in lines[row]
        assert lines[row + 1].startswith("  false twin")
        assert "HOLDS" not in lines[row + 1]
        assert lines[row].count("holds") >= lines[row + 1].count("fails") >= 3
    assert any("every route has to" in line for line in lines)


def test_the_page_begins_with_what_was_found(reproduction):
    result, folder = reproduction
    page = (folder / "index.html").read_text(encoding="utf-8")
    lines = report.in_short(result.verdicts, result.numbers)
    assert "All 4 statements held" in lines[0]
    assert all(f"<li>{line}</li>" in page for line in lines)
    wrong = [replace(verdict, evidence=(replace(verdict.evidence[0], holds=False),)) for verdict in result.verdicts[:1]]
    assert "1 of 1 statements did not hold: theorem-3.6.target." in report.in_short(wrong, result.numbers)[0]
    bumps = [Finding("theorem-3.3.bump", "joy", "share of tokens with one bump", share) for share in (0.25, 0.5)]
    on_model = Validation("tiny", (*bumps, Finding("N7", "joy", "an error", 0.1, 1.0)), xr.DataTree())
    last = report.in_short(result.verdicts, result.numbers, on_model)[-1]
    assert last.startswith("On tiny: 1 of 1 comparisons hold.")
    assert "25% to 50% of the likeliest tokens rise to a single peak" in last


def test_numbers(reproduction):
    numbers = json.loads((reproduction[1] / "numbers.json").read_text())
    assert abs(numbers["entropy"] - 1.3317848910419796) < 1e-12
    assert 0 <= numbers["gap"] < 1e-20
    for agreement in numbers["agreement"].values():
        assert agreement["probability"] < 1e-6
        assert agreement["peak_steps"] <= 1
        assert agreement["peaks"] > 0
    assert numbers["settings"]["seed"] == 1


def test_verdicts_have_the_documented_form(reproduction):
    verdicts = json.loads((reproduction[1] / "verdicts.json").read_text())
    assert set(verdicts) == {"version", "seed", "holds", "statements"}
    assert verdicts["holds"] is True
    for statement in verdicts["statements"]:
        assert set(statement) == {"id", "source", "holds", "outcome", "routes", "twin"}
        claim = REGISTRY[statement["id"]].claim
        assert [result["route"] for result in statement["routes"]] == [
            route for route in DEFAULT_ROUTES if applies(claim, route)
        ]
        for route in statement["routes"]:
            assert set(route) == {"route", "holds", "outcome", "instances", "worst_margin", "seconds", "note"}
            assert route["instances"] > 0
            assert (route["holds"], route["outcome"]) == (True, "holds")
            assert (route["worst_margin"] is None) == (route["route"] == "symbolic")
            assert route["worst_margin"] is None or route["worst_margin"] > 0
        twin = REGISTRY[statement["id"]].twin
        assert [result["route"] for result in statement["twin"]] == [
            route for route in DEFAULT_ROUTES if applies(twin, route)
        ]
        for route in statement["twin"]:
            assert (route["holds"], route["outcome"]) == (False, "fails")
            assert route["instances"] > 0


def test_worst_instances_are_kept_and_replayed(reproduction):
    folder = reproduction[1] / "instances"
    for name in ("theorem-3.8.instances", "N7.autodiff", "N1.twin.certificate"):
        assert replay(folder / f"{name}.json").stands
    kept = {path.stem for path in folder.iterdir()}
    for name in SOME:
        assert {f"{name}.instances", f"{name}.autodiff", f"{name}.twin.instances"} <= kept


def test_every_statement_has_a_page(reproduction):
    folder = reproduction[1] / "statements"
    assert {path.stem for path in folder.iterdir()} == {*SOME, "notation"}
    for path in folder.iterdir():
        html = path.read_text()
        assert html.count("<math") >= 2
        for link in re.findall(r'(?:href|src)="([^"#]+)', html):
            assert (folder / link).exists() or link.startswith("https://arxiv.org/"), link


def test_a_failing_route_fails_the_whole(reproduction):
    result, _ = reproduction
    broken = [*result.verdicts[:-1], type(result.verdicts[-1])(result.verdicts[-1].statement, ())]
    assert as_json(broken, 0)["holds"] is False


def test_data_opens_as_labelled_arrays(reproduction):
    with xr.open_datatree(reproduction[1] / "toy.nc", engine="h5netcdf") as tree:
        assert {figure.dataset for figure in FIGURES.values()} == set(tree.children)
        curves = tree["next-token-curves"].to_dataset()
        assert curves["predicted"].dims == ("alpha", "token")
        np.testing.assert_allclose(curves["measured"], curves["predicted"], atol=1e-9)
        assert tree.attrs["seed"] == "1"
        inner = np.isfinite(curves["peak"])
        assert inner.sum() == 7
        for token in curves.isel(token=np.flatnonzero(inner))["token"].values:
            curve = curves.sel(token=token)
            top = float(curve["alpha"][int(curve["measured"].argmax("alpha"))])
            assert abs(top - float(curve["peak"])) <= 0.05


def test_concept_behaviours_are_all_shown(reproduction):
    concepts = reproduction[0].data["concept-curves"].to_dataset()
    assert sorted(concepts["behaviour"].values) == ["decreasing", "target", "vanishing"]
    vanishing = concepts.isel(concept=int(np.flatnonzero(concepts["behaviour"] == "vanishing")[0]))
    np.testing.assert_allclose(vanishing["measured"][[0, -1]], float(vanishing["limit"]), atol=1e-3)
    assert float(vanishing["limit"]) == pytest.approx(-0.95 / 3)


def test_quadratic_touches_the_cross_entropy_at_zero(reproduction):
    data = reproduction[0].data["cross-entropy"].to_dataset().sel(alpha=[-0.01, 0.01], method="nearest")
    np.testing.assert_allclose(data["measured"], data["quadratic"], rtol=2e-3)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_figures_are_whole_files(reproduction, name, kind):
    content = (reproduction[1] / "figures" / f"{name}.{kind}").read_bytes()
    start = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}[kind]
    assert content.startswith(start)
    assert len(content) > 5_000


def test_page_needs_nothing_but_itself(reproduction):
    result, folder = reproduction
    html = result.page.read_text()
    assert loaded(html) == []
    assert html.count("data:image/svg+xml;base64,") == len(FIGURES)
    assert "<math" in html
    for statement in SOME:
        assert f"statements/{statement}.html" in html
    for link in re.findall(r'href="([^"#]+)"', html):
        assert (folder / link).exists() or link.startswith("https://arxiv.org/abs/"), link


def test_a_model_that_cannot_be_loaded_is_missed_on_the_page(reproduction):
    result, folder = reproduction
    assert result.holds
    assert result.on_model is None
    assert result.missing.startswith("model: expected a folder, a GGUF file, smollm2-135m-instruct or a repository id")
    html = result.page.read_text()
    assert "The language model could not be loaded" in html
    assert "nowhere.gguf" in html
    assert not (folder / "language-model.html").exists()
    assert result.choice is None
    assert "choosing/" not in html


def test_a_reproduction_ends_with_a_choice(small, tmp_path):
    lm = replace(small("llama"), tokenizer=letters())
    page = write_choice(lm, tmp_path / "choosing", prompts=2, horizon=3)
    assert page == tmp_path / "choosing" / "index.html"
    assert "How hard to push joy" in page.read_text()
    assert (tmp_path / "choosing" / "choice.nc").exists()


@pytest.mark.parametrize(("value", "verdict"), [(1e-12, "1 of 1 comparisons hold"), (0.1, "0 of 1 comparisons hold")])
def test_the_first_page_shows_a_language_model(reproduction, tmp_path, value, verdict):
    result, folder = reproduction
    findings = (Finding("N7", "joy, block 3", "an error", value, 1e-10), Finding("N7", "joy, block 3", "a number", 4.0))
    figures = {name: {"svg": folder / "figures" / f"{name}.svg"} for name in FIGURES}
    validation = Validation("small", findings, xr.DataTree())
    page = report.write(tmp_path, result.verdicts, figures, {}, result.numbers, 1.0, on_model=validation, choice=True)
    assert verdict in page.read_text()
    assert 'href="language-model.html"' in page.read_text()
    assert 'href="choosing/index.html"' in page.read_text()
    assert "N7" in report.write_language_model(tmp_path, validation, {}).read_text()
    assert replace(result, on_model=validation).holds is (value < 1e-10)


def test_pages_are_readable_on_a_phone_and_on_a_desk(reproduction, tmp_path, window):
    result, folder = reproduction
    assert_readable(window, result.page)
    for width in (390, 1280):
        for path in (*(folder / "statements").iterdir(), *(folder / "guide").iterdir()):
            window.open(path, width=width)
            assert window.value("document.documentElement.scrollWidth") <= width, path
        # A picture of a statement is as large as it was drawn, or fills its column, and leads to its file.
        window.open(folder / "statements" / "N7.html", width=width)
        link, shown, natural = window.value(
            "[document.querySelector('figure a > img')].map(one => [one.parentNode.href, one.width, one.naturalWidth])[0]"
        )
        assert link.endswith("/figures/arc.svg")
        assert width > 390 or shown >= natural
    figures = {name: {"svg": folder / "figures" / "arc.svg"} for name in report.FIRST}
    findings = (Finding("N7", "joy, block 3", "an error", 1e-12, 1e-10), Finding("N7", "joy, block 3", "a number", 4.0))
    page = report.write_language_model(tmp_path, Validation("small", findings, xr.DataTree()), figures)
    assert_readable(window, page)


def test_the_glossary_and_what_to_do_lead_to_the_statements_that_have_pages(reproduction):
    folder = reproduction[1] / "guide"
    practice = (folder / "practice.html").read_text(encoding="utf-8")
    assert "<h1>What to do with α</h1>" in practice
    assert 'href="../statements/N7.html#proof"' in practice
    assert "N15.html" not in practice
    assert "<dt>efficiency</dt>" in (folder / "glossary.html").read_text(encoding="utf-8")
    for path in folder.iterdir():
        html = path.read_text(encoding="utf-8")
        assert loaded(html) == []
        assert "{doc}" not in html
        for link in re.findall(r'href="([^"#]+)"', html):
            assert (folder / link).exists() or link.startswith("https://arxiv.org/abs/"), link


@pytest.mark.parametrize(
    ("value", "first"),
    [
        (1e-12, "What the theory says of any decoder held wherever it was looked at: 1 of 1 comparisons hold."),
        (0.1, "1 of 1 comparisons failed: N7 (joy, block 3: an error, 0.1 where 1e-10 is allowed)."),
    ],
)
def test_the_page_of_a_language_model_begins_with_what_was_found(tmp_path, value, first):
    bumps = [Finding("theorem-3.3.bump", "joy", "share of tokens with one bump", share) for share in (0.25, 0.5)]
    findings = (*bumps, Finding("N7", "joy, block 3", "an error", value, 1e-10))
    html = report.write_language_model(tmp_path, Validation("small", findings, xr.DataTree()), {}, alone=True).read_text()
    assert html.index(first) < html.index('<p class="lead">')
    assert "25% to 50% of the likeliest tokens rise to a single peak" in html


def test_nothing_temporary_is_left(reproduction):
    assert not list(reproduction[1].rglob(".*"))


def test_same_seed_same_data(reproduction):
    from sim.checks.verify import train_examples
    from sim.toy import curves as toy

    trained = train_examples(1, ["default", "toy"])
    again = toy.run(trained["default"], trained["toy"], seed=1)
    xr.testing.assert_identical(
        again["next-token-curves"].to_dataset(), reproduction[0].data["next-token-curves"].to_dataset()
    )
