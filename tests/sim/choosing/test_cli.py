"""The command `ufm choose` as a user meets it, and the benchmark of ways to choose."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import sim
from sim import bench_choosing
from sim.bench_choosing import WAYS, ChoiceOutcome, OutcomeFile, Trial, as_table, figures, prompts
from sim.choosing import request
from sim.choosing.criteria import statistic
from sim.choosing.mix import mix
from sim.choosing.rollouts import Effects, Rollouts
from sim.directions.opinions import Shows
from sim.directions.vector import ModelTag
from tests.sim.bridge.test_model import letters
from tests.sim.test_cli import run

RNG = np.random.default_rng(3)
PROMPTS = ["ABCDE", "FGH", "CABBED"]


@pytest.fixture
def lm(small):
    return replace(small("llama"), tokenizer=letters())


@pytest.fixture
def folder(tmp_path, monkeypatch, lm):
    """The folder that commands run in, with a vector, prompts and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sim.bridge.model.load", lambda *_, **__: lm)
    sim.write_vector(sim.SteeringVector({0: RNG.normal(size=32), 1: RNG.normal(size=32)}, "joy"), "joy.safetensors")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    return tmp_path


def asked(monkeypatch, capsys, *options):
    return run(monkeypatch, capsys, "choose", "--vector", "joy.safetensors", "--horizon", "4", *options)


def test_the_answer_is_that_of_python(folder, monkeypatch, capsys, lm):
    options = ("--prompts", "prompts.txt", "--layer", "1", "--budget", "0.05", "--json", "new/choice.json", "--per-prompt")
    code, out, _ = asked(monkeypatch, capsys, *options, "--fold", "chosen.safetensors")
    vector = sim.read_vector("joy.safetensors")
    expected = sim.choose(lm, vector, PROMPTS, layer=1, budget=0.05, horizon=4)
    assert code == 0
    result = json.loads((folder / "new" / "choice.json").read_text())
    assert result["alpha"] == pytest.approx(expected.alpha, rel=1e-6)
    assert f"alpha {expected.alpha:.4g} at block 1" in out
    assert "prompt\n" in out
    folded = sim.read_vector("chosen.safetensors")
    assert folded.layers == (1,)
    np.testing.assert_allclose(folded[1], expected.alpha * vector[1], rtol=1e-5)


def test_the_statistic_counts_for_the_budget_that_is_meant(folder, monkeypatch, capsys, lm):
    """One nat, if nothing is asked for; the statistic is not that of a budget that is named alone."""
    options = ("--prompts", "prompts.txt", "--layer", "1", "--json", "choice.json")
    found = {}
    for name in ("mean", "max"):
        code, _, _ = asked(monkeypatch, capsys, *options, "--statistic", name)
        assert code == 0
        found[name] = json.loads((folder / "choice.json").read_text())
        expected = sim.choose(lm, sim.read_vector("joy.safetensors"), PROMPTS, layer=1, of=name, horizon=4)
        assert found[name]["alpha"] == pytest.approx(expected.alpha, rel=1e-6)
        assert (found[name]["settings"]["budget"], found[name]["settings"]["statistic"]) == (1.0, name)
    assert found["max"]["alpha"] < found["mean"]["alpha"]


