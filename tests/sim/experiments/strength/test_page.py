"""The page of a run, the list of runs, and the commands: what they leave, and what they refuse."""

import json
import shutil
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import sim.experiments.run as run_module
from sim.cli import app
from sim.experiments.experiment import Experiment
from sim.experiments.run import as_table, prepare, tables
from sim.experiments.settings import PRESETS
from sim.experiments.store import Layout, open_store
from sim.experiments.strength import page, paper_claims
from sim.experiments.strength.in_short import BUMPS, of_run
from sim.experiments.strength.page import LEADS, summary, units, write
from tests.browser import assert_readable
from tests.sim.experiments import tiny


class Command(NamedTuple):
    """A run that a command has finished: its claims, and what the command has said."""

    experiment: Experiment
    tested: paper_claims.TestedClaims
    output: str
    error: str


@pytest.fixture(scope="module")
def command(done, lm, judge, tmp_path_factory):
    """The tiny run without its log-odds, which `ufm lm all` with the same settings computes again before the page.

    Settings that the command does not pass on would be refused.
    """
    folder, tested = tmp_path_factory.mktemp("command") / "run", []
    shutil.copytree(done.store.path / "data.zarr", folder / "data.zarr")
    shutil.rmtree(folder / "data.zarr" / "log-odds")
    changes = {name: json.dumps(value) for name, value in tiny.CHANGES.items() if name != "next_token.tokens"}
    options = [f"--set={name}={value}" for name, value in changes.items()]
    options += [f"--tokens={token}" for token in tiny.CHANGES["next_token.tokens"]]
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(False):
        patch.setattr(run_module, "load", lambda name, **options: {"tiny 0": lm, "tiny 2": judge}[name])
        patch.setattr(run_module, "read_inputs", lambda: tiny.INPUTS)
        patch.setattr(page, "write", lambda experiment: tested.append(write(experiment)) or tested[0])
        result = CliRunner().invoke(app, ["lm", "all", "--out", str(folder), "--preset", "smoke", *options])
        assert result.exit_code == 0, result.output
        return Command(tiny.start(folder, lm, judge), tested[0], result.stdout, result.stderr)


@pytest.fixture(scope="module")
def written(command):
    """The run with its page."""
    return command.experiment, command.tested


def test_the_command_foretells_the_time_and_names_the_page(command):
    trial = "ufm: all stages of the preset smoke take about two minutes with the default model on two cores"
    assert command.error.splitlines()[0] == trial
    assert command.output.splitlines()[-1] == f"open {command.experiment.store.path / 'index.html'}"
    assert f"{summary(command.tested)}\n" in command.output
    assert command.experiment.store.finished("log-odds")


def test_tokens_of_the_command_reach_the_figure(command):
    stored = command.experiment.store.data("next-token")
    drawn = page.datasets(command.experiment, {"next-token": stored})["next-token"]
    assert drawn["asked"].values.tolist() == [" sat", " animals"]
    assert np.isfinite(drawn["asked_log_p"].sel(variant="random")).all()


def test_a_page_has_every_part(written):
    experiment, tested = written
    html = (experiment.store.path / "index.html").read_text(encoding="utf-8")
    for title, _ in LEADS.values():
        assert f"<h2>{title}</h2>" in html
    for name in experiment.sets:
        assert f"<dt>{name}</dt>" in html
    for stage in ("next-token", "concept"):
        for text in experiment.store.data(stage)["text"].values:
            assert f"<li>{' '.join(str(text).split())}</li>" in html
    assert "4 texts, asked for with: " in html
    assert "<code>␣sat</code>" in html
    assert "tokens; --set" not in html
    assert "Not finished" not in html
    assert len(list((experiment.store.path / "figures").glob("*.svg"))) >= 9
    kept = json.loads((experiment.store.path / "claims.json").read_text())
    assert len(kept["claims"]) == len(tested.claims) > 40
    assert {claim["verdict"] for claim in kept["claims"]} <= {"holds", "fails", "open", "reported"}
    with xr.open_datatree(experiment.store.path / "derived.nc") as tree:
        assert set(tree.children) == set(tested.data)
    assert summary(tested).splitlines()[-1].count(",") == 2


def test_the_page_is_readable_on_a_phone_and_on_a_desk(written, window):
    assert_readable(window, written[0].store.path / "index.html")


def test_the_page_begins_with_what_was_found(written):
    experiment, tested = written
    html = (experiment.store.path / "index.html").read_text(encoding="utf-8")
    shares = [claim.value for claim in tested.claims if claim.says == "most tokens show one bump"]
    share = " to ".join(dict.fromkeys(f"{end:.0%}" for end in (min(shares), max(shares))))
    found = f"No claim could be decided. Of the likeliest tokens, {share} rise to a single peak and fall again."
    assert html.index(f"<p>{found}</p>") < html.index('<p class="lead">')


