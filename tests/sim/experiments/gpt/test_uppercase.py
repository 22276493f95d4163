"""The analysis of a tiny GPT: its parts against NumPy, the tree it gives, and the command that writes it."""

import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy.special import log_softmax

import ufm
from sim import cli
from sim.bridge.model import LanguageModel, random_model
from sim.experiments.gpt import cross_entropy, uppercase
from sim.experiments.gpt.letter_case import LOWER, UPPER, case_of_tokens, contexts
from sim.experiments.gpt.training import Finished, config_of, finished
from sim.experiments.gpt.uppercase import VECTORS, AnalysisSize, analyse, as_table
from sim.figures import UPPERCASE_FIGURES, style
from sim.measure.tilt import TILTS
from tests.sim.experiments.conftest import DOCUMENTS, SENTENCES, TINY

pytestmark = pytest.mark.slow
"""A minute of compilation; what the analysis is made of has default tests of its own, beside this file."""

SMALL = AnalysisSize(length=4, contrasted=8, steered=4, shown=2, strengths=9, likeliest=6, rows=4, steps=2, draws=2)


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def done(trained):
    return finished(trained[1], DOCUMENTS)


@pytest.fixture(scope="module")
def analysis(done):
    return analyse(done, size=SMALL)


def kl(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


@pytest.fixture(scope="module")
def by_hand(done):
    """Contexts, vectors and log-odds, context by context."""
    lm, rng = done.model, np.random.default_rng(0)
    cases = case_of_tokens(lm.tokenizer)

    def drawn(tokens, which, count):
        rows = contexts(tokens, cases, lm.tokenizer.eos, SMALL.length)[which]
        return [rows[k] for k in rng.permutation(len(rows))[:count]]

    with jax.enable_x64(False):
        sides = [drawn(done.training, which, SMALL.contrasted) for which in (UPPER, LOWER)]
        steered = drawn(done.held_out, LOWER, SMALL.steered)
        states = [[np.asarray(lm.states([row])[0])[0, 0] for row in rows] for rows in [*sides, steered]]
        last = [np.asarray([log_softmax(lm.logits([row])[0][-1]) for row in rows], float) for rows in [*sides, steered]]
    vectors = {
        "all positions": np.mean(states[0], axis=(0, 1)) - np.mean(states[1], axis=(0, 1)),
        "last position": np.mean(states[0], axis=0)[-1] - np.mean(states[1], axis=0)[-1],
    }
    ends = np.asarray([state[-1] for state in states[2]])
    return steered, vectors, last[0].mean(axis=0) - last[1].mean(axis=0), last[2], ends


def test_log_odds_and_units(analysis, by_hand):
    _, vectors, m, _, ends = by_hand
    np.testing.assert_allclose(analysis.data["log-odds"]["log_odds"], m, atol=2e-5)
    for steering in analysis.numbers["steering"]:
        size = np.median(np.linalg.norm(ends, axis=1))
        assert steering["unit"] == pytest.approx(size / np.linalg.norm(vectors[steering["vector"]]), rel=1e-4)
    cases = analysis.data["log-odds"]["case"].values
    right = [m[z] > 0 if cases[z] == UPPER else m[z] < 0 for z in range(m.size) if cases[z] in (UPPER, LOWER)]
    assert analysis.numbers["log_odds"]["right_sign"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("vector", VECTORS)
def test_tilts_and_concepts_are_those_of_the_last_norm_and_unembedding(done, analysis, by_hand, vector):
    _, vectors, m, log_p, ends = by_hand
    v, decoder = vectors[vector], done.model.decoder
    tilts = analysis.data["tilts"].to_dataset().sel(layer=0, vector=vector)
    concepts = analysis.data["concepts"].to_dataset().sel(layer=0, vector=vector)
    cases = analysis.data["log-odds"]["case"].values
    number = next(row for row in analysis.numbers["steering"] if row["vector"] == vector)
    eps = done.model.config.eps
    sizes = np.sqrt(ends.var(axis=1) + eps)
    for relative in tilts["relative"].values[[0, 2, 5, 8]]:
        alpha = number["unit"] * relative
        steered = log_softmax(np.asarray(decoder.logits(jnp.asarray(ends + alpha * v, jnp.float32)), float), axis=-1)
        d = (sizes / np.sqrt((ends + alpha * v).var(axis=1) + eps))[:, None]
        normed = log_softmax(d * (log_p + alpha * m), axis=-1)
        theory = log_softmax(log_p + alpha * m, axis=-1)
        expected = {"none": log_p, "theory": theory, "normed": normed}
        for name, log_q in expected.items():
            got = float(tilts["kl"].sel(tilt=name, relative=relative))
            assert got == pytest.approx(kl(steered, log_q).mean(), rel=2e-3, abs=1e-6)
        assert float(tilts["shrinkage"].sel(relative=relative)) == pytest.approx(d.mean(), rel=1e-4)
        for kind, values in (("measured", steered), ("theory", theory), ("normed", normed)):
            share = np.exp(values)[:, cases == UPPER].sum(axis=1).mean()
            assert float(concepts["probability"].sel(kind=kind, case="upper", relative=relative)) == pytest.approx(
                share, rel=2e-3
            )


def test_explained_shares_are_ordered(analysis):
    tilts = analysis.data["tilts"].to_dataset()
    shares = tilts["explained"].sel(relative=tilts["relative"] != 0)
    assert (shares.sel(tilt="closest") >= shares.sel(tilt=["none", "theory", "scaled"]).max("tilt") - 1e-4).all()
    assert tilts["explained"].sel(relative=0.0).isnull().all()


def test_next_tokens_are_the_increases_of_definition_3_1(done, analysis, by_hand):
    steered, vectors, _, _, _ = by_hand
    curves = analysis.data["next-tokens"].to_dataset().sel(layer=0, vector="last position", range="S")
    alphas, words = curves["alpha"].values, done.model.tokenizer
    assert (alphas[0], alphas[-1]) == (0, 50)
    cut = done.model.split(steered[: SMALL.shown], 0)
    push = jnp.asarray(vectors["last position"], jnp.float32)
    rises = np.asarray(ufm.probability_increase(cut, range(SMALL.shown), push, alphas))
    ends = rises[:, -1] + np.exp(log_softmax([rows[-1] for rows in done.model.logits(steered[: SMALL.shown])], axis=-1))
    for context in range(SMALL.shown):
        top = np.argsort(-ends[context])[:8]
        assert curves["word"].values[context].tolist() == [words.decode([z]) for z in top.tolist()]
        np.testing.assert_allclose(curves["increase"].values[context], rises[context][:, top], atol=2e-5)


def test_half_the_variance_of_the_log_odds(done, by_hand):
    _, _, m, _, _ = by_hand
    texts = cross_entropy.texts(done.model, done.held_out, done.training, SMALL.rows, SMALL.length)
    assert set(texts) == set(cross_entropy.TEXTS)
    for name, source in (("held out", done.held_out), ("training", done.training)):
        whole = source[: source.size // 8 * 8].reshape(-1, 8).tolist()
        assert all(row in whole for row in texts[name].rows)
    assert [row[:4] for row in texts["written"].rows] == [row[:4] for row in texts["held out"].rows]
    text, terms = texts["training"], []
    for row in text.rows:
        p = np.exp(log_softmax(done.model.logits([row])[0], axis=-1))
        terms += [np.sum(p[t] * (m - p[t] @ m) ** 2) / 2 for t in range(3, 7)]
    assert cross_entropy.half_variance(done.model, text, m) == pytest.approx(np.mean(terms), rel=1e-4)


def test_the_increase_of_the_cross_entropy_position_by_position(done, analysis, by_hand):
    _, vectors, _, _, _ = by_hand
    sweep = analysis.data["cross-entropy"].to_dataset().sel(layer=0, vector="last position")
    texts = cross_entropy.texts(done.model, done.held_out, done.training, SMALL.rows, SMALL.length)
    for name, text in texts.items():
        values = sweep.sel(text=name)

        def losses(alpha, text=text):
            terms = []
            for row in text.rows:
                states = np.asarray(done.model.states([row])[0])[0, 0] + alpha * vectors["last position"]
                log_q = log_softmax(np.asarray(done.model.decoder.logits(jnp.asarray(states, jnp.float32)), float), axis=-1)
                terms += [-log_q[t, row[t + 1]] for t in range(3, 7)]
            return np.asarray(terms)

        alphas = values["alpha"].values
        assert alphas[-1] == pytest.approx(np.sqrt(0.5 / float(sweep["curvature"].sel(text="written"))))
        for k in (0, 3):
            rise = np.mean(losses(alphas[k]) - losses(0.0))
            assert float(values["cross_entropy"][k]) == pytest.approx(rise, rel=1e-3, abs=2e-5)
        step = 2e-2
        slope = np.mean(losses(step) - losses(-step)) / (2 * step)
        assert float(values["slope"]) == pytest.approx(slope, abs=2e-3)
        count = 4 * SMALL.rows
        assert float(values["slope_error"]) == pytest.approx(np.sqrt(2 * float(values["curvature"]) / count))
        near = sweep["divergence"].sel(text=name).values[[1, 3]].mean() / alphas[3] ** 2
        assert float(values["curvature"]) == pytest.approx(near, rel=0.3)


def test_the_tree_and_the_table(analysis):
    assert {figure.dataset for figure in UPPERCASE_FIGURES.values()} <= set(analysis.data.children)
    assert [steering["vector"] for steering in analysis.numbers["steering"]] == list(VECTORS)
    assert analysis.data["tilts"]["tilt"].values.tolist() == list(TILTS)
    json.dumps(analysis.numbers, allow_nan=False)
    table = as_table(analysis)
    assert "block 0, last position" in table
    assert f"loss {analysis.numbers['fidelity']['held out']['loss']:.3f}" in table


@pytest.mark.slow
def test_every_layer_is_looked_at(done):
    two = config_of(replace(TINY, num_layers=2), done.model.config.vocab_size)
    model = LanguageModel(random_model(two, jax.random.key(0)).decoder, done.model.tokenizer)
    analysis = analyse(Finished(model, replace(TINY, num_layers=2), done.training, done.held_out), size=SMALL)
    assert [(steering["layer"], steering["vector"]) for steering in analysis.numbers["steering"]] == [
        (k, v) for k in (0, 1) for v in VECTORS
    ]
    for figure in UPPERCASE_FIGURES.values():
        figure.draw(analysis.data[figure.dataset].to_dataset()).draw_without_rendering()


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["ufm", "lm", "case", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_the_command_writes_numbers_data_and_figures(monkeypatch, capsys, trained, analysis, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("\n\n\n".join(6 * sentence for sentence in SENTENCES))
    monkeypatch.setattr(uppercase, "analyse", lambda *arguments, **options: analysis)
    monkeypatch.setattr(style, "FORMATS", ("svg",))
    code, printed, _ = run(monkeypatch, capsys, "--model", trained[1], "--text", text, "--out", out)
    assert code == 0
    assert as_table(analysis) in printed
    assert json.loads((out / "case.json").read_text())["fidelity"] == analysis.numbers["fidelity"]
    with xr.open_datatree(out / "case.nc", engine="h5netcdf") as tree:
        assert set(tree.children) == set(analysis.data.children)
    assert {path.stem for path in (out / "figures").iterdir()} == set(UPPERCASE_FIGURES)


def test_the_command_refuses_what_is_not_its_training(monkeypatch, capsys, trained, tmp_path):
    code, out, err = run(monkeypatch, capsys, "--model", tmp_path / "none", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "ufm lm train" in err
    code, _, err = run(monkeypatch, capsys, "--model", trained[1], "--out", tmp_path / "out")
    assert code == 2
    assert err.startswith("ufm: text: expected the documents that the model in")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": 8}, "strengths: expected an odd number, at least 5, got 8"),
        ({"rows": 0}, "rows: expected at least 1, got 0"),
        ({"shown": 5}, "shown: expected at most the 4 steered, got 5"),
        ({"reach": 0.0}, "reach: expected more than 0, got 0.0"),
    ],
)
def test_sizes_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrasted": 10_000}, "text: expected at least 10000 contexts of 4 tokens in upper case to train on"),
        ({"steered": 10_000}, "text: expected at least 10000 contexts of 4 tokens in lower case held out"),
        ({"rows": 10_000}, "text: expected at least 10000 pieces of 8 tokens held out"),
        ({"length": 13}, "length: expected at most 12, half of what the model reads, got 13"),
    ],
)
def test_too_little_text(done, change, message):
    with pytest.raises(ValueError, match=message):
        analyse(done, size=replace(SMALL, **change))