def test_prompts_may_be_lines_of_json(folder, monkeypatch, capsys):
    rows = [json.dumps({"prompt": PROMPTS[0], "id": 1}), json.dumps({"text": PROMPTS[1]}), json.dumps(PROMPTS[2])]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    (folder / "objects.txt").write_text("\n".join(rows[:2]))
    (folder / "braces.txt").write_text("{A line} of text\n[another\n")
    assert request.prompts_of(None, folder / "prompts.jsonl") == PROMPTS
    assert request.prompts_of(None, folder / "objects.txt") == PROMPTS[:2]
    assert request.prompts_of(None, folder / "braces.txt") == ["{A line} of text", "[another"]
    (folder / "spaces.txt").write_text('{ "prompt": "A"}\n{"text" : "B"}\n')
    (folder / "list.json").write_text(json.dumps([PROMPTS[0], {"prompt": PROMPTS[1]}], indent=1))
    assert request.prompts_of(None, folder / "spaces.txt") == ["A", "B"]
    assert request.prompts_of(None, folder / "list.json") == PROMPTS[:2]
    for name, written, words in (
        ("list.json", '["A", 3]', "got 3 in entry 1 of list.json"),
        ("list.json", "[]", "at least one, got an empty list in list.json"),
        ("half.jsonl", '"A"\n"\\ud83d"', "lone surrogate .* in line 2 of half.jsonl"),
        ("half.json", '["\\ud83d"]', "lone surrogate .* in entry 0 of half.json"),
        ("comma.json", '[\n "A",\n "B",\n]', "a list in JSON, whole.* got something else in comma.json"),
        ("object.json", '{\n "prompts": ["A"]\n}', "a list in JSON, whole.* got something else in object.json"),
    ):
        (folder / name).write_text(written)
        with pytest.raises(ValueError, match=f"^prompts: .*{words}"):
            request.prompts_of(None, folder / name)
    (folder / "prompts.jsonl").write_text('{"prompt": "A"}\n{"question": "B"}\n')
    code, _, err = asked(monkeypatch, capsys, "--prompts", "prompts.jsonl")
    assert code == 2
    assert err.startswith("ufm: prompts: expected a text, or an object with a text as 'prompt' or 'text', got {'question'")
    assert "2" in err


def test_tokens_that_nobody_named_are_said_to_be_guessed(folder, monkeypatch, capsys):
    options = ("--prompts", "prompts.txt", "--layer", "1", "--budget", "0.05", "--json", "choice.json")
    _, out, _ = asked(monkeypatch, capsys, *options)
    result = json.loads((folder / "choice.json").read_text())
    assert "taken for the concept's tokens, as steering promotes them most: " in out
    assert len(result["words"]) == len(result["tokens"])
    assert result["settings"]["tokens"] == "promoted"
    assert result["settings"]["fingerprint"] is not None
    assert f"on text that the model steered at {result['written_at']:.4g} wrote" in out
    assert any(point["on"] == result["written_at"] and point["alpha"] == result["alpha"] for point in result["points"])
    _, out, _ = asked(monkeypatch, capsys, *options, "--tokens", "A")
    assert "taken for" not in out
    assert json.loads((folder / "choice.json").read_text())["settings"]["tokens"] == "given"


def test_each_step_is_a_line_for_a_log(folder, monkeypatch, capsys):
    code, out, err = asked(monkeypatch, capsys, "--prompts", "prompts.txt", "--budget", "0.05", "--horizon", "8")
    lines = err.splitlines()
    assert code == 0
    assert all(line.startswith("ufm: ") for line in lines)
    assert lines[0].startswith("ufm: 2 blocks compared")
    assert re.search(r"block \d \(of 0 to 2\): the first guess is strength \d", lines[1])
    written = [float(number) for number in re.findall(r"of 8 tokens a prompt, written at \S+, asks for (\S+)", err)]
    chosen = re.search(r"alpha (\S+) at block", out)
    assert chosen is not None
    assert float(chosen[1]) in written


def test_a_bare_direction_needs_a_layer(folder, monkeypatch, capsys):
    np.save("bare.npy", np.asarray(sim.read_vector("joy.safetensors")[1]))
    options = ("choose", "--vector", "bare.npy", "--horizon", "4", "--prompts", "prompts.txt", "--budget", "0.05")
    code, out, _ = run(monkeypatch, capsys, *options, "--layer", "1")
    assert code == 0
    assert "at block 1" in out
    code, _, err = run(monkeypatch, capsys, *options)
    assert code == 2
    assert err.startswith("ufm: layer: expected")
    code, _, err = run(monkeypatch, capsys, *options, "--layer", "9")
    assert code == 2
    assert err.startswith("ufm: ")


def test_a_vector_for_other_weights_is_taken_if_that_is_said(folder, monkeypatch, capsys, lm):
    other = sim.read_vector("joy.safetensors")
    tag = replace(ModelTag.of(lm), fingerprint="another")
    sim.write_vector(replace(other, model=tag), "joy.safetensors")
    options = ("--prompts", "prompts.txt", "--layer", "1", "--budget", "0.05")
    code, _, err = asked(monkeypatch, capsys, *options)
    assert (code, "--other-weights" in err) == (2, True)
    code, out, _ = asked(monkeypatch, capsys, *options, "--other-weights")
    assert code == 0
    assert out.startswith("alpha ")