def test_what_was_found_is_told_claim_by_claim():
    def claim(says, verdict, value, **limits):
        return {"says": says, "verdict": verdict, "value": value, "least": None, "most": None, **limits}

    claims = [
        claim("it rises", "holds", 1.0, least=0.5),
        claim("it rises", "open", None, least=0.5),
        claim("it ends", "holds", 1.0, least=0.9, most=1.1),
        claim("it ends", "fails", 0.25, least=0.9, most=1.1),
        claim("it ends", "fails", 1.5, least=0.9, most=1.1),
        claim("it is so", "reported", 3.0),
        claim("it stays", "open", None, most=1.0),
    ]
    assert of_run(claims) == [
        "Held wherever it was decided: it rises.",
        "Failed: it ends (2 of 3 times: 0.25 to 1.5 where at least 0.9 and at most 1.1 is wanted).",
    ]


def test_a_share_of_bumps_is_told_unless_the_sweep_could_not_have_shown_any():
    def told(**reasons):
        claim = paper_claims.PaperClaim(
            "S, theorem 3.3", BUMPS, "joy, block 2", "share", 0.0, 0.0, 0.0, least=0.5, **reasons
        )
        return of_run([claim.as_json()])

    assert told(trial=True) == ["No claim could be decided.", told()[-1]]
    assert "Of the likeliest tokens, 0% rise" in told()[-1]
    assert told(blind="the sweep is weak", trial=True) == ["No claim could be decided."]


def test_claims_say_what_the_data_say(written):
    experiment, tested = written
    data = experiment.store.data("cross-entropy").sel(concept="joy", layer=2, text="own")
    claim = next(
        c for c in tested.claims if c.says.startswith("cross-entropy has") and c.about == "joy, block 2, own text, high end"
    )
    wanted = data["increase"].isel(strength=-1).mean() / data["plateau"].sel(side="high").mean()
    assert claim.value == pytest.approx(float(wanted), rel=1e-6)
    right = experiment.store.data("mmlu")
    share = (right["log_p"].argmax("letter") == right["answer"]).sel(concept="joy").values.reshape(3, -1)[1].mean()
    claim = next(c for c in tested.claims if c.what == "accuracy of the unsteered model" and c.about.startswith("joy"))
    assert claim.value == pytest.approx(share)
    assert claim.low < claim.value < claim.high or share in (0, 1)
    assert claim.low < 0.25 < claim.high or replace(claim, trial=False).verdict != "open"


def test_a_trial_run_says_that_it_proves_nothing(written, monkeypatch):
    experiment, tested = written
    file = experiment.store.path / "index.html"
    before = file.read_text(encoding="utf-8")
    assert "it proves nothing.</b>" in before
    assert "trial: nothing is decided" in before
    assert {claim.verdict for claim in tested.claims} == {"open", "reported"}
    assert "a trial decides nothing" in {claim.reason for claim in tested.claims}
    assert summary(tested).splitlines()[-1].startswith("0 hold, 0 fail, ")
    own = experiment.settings
    # What is asked for beside the samples does not make more of them.
    trial = replace(own, next_token=replace(own.next_token, strengths=7), concept=replace(own.concept, prompts=1))
    trial = replace(trial, cross_entropy=replace(own.cross_entropy, blocks=1), prompts=replace(own.prompts, texts=1))
    trial = replace(trial, mmlu=replace(own.mmlu, reach=own.mmlu.reach / 2))
    monkeypatch.setitem(PRESETS, "smoke", trial)
    decided = {claim.group for claim in write(experiment).claims if claim.verdict in ("holds", "fails")}
    assert decided
    assert "mmlu" not in decided
    assert "it proves nothing.</b> mmlu: computed" in file.read_text(encoding="utf-8")
    assert "trial: nothing is decided" not in file.read_text(encoding="utf-8")
    file.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("variant", ["random", "normalised"])
