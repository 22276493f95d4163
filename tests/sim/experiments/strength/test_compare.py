"""Runs side by side: the same claims in one row, whatever the numbers of blocks; what cannot be compared is refused."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.experiments.strength.compare import ComparedRun, compare, names_of_layers, read_run
from sim.experiments.strength.in_short import of_runs
from sim.experiments.strength.page import write
from tests.browser import assert_readable


@pytest.fixture(scope="module")
def runs(done, tmp_path_factory):
    """The tiny run with its claims, and a copy in which one claim came out differently."""
    write(done)
    other = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(done.store.path, other)
    kept = json.loads((other / "claims.json").read_text())
    claim = next(c for c in kept["claims"] if c["says"] == "most tokens show one bump")
    claim.update(value=0.123, low=0.1, high=0.2, verdict="fails")
    kept["claims"] = [c for c in kept["claims"] if c["says"] != "the judge answers"]
    (other / "claims.json").write_text(json.dumps(kept))
    return done.store.path, other


def test_claims_stand_side_by_side(runs, tmp_path):
    page = compare(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    first, second = (read_run(path) for path in runs)
    assert f"<th>{first.name}</th><th>other</th>" in page
    assert len(first.tested) == len(json.loads((runs[0] / "claims.json").read_text())["claims"])
    rows = re.findall(r"<tr><td>.*?</tr>", page, flags=re.S)
    bumps = [
        row
        for row in rows
        if row.startswith("<tr><td>most tokens show one bump") and f"joy, block {first.layers[0]}</td>" in row
    ]
    assert "0.123" in bumps[0]
    assert "0.1 to 0.2" in bumps[0]
    (answers, *_) = [row for row in rows if row.startswith("<tr><td>the judge answers")]
    assert "not in this run" in answers
    assert set(first.claims({})) > set(second.claims({}))


def test_the_page_begins_with_what_was_found_and_is_readable_on_a_phone(runs, tmp_path, window):
    page = compare(runs, tmp_path / "page.html")
    html, first = page.read_text(encoding="utf-8"), read_run(runs[0])
    assert html.index("No claim was decided in all runs.") < html.index('<p class="lead">')
    shares = [claim["value"] for claim in first.tested if claim["says"] == "most tokens show one bump"]
    share = " to ".join(dict.fromkeys(f"{end:.0%}" for end in (min(shares), max(shares))))
    assert f"rise to a single peak and fall again: {share} in {first.name}, " in html
    assert_readable(window, page)


def test_what_was_found_in_several_runs_is_told_claim_by_claim():
    def claims(*verdicts):
        return [{"says": f"claim {k}", "verdict": verdict, "value": 0.5} for k, verdict in enumerate(verdicts)]

    runs = {"a": claims("holds", "holds", "fails", "open"), "b": claims("holds", "fails", "fails", "holds")}
    assert of_runs(runs) == [
        "Held in every run: claim 0.",
        "Failed in every run: claim 2.",
        "Held in one run and failed in another: claim 1 (holds in a, fails in b).",
    ]


def test_blocks_stand_side_by_side_in_their_order_or_by_their_depth():
    def run(layers, num_layers, *blocks):
        claims = [{"says": "rises", "about": f"joy, block {block}", "what": "rise", "verdict": "open"} for block in blocks]
        return ComparedRun("a", {"settings": {"layers": layers}}, num_layers, tuple(claims))

    alone = [run([15], 30, 15), run([10], 30, 10)]
    assert names_of_layers(alone) == [{15: "block 15 | 10"}, {10: "block 15 | 10"}]
    keys = [list(each.claims(names)) for each, names in zip(alone, names_of_layers(alone), strict=True)]
    assert keys[0] == keys[1] == [("rises", "joy, block 15 | 10", "rise")]
    assert names_of_layers([run([7, 15], 30), run([15, 7], 30)]) == [{7: "block 7", 15: "block 15"}] * 2
    small, large = run([3, 6, 11], 12), run([16], 32, 16)
    names = names_of_layers([small, large])
    assert names[0] == {3: "early", 6: "middle", 11: "last"}
    assert list(large.claims(names[1])) == [("rises", "joy, middle", "rise")]


def test_the_command_writes_the_page(runs, tmp_path):
    result = CliRunner().invoke(app, ["lm", "compare", *map(str, runs), "--out", str(tmp_path / "a" / "b.html")])
    assert result.exit_code == 0
    assert (tmp_path / "a" / "b.html").is_file()


def test_a_name_without_an_ending_gets_one(runs, tmp_path):
    assert compare(runs, tmp_path / "cmp") == tmp_path / "cmp.html"
    assert (tmp_path / "cmp.html").is_file()


def test_a_folder_is_no_page(runs, tmp_path):
    with pytest.raises(ValueError, match=r"^out: expected a file to write, got the folder"):
        compare(runs, tmp_path)


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"^folders: .*got 1"):
        compare(runs[:1], tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"^folders: expected different runs"):
        compare([runs[0], runs[0]], tmp_path / "page.html")
    untested = tmp_path / "untested"
    shutil.copytree(runs[0], untested)
    (untested / "claims.json").unlink()
    with pytest.raises(ValueError, match=r"^folders: .*ufm lm page"):
        compare([runs[0], untested], tmp_path / "page.html")
    (untested / "claims.json").write_text('{"claims": [{"value": 1.0, "error": 0.1}]}')
    with pytest.raises(ValueError, match=r"^folders: .*version.*untested"):
        compare([runs[0], untested], tmp_path / "page.html")
    (untested / "claims.json").write_text("{")
    with pytest.raises(ValueError, match=r"^folders: "):
        compare([runs[0], untested], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