@pytest.mark.parametrize("name", ["joy.gguf", "joy.GGUF"])
def test_a_block_that_the_file_cannot_name_is_refused_before_the_search(folder, monkeypatch, capsys, name):
    monkeypatch.setattr("sim.bridge.model.load", None)
    options = ("--prompts", "prompts.txt", "--layer", "0", "--out", "page", "--fold", name)
    code, _, err = asked(monkeypatch, capsys, *options)
    assert code == 2
    assert err.startswith("ufm: fold: expected a block from 1 on")
    assert not (folder / "page").exists()


def test_a_path_that_is_too_long_is_a_line(folder, monkeypatch, capsys):
    code, _, err = asked(monkeypatch, capsys, "--prompts", "a prompt that is no file " * 20)
    assert code == 2
    assert err.startswith("ufm: ")


def test_away_from_concepts_the_share_of_what_that_promotes_rises(folder, monkeypatch, capsys, lm):
    vectors = {name: sim.SteeringVector({1: RNG.normal(size=32)}, name) for name in ("joy", "optimistic")}
    monkeypatch.setattr("sim.choosing.request.make_vector", lambda *_, name, **__: vectors[name])
    options = ("--concept", "joy", "--concept", "optimistic", "--prompts", "prompts.txt", "--layer", "1", "--budget", "0.05")
    code, _, _ = run(monkeypatch, capsys, "choose", "--horizon", "4", *options, "--away", "--json", "away.json")
    result = json.loads((folder / "away.json").read_text())
    assert code == 0
    assert result["alpha"] < 0
    assert result["settings"]["tokens"] == "promoted"
    assert result["share"]["after"] > result["share"]["before"]