def test_the_page_says_what_strength_1_is(done, variant):
    run = replace(done, settings=replace(done.settings, variants=(variant,)))
    for row in units(run):
        length = np.linalg.norm(run.difference(row["concept"], row["layer"]))
        state, added = (
            run.state_length(row["concept"], row["layer"]),
            np.linalg.norm(run.vector(row["concept"], row["layer"])),
        )
        assert (added == pytest.approx(1.0, rel=1e-6)) == (variant == "normalised")
        expected = {"vector": length, "state": state, "in_vectors": added / length, "in_states": added / state}
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_an_unfinished_run_has_a_page_of_what_there_is(done, tmp_path):
    shutil.copytree(done.store.path, tmp_path / "run")
    for group in ("concept", "mmlu"):
        shutil.rmtree(tmp_path / "run" / "data.zarr" / group)

    part = replace(done, store=replace(done.store, path=tmp_path / "run"))
    tested = write(part)
    assert {claim.group for claim in tested.claims} == {"next-token", "cross-entropy"}
    assert "Not finished: concept, mmlu." in (tmp_path / "run" / "index.html").read_text(encoding="utf-8")


def test_runs_are_listed(done, tmp_path):
    (table,) = tables(done.store.path)
    assert "tiny 0 (fingerprint 0 1.0), judged by tiny 2" in table
    assert "not finished" not in table
    store = open_store(tmp_path / "other", dict(done.store.about))
    store.fill("blocks", Layout({"x": np.arange(3)}, {"y": (("x",), "float32")}, {"x": 1}), lambda cell: {"y": [1.0]})
    assert "3 of 3 cells" in as_table(store)


def test_a_damaged_run_does_not_hide_the_others(done, tmp_path):
    for name in ("damaged", "whole"):
        shutil.copytree(done.store.path, tmp_path / name)
    (tmp_path / "damaged" / "data.zarr" / "zarr.json").write_text("{")
    damaged, whole = tables(tmp_path)
    assert damaged.startswith(f"{tmp_path / 'damaged'}\n  cannot be read: ")
    assert "judged by tiny 2" in whole


def refused(*arguments):
    """What a command says of bad input."""
    result = CliRunner().invoke(app, ["lm", *arguments])
    assert isinstance(result.exception, ValueError), result.output
    return str(result.exception)


def test_commands_refuse(done, tmp_path):
    assert "folder: expected one with runs in it" in refused("show", str(tmp_path))
    assert "preset: expected one of laptop, paper, smoke" in refused(
        "all", "--out", str(tmp_path / "a"), "--preset", "small"
    )
    assert "set: expected NAME=VALUE" in refused("vectors", "--out", str(tmp_path / "a"), "--set", "seed")
    assert "set: expected one of" in refused("vectors", "--out", str(tmp_path / "a"), "--set", "next_token.stregths=3")
    assert "model: expected" in refused("prompts", "--out", str(tmp_path / "a"), "--model", str(tmp_path / "nothing"))
    assert "contexts: expected a text file" in refused("next-token", "--out", str(tmp_path / "a"), "--contexts", "none.txt")
    assert "out: expected the folder of a run" in refused("page", "--out", str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    empty = open_store(tmp_path / "empty", dict(done.store.about))
    assert "out: expected a run with something measured" in refused("page", "--out", str(empty.path))


def test_show_prints_a_run(done):
    result = CliRunner().invoke(app, ["lm", "show", str(done.store.path)])
    assert result.exit_code == 0
    assert "cross-entropy" in result.output


def test_a_run_is_gone_on_with_as_it_was(done, tmp_path):
    with pytest.raises(ValueError, match="preset: expected one of"):
        prepare(done.store.path, preset="none")
    # Its model was made in a test and has no place; everything else is read from the store.
    with pytest.raises(ValueError, match=r"model: expected .*'tiny 0'"):
        prepare(done.store.path)


def test_types_and_budget_of_a_run(done, tmp_path, monkeypatch):
    """A run that goes on computes as it did; the budget changes no number and may be another."""
    asked = []

    def load(name, *, dtype, precision, **_):
        asked.append((dtype, precision))
        return done.lm.with_dtype(dtype, precision=precision)

    monkeypatch.setattr(run_module, "load", load)
    experiment = prepare(tmp_path, model="tiny", preset="smoke", dtype="bfloat16", precision="fast", budget=1000)
    assert (experiment.lm.decoder.dtype, experiment.lm.decoder.fast, experiment.lm.memory_budget) == ("bfloat16", True, 1000)
    assert experiment.judge is experiment.lm
    assert prepare(tmp_path, model="tiny").lm.memory_budget is None
    assert set(asked) == {("bfloat16", "fast")}
    experiment.store.fill("mine", Layout({"x": [0]}, {"y": (("x",), "float32")}, {"x": 1}), lambda cell: {"y": np.ones(1)})
    with pytest.raises(ValueError, match=r"(?s)precision.*fast"):
        prepare(tmp_path, model="tiny", precision="full")
    with pytest.raises(ValueError, match=r"^budget: "):
        prepare(tmp_path, model="tiny", budget=0)