def test_the_layer_is_chosen_too(folder, monkeypatch, capsys):
    code, out, _ = asked(monkeypatch, capsys, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--budget", "0.05")
    assert code == 0
    assert "block  rho^2, -: share falls" in out


def test_several_concepts_are_mixed(folder, monkeypatch, capsys, lm):
    vectors = {name: sim.SteeringVector({1: RNG.normal(size=32)}, name) for name in ("joy", "optimistic")}
    monkeypatch.setattr("sim.choosing.request.make_vector", lambda *_, name, **__: vectors[name])
    options = ("--concept", "joy", "--concept", "optimistic", "--prompts", "prompts.txt", "--layer", "1", "--budget", "0.05")
    code, out, _ = run(monkeypatch, capsys, "choose", "--horizon", "4", *options, "--json", "mix.json")
    mixed = mix(lm, list(vectors.values()), PROMPTS)
    expected = sim.choose(lm, mixed.vector, PROMPTS, layer=1, tokens=mixed.tokens, budget=0.05, horizon=4)
    assert code == 0
    assert out.startswith(f"alpha {expected.alpha:.4g} at block 1")
    assert "taken for the concept's tokens, as steering promotes them most: " in out
    assert np.count_nonzero(mixed.weights[1]) == 2
    joy, optimistic = mixed.weights[1]
    held = json.loads((folder / "mix.json").read_text())["settings"]["mix"]
    assert held == {"joy": pytest.approx(joy), "optimistic": pytest.approx(optimistic)}
    assert (
        f"\nthe mix after block 1: {joy:.3g} joy {'-' if optimistic < 0 else '+'} {abs(optimistic):.3g} optimistic\n" in out
    )


@pytest.mark.parametrize("options", [("--budget", "0.05"), ("--layer", "1", "--share", "0.9999")], ids=["auto", "none"])
def test_a_page_is_written(folder, monkeypatch, capsys, options):
    code, out, _ = asked(monkeypatch, capsys, "--prompts", "prompts.txt", "--out", "new/page", *options)
    assert code == (3 if "--share" in options else 0)
    assert out.endswith("open new/page/index.html\n")
    page = (folder / "new" / "page" / "index.html").read_text(encoding="utf-8")
    # Pictures of an earlier choice go.
    (folder / "new" / "page" / "figures" / "choice-9.svg").write_text("")
    asked(monkeypatch, capsys, "--prompts", "prompts.txt", "--out", "new/page", *options)
    assert not (folder / "new" / "page" / "figures" / "choice-9.svg").exists()
    with xr.open_datatree(folder / "new" / "page" / "choice.nc", engine="h5netcdf") as tree:
        assert sorted(tree.children) == (["block-1"] if "--share" in options else ["block-0", "block-1"])
    assert ("Where to steer" in page) == ("--share" not in options)


def test_a_share_may_be_one_of_texts(folder, monkeypatch, capsys, lm):
    monkeypatch.setattr(Shows, "log_odds", lambda _, texts: np.array([text.count("A") - 1.0 for text in texts]))
    options = ("--prompts", "prompts.txt", "--layer", "1", "--by", "judge", "--about", "the letter", "--share")
    code, out, _ = asked(monkeypatch, capsys, *options, "0.3", "--json", "choice.json")
    shows = Shows(lm, "the letter")
    expected = sim.choose(lm, sim.read_vector("joy.safetensors"), PROMPTS, layer=1, share=0.3, shows=shows, horizon=4)
    found = json.loads((folder / "choice.json").read_text())
    assert (found["alpha"], found["reason"]) == (expected.alpha, expected.reason)
    assert code == (0 if expected.alpha else 3)
    assert found["settings"]["shows"] == f"the letter, by judge of {lm.name}"
    assert "by judge of" in out
    assert "which was not tried on texts that are known to show it" in out


@pytest.mark.parametrize(
    ("ahead", "words"), [(1, "right on 100% of 20 pairs of the library"), (-1, "0% of 20 pairs .*do not rely")]
)
def test_an_opinion_is_tried_on_pairs_of_the_library(lm, monkeypatch, ahead, words):
    known = {pair.matching for pair in sim.concept_pairs("joy")}
    monkeypatch.setattr(Shows, "log_odds", lambda _, texts: np.array([ahead * (text in known) for text in texts]))
    assert re.search(words, request.trust_in(Shows(lm, "joy")))


def test_no_strength_is_said_and_is_code_3(folder, monkeypatch, capsys):
    options = ("--prompts", "prompts.txt", "--layer", "1", "--share", "0.9999", "--json", "choice.json")
    code, out, _ = asked(monkeypatch, capsys, *options, "--fold", "chosen.gguf")
    assert code == 3
    assert out.startswith("no strength at block 1: no strength that was tried (")
    assert json.loads((folder / "choice.json").read_text())["alpha"] is None
    assert not (folder / "chosen.gguf").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "prompt: expected some, or a file of them, got neither"),
        (("--prompt", "a", "--prompts", "prompts.txt"), "got both"),
        (("--prompt", "ABC", "--concept", "joy"), "vector: expected a file, or a concept in its place, got both"),
        (("--prompts", "missing.txt"), "prompts: expected a file with a prompt in each line"),
        (("--prompt", "ABC", "--layer", "middle"), "layer: expected a block by number, or auto"),
        (("--prompt", "ABC", "--layer", "7"), "layer"),
        (("--prompt", "ABC", "--budget", "0"), "budget: expected"),
        (("--prompt", "ABC", "--statistic", "p50", "--budget", "1"), "statistic: expected one of p95, mean, max"),
        (("--prompt", "ABC", "--statistic", "median"), "statistic: expected one of p95, mean, max"),
        (("--prompt", "ABC", "--share", "1.5"), "share: "),
        (("--prompt", "ABC", "--share", "2", "--layer", "1"), "share: expected"),
        (("--prompt", "ABC", "--share", "0.1", "--away", "--tokens", "A"), "share: expected none for negative strengths"),
        (("--prompt", "ABC", "--by", "texts"), "by: expected tokens, judge or ratio, got 'texts'"),
        (("--prompt", "ABC", "--by", "ratio", "--about", "joy"), "share: expected the part of the texts"),
        (("--prompt", "ABC", "--by", "judge", "--share", "0.5"), "about: expected the concept's name"),
        (("--prompt", "ABC", "--by", "ratio", "--share", "0.5", "--about", "rage"), "about: expected one of apathetic"),
        (("--prompt", "ABC", "--share", "0.5", "--judge", "gpt2"), "by: expected judge or ratio, for --judge and --about"),
        (("--prompt", "ABC", "--tokens", ""), "tokens: expected words, got a blank one, ''"),
        (("--prompt", "ABC", "--tokens", "A", "--tokens", " "), "tokens: expected words, got a blank one, ' '"),
        (("--prompt", "ABC", "--fold", "chosen.txt"), "expected"),
    ],
)
def test_bad_input_is_one_line(folder, monkeypatch, capsys, options, words):
    code, out, err = asked(monkeypatch, capsys, *options)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.startswith("ufm: ")
    assert err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["joy.safetensors", "prompts.txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--concept", "happiness"), "concept: expected some of apathetic, .*--pairs FILE, and --vector.*, got 'happiness'"),
        (("--vector", "none.gguf"), "vector: expected a file, got none at 'none.gguf'"),
        ((), "vector: expected a file, or a concept in its place, got neither"),
    ],
)
def test_what_a_vector_cannot_come_from_is_refused_before_a_model_is_loaded(folder, monkeypatch, capsys, options, words):
    def loaded(*_, **__):
        raise AssertionError

    monkeypatch.setattr("sim.bridge.model.load", loaded)
    code, _, err = run(monkeypatch, capsys, "choose", "--prompt", "ABC", *options)
    assert code == 2
    assert re.search(words, err)


# --- the benchmark -----------------------------------------------------------------------------------------------------


def test_prompts_to_choose_on_are_none_of_the_others():
    first, second = prompts(held_out=False), prompts(held_out=True)
    assert len(first) == len(second) == 32
    assert not set(first) & set(second)


@pytest.fixture
def trial(lm, monkeypatch):
    monkeypatch.setattr(bench_choosing, "prompts", lambda held_out: ["FED", "CAB"] if held_out else PROMPTS)
    return Trial(lm, sim.SteeringVector({1: RNG.normal(size=32)}, "joy"), 1, budget=0.05, horizon=4, count=3)


def test_bisection_and_ours_agree(trial):
    ours, plain = WAYS["ours"](trial), WAYS["bisection"](trial)
    assert ours.alpha == pytest.approx(plain.alpha, rel=0.1)
    assert ours.passes < plain.passes / 2
    assert plain.passes % 3 == 0
    assert WAYS["alpha = 1"](trial).alpha == 1
    scale = trial.writer(held_out=False, seed=0)
    assert WAYS["ratio 0.5"](trial).alpha > 0
    assert len(scale.prompts) == 3


def test_bisection_doubles_as_often_as_it_takes(trial):
    short = replace(trial, vector=trial.vector * 0.02)
    writer = short.writer(held_out=False, seed=0)

    def paid(alpha):
        return statistic(short.effects(writer(short.steering, alpha), alpha).kl, "p95")

    alpha = WAYS["bisection"](short).alpha
    assert alpha > 8
    assert paid(alpha) < short.budget <= paid(1.02 * alpha)
    other = short.bisection(start=1.3).alpha
    assert other != alpha
    assert paid(other) < short.budget <= paid(1.02 * other)


def test_outcomes_are_measured_on_other_prompts(trial):
    outcome = trial.outcome("ours", 0.5, 1.0, 2.0)
    writer = trial.writer(held_out=True, seed=1)
    assert len(writer.prompts) == 2
    effects = trial.effects(writer(trial.steering, 0.5), 0.5, trial.members)
    unsteered = trial.effects(writer(), 0.0, trial.members)
    assert outcome.before == pytest.approx(np.nanmean(unsteered.share), rel=1e-5)
    assert outcome.mean == pytest.approx(np.nanmean(effects.kl), rel=1e-5)
    assert outcome.share == pytest.approx(np.nanmean(effects.share), rel=1e-5)
    assert 0 <= outcome.collapsed <= 1
    assert trial.outcome("alpha = 0", 0.0, 0.0, 0.0).collapsed == outcome.collapsed_before
    assert np.isnan(trial.outcome("ours", np.nan, 1.0, 2.0).p95)


def test_outcomes_are_put_down_as_they_come_and_are_not_measured_again(trial, monkeypatch, tmp_path):
    concepts = []

    def made(lm, concept, *_):
        concepts.append(concept)
        return replace(trial, vector=replace(trial.vector, name=concept))

    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_choosing, "load", lambda _: trial.lm)
    monkeypatch.setattr(bench_choosing, "_trial", made)
    monkeypatch.setitem(WAYS, "stops", stopped)
    file = tmp_path / "new" / "choosing.jsonl"
    options = {"depths": (0.5,), "budget": 0.05, "horizon": 4, "count": 3, "kept": file}
    with pytest.raises(KeyboardInterrupt):
        bench_choosing.run(["tiny"], ["joy", "evil"], ways=["alpha = 1", "ratio 0.5", "stops"], **options)
    assert concepts == ["joy"]
    assert len(file.read_text().splitlines()) == 2
    first = bench_choosing.run(["tiny"], ["joy", "evil"], ways=["alpha = 1", "ratio 0.5"], **options)
    assert concepts == ["joy", "evil"]
    assert [(o.concept, o.way) for o in first] == [(c, w) for c in ("joy", "evil") for w in ("alpha = 1", "ratio 0.5")]
    assert bench_choosing.run(["tiny"], ["joy", "evil"], ways=["alpha = 1", "ratio 0.5"], **options) == first
    assert concepts == ["joy", "evil"]
    # At another budget, or for another model, all is measured.
    bench_choosing.run(["tiny"], ["joy"], ways=["alpha = 1"], **(options | {"budget": 0.1}))
    assert concepts == ["joy", "evil", "joy"]


def test_no_strength_is_put_down_and_read_again(tmp_path):
    store = OutcomeFile(tmp_path / "c.jsonl")
    store.add({"budget": 1.0}, ChoiceOutcome("m", "joy", 1, "ALERT", np.nan, 5.0, 1.0, *[np.nan] * 6))
    (again,) = OutcomeFile(store.path).outcomes_of({"budget": 1.0}, "joy", 1).values()
    assert np.isnan([again.alpha, again.p95]).all()
    assert again.passes == 5.0
    assert not OutcomeFile(store.path).outcomes_of({"budget": 2.0}, "joy", 1)


@pytest.mark.parametrize("line", ["[1]", '{"model": "m"}', "no JSON"])
def test_a_file_of_something_else_is_refused_and_kept(line, tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"line 1 of c\.jsonl"):
        OutcomeFile(file)
    assert file.read_text() == line + "\n"


@pytest.mark.parametrize("names", [{"concepts": ["joy", "cheer"]}, {"concepts": ["joy"], "ways": ["cheer"]}])
def test_unknown_cells_are_refused_before_a_model_is_loaded(names, monkeypatch):
    monkeypatch.setattr(bench_choosing, "load", lambda _: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="cheer"):
        bench_choosing.run(["tiny"], **names)


def test_texts_that_repeat_themselves_or_are_unlikely_have_collapsed():
    rows = ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2] * 4, [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 1, 1, 1, 1, 1])
    tokens = np.array(rows)
    counted = np.ones((4, 8), bool)
    counted[3, 4:] = False  # what comes after the end of a text is no part of it
    losses = np.where(counted, np.array([[1.0], [1.0], [4.0], [1.0]]), np.nan)
    effects = Effects(losses, losses, losses, losses, losses, counted, np.full(len(losses), np.nan))
    written = Rollouts(((0,),) * 4, tokens, counted)
    assert bench_choosing._collapsed(written, effects, 3.0) == 0.5
    assert bench_choosing._collapsed(written, effects, 5.0) == 0.25


def test_the_table_counts_what_is_near():
    rows = [ChoiceOutcome("m", "joy", 1, "ours", 2.0, 5.0, 1.0, paid, 0.3, 0.1, 0.05, 0.0, 0.0) for paid in (0.85, 1.1, 1.3)]
    assert figures(rows, 1.0)["ours"]["near the budget"] == pytest.approx(2 / 3)
    assert figures(rows, 1.0)["ours"]["p95"] == 1.1
    assert "ours" in as_table(rows, 1.0)
