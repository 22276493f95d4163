"""The theory on language models, tried on small random ones: what holds, and what is caught when something is wrong."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from sim.checks.concept_texts import CONCEPTS, Concept
from sim.checks.validation import (
    CHECKS,
    SMOKE,
    Material,
    as_table,
    cost,
    cost_curves,
    cross_entropy,
    plateaus,
    sequences,
    validate,
)
from sim.directions.extraction import make_vector
from sim.figures import VALIDATION_FIGURES
from sim.measure import losses
from sim.reproduction import write_validation
from tests import compilation
from theory import REGISTRY, allocation, arc, budgets, tempered
from ufm import Add, Steering, sweep


def rows(seed, count, length):
    """Contexts of two lengths."""
    drawn = np.random.default_rng(seed).integers(0, 50, (count, length))
    return tuple(row[: length - k % 2].tolist() for k, row in enumerate(drawn))


TEXTS = Material(
    concepts=(Concept("one", rows(1, 3, 5), rows(2, 4, 6)), Concept("other", rows(3, 3, 4), rows(4, 3, 6))),
    openings=rows(5, 2, 4),
    beginnings=rows(6, 3, 3),
    foreign=np.random.default_rng(7).integers(0, 50, 200).tolist(),
)


def of(model, **options):
    return validate(model, size=SMOKE, texts=TEXTS, progress=False, **options)


@pytest.fixture(scope="module")
def validation(small):
    """LayerNorm, with biases."""
    return of(small("gpt2"))


def all_hold(got):
    assert [finding for finding in got.findings if not finding.holds] == []
    assert {finding.statement for finding in got.findings} == set(CHECKS)
    assert all(np.isfinite(finding.value) for finding in got.findings)


def test_every_comparison_holds(validation):
    all_hold(validation)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "llama, grouped, tied", "qwen3, windows, biases", "gemma3, scaled"])
def test_every_comparison_holds_on_every_kind_of_norm(small, name):
    all_hold(of(small(name)))


def test_before_a_norm_without_bias_steering_is_the_tempered_tilt(small):
    findings = of(small("llama, grouped, tied"), statements=["N19.tilt"]).findings
    judged = [finding for finding in findings if finding.tolerance is not None]
    assert {finding.about for finding in judged} == {"one, block 2", "other, block 2"}
    assert all(finding.holds for finding in judged)


def test_where_a_norm_has_a_bias_the_tempered_tilt_is_only_reported(validation):
    findings = [finding for finding in validation.findings if finding.statement == "N19.tilt"]
    assert findings
    assert all(finding.tolerance is None for finding in findings)


@pytest.mark.slow
def test_a_softcap_and_norms_after_blocks_change_nothing(small):
    assert of(small("gemma2"), statements=["N7", "proposition-4.1"]).holds


def test_all_concepts_and_layers_are_there(validation):
    layers = [1, 2]
    assert set(validation.data.children) >= {figure.dataset for figure in VALIDATION_FIGURES.values()}
    for name in ("plateaus", "curvatures", "next_tokens", "costs"):
        assert validation.data[name]["layer"].values.tolist() == layers
        assert validation.data[name]["concept"].values.tolist() == ["one", "other"]
    shares = validation.data["next_tokens"]["count"]
    np.testing.assert_array_equal(shares.sum("kind") > 0, True)


def test_curves_of_costs_are_those_of_the_model(small, validation):
    """After the last block: KL and shares from the model's own logits, and no share below its least cost."""
    data = validation.data["costs"].to_dataset().isel(concept=0, layer=-1)
    with jax.enable_x64(True):
        model = small("gpt2").with_dtype(jnp.float64)
        vector = make_vector(small("gpt2"), TEXTS.concepts[0].positive, TEXTS.concepts[0].negative)
        cut, alphas = model.split(TEXTS.openings, 2), data["alpha"].values
        logits = sweep(cut, [0], jnp.asarray(vector[2], float), alphas, lambda logits, _: jax.nn.log_softmax(logits))[0]
        logits, before = np.asarray(logits), np.asarray(jax.nn.log_softmax(cut.decode(cut.embed(jnp.arange(1)))[0]))
    q, p = np.exp(logits), np.exp(before)
    members = np.isin(np.arange(len(p)), np.concatenate(TEXTS.concepts[0].positive))
    members &= ~np.isin(np.arange(len(p)), np.concatenate(TEXTS.concepts[0].negative))
    np.testing.assert_allclose(data["measured_cost"], (p * (before - logits)).sum(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(data["measured_share"][0], q[:, members].sum(axis=-1), rtol=1e-6)
    f0, f1 = data["before"].values[:, None], data["measured_share"].values
    below = f0 * np.log(f0 / f1) + (1 - f0) * np.log((1 - f0) / (1 - f1))
    assert (data["measured_cost"].values >= below).all()
    # A first strength is small: the tilt by the slopes is right to second order.
    assert float(data["tilted_cost"][0]) == pytest.approx(float(data["measured_cost"][0]), rel=0.1)
    assert float(data["tilted_share"][1, 0]) - f0[1, 0] == pytest.approx(f1[1, 0] - f0[1, 0], rel=0.1)


def test_the_least_cost_is_drawn_over_what_is_reached(validation):
    data = validation.data["costs"].to_dataset()
    f0, f1 = data["before"].isel(layer=0), data["reached"]
    np.testing.assert_allclose(
        data["least"], f0 * np.log(f0 / f1) + (1 - f0) * np.log((1 - f0) / (1 - f1)), rtol=1e-6, atol=1e-12
    )


def test_safe_strengths_of_the_tilt_keep_to_the_budget(validation):
    data = validation.data["costs"].to_dataset()
    for name in ("N4", "N18", "N20"):
        assert (data[name] <= data["exact"] * (1 + 1e-9)).all(), name
    # The model first costs a budget where its sampled curve does.
    small = data.isel(budget=0)
    np.testing.assert_allclose(small["measured"], small["exact"], rtol=0.1)


def test_levels_are_crossed_for_the_first_time():
    got = cost_curves.crossings(np.array([1.0, 2, 4, 8, 16]), np.array([1.0, 4, 2, 16, 1]), np.array([0.5, 2, 4, 16, 17]))
    np.testing.assert_allclose(got, [np.nan, np.sqrt(2), 2, 8, np.nan])


def test_efficiency_by_block_is_that_of_the_layers(validation):
    data = validation.data["costs"].to_dataset()
    own = data["by_block"].sel(set="tokens of its texts", direction="difference of means", block=data["layer"].values)
    np.testing.assert_allclose(own, data["efficiency"].mean("context"), rtol=1e-3)
    assert ((data["by_block"] >= 0) & (data["by_block"] <= 1)).all()
    # What a vector lifts most after the last block is what it is efficient for there, more than a random one.
    lifted = data["by_block"].sel(set="tokens it lifts most").isel(block=-1)
    assert (lifted.sel(direction="difference of means") > lifted.sel(direction="random")).all()


def test_costs_are_split_after_every_block(small, monkeypatch, validation):
    """An error after a block at which nothing else is looked at is found."""
    others = [finding for finding in validation.findings if finding.about == "one, other blocks"]
    assert [finding.statement for finding in others] == ["N15.split", "N15.bound", "N15.efficiency"]
    right = cost._sweep

    def wrong_after_the_first(split, *arguments):
        start, strengths, sweep, limit = right(split, *arguments)
        return start, strengths, sweep, limit + (1e-3 if split.layer == 0 else 0)

    monkeypatch.setattr(cost, "_sweep", wrong_after_the_first)
    failed = [finding for finding in of(small("gpt2"), statements=["N15.efficiency"]).findings if not finding.holds]
    assert [finding.about for finding in failed] == ["one, other blocks", "other, other blocks"]


def test_every_checked_statement_is_one_of_the_theory():
    assert set(CHECKS) <= set(REGISTRY)


def wrong_width(*arguments, **options):
    law = LAW(*arguments, **options)
    return law._replace(width=1.001 * law.width)


def lopsided(log_p, log_q, members):
    parts = SPLIT(log_p, log_q, members)
    return parts._replace(outside=1.001 * parts.outside)


def apart(log_p, m, target):
    """Vectors that do not interfere."""
    moments = RESPONSE(log_p, m, target)
    return moments._replace(covariance=moments.covariance * jnp.eye(2))


def alone(gains, covariance, budget):
    """The mix of vectors that do not interfere."""
    return MIX(gains, covariance * jnp.eye(2), budget)


RESPONSE, MIX = allocation.response, allocation.best_mix
LAW, ARC_OF, LIMIT, VARIANCE = arc.law, arc.arc_of, arc.limit, losses.variance
TILT = tempered.log_probabilities
ADDED, SHARES = plateaus._added, sequences._shares
SPLIT, EFFICIENCY, BENNETT = budgets.split_cost, budgets.efficiency, budgets.budget_bound

SLOW = (
    "law of a wrong width",
    "arc that starts at 0",
    "plateau of one side",
    "bound without what blocks add",
    "second moment for the variance",
    "parts of a wrong weight",
    "share that costs more than all",
    "bound of a smaller variance",
    "deviation for the range",
    "arc of a small diameter",
    "states that are not normalised",
    "vectors that do not interfere",
    "mix of vectors that do not interfere",
    "limit of the wrong sign",
    "rate without what blocks add",
    "shares of a later step",
)

PLANTED = {
    "law of a wrong width": ("N7", arc, "law", wrong_width),
    "arc that starts at 0": ("N8.arc", arc, "arc_of", lambda *a, **o: ARC_OF(*a, **o)._replace(centre=jnp.zeros(()))),
    "plateau of one side": ("N8.plateau", arc, "plateau", lambda bends, sign: bends.B + bends.c),
    "limit of the wrong sign": ("proposition-4.1", arc, "limit", lambda *a, **o: LIMIT(*a[:-1], -a[-1], **o)),
    "bound without what blocks add": ("proposition-4.1", arc, "limit_bound", lambda W, *a, **o: jnp.zeros(W.shape[0])),
    "rate without what blocks add": ("N11", plateaus, "_added", lambda *a: 0 * ADDED(*a)),
    "shares of a later step": ("N21.response", sequences, "_shares", lambda *a, **o: jnp.roll(SHARES(*a, **o), -4, axis=1)),
    "second moment for the variance": (
        "N9",
        losses,
        "variance",
        lambda logits, slopes: jnp.sum(jax.nn.softmax(logits) * slopes**2, axis=-1),
    ),
    "parts of a wrong weight": ("N15.split", budgets, "split_cost", lopsided),
    "share that costs more than all": (
        "N15.bound",
        budgets,
        "split_cost",
        lambda *a: SPLIT(*a)._replace(share=SPLIT(*a).total * 1.01),
    ),
    "efficiency off by a thousandth": ("N15.efficiency", budgets, "efficiency", lambda *a: 1.001 * EFFICIENCY(*a)),
    "bound of a smaller variance": ("N18", budgets, "budget_bound", lambda s, *a: BENNETT(s / 2, *a)),
    "deviation for the range": ("N20.range", budgets, "range_bound", lambda change: jnp.std(change, axis=-1) ** 2 / 8),
    "tilt that is not tempered": (
        "N19.tilt",
        tempered,
        "log_probabilities",
        lambda p, m, a, size, _: TILT(p, m, a, size, size),
    ),
    "states that are not normalised": ("N19.tilt", tempered, "direction", lambda h, weights, **options: weights @ h),
    "vectors that do not interfere": ("N23.interference", allocation, "response", apart),
    "mix of vectors that do not interfere": ("N23.mix", allocation, "best_mix", alone),
    "arc of a small diameter": ("N20.arc", budgets, "diameter", lambda path, count: jnp.std(path.A, axis=-1)),
}


def test_every_comparison_that_can_fail_has_an_error_planted(validation):
    judged = {finding.statement for finding in validation.findings if finding.tolerance is not None}
    # Where the norm has a bias N19 is only reported. The error of N13 is two texts that are exchanged, which is below.
    assert judged | {"N19.tilt"} == {statement for statement, *_ in PLANTED.values()} | {"N13.divergence"}
    # The slope of N13 is 0 at rest, which no trained model is; the factor of N21 is of a chain, which no text is.
    assert not judged & {"N13.slope", "N21.amplification"}


MODELS = {"N19.tilt": "llama, grouped, tied"}
"""Where errors in a statement are planted, if not in the GPT-2."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PLANTED])
def test_errors_in_the_theory_are_caught(small, monkeypatch, name):
    statement, module, function, wrong = PLANTED[name]
    monkeypatch.setattr(module, function, wrong)
    compilation.forget()
    try:
        assert not of(small(MODELS.get(statement, "gpt2")), statements=[statement]).holds
    finally:
        monkeypatch.undo()
        compilation.forget()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama, grouped, tied"])
def test_only_on_text_that_the_model_wrote_is_the_loss_a_divergence(small, monkeypatch, name):
    """With the two texts exchanged, and enough of them, the check fails."""
    long = TEXTS._replace(foreign=np.random.default_rng(7).integers(0, 50, 2000).tolist())
    size = replace(SMOKE, written=200)
    settings = {"size": size, "texts": long, "statements": ["N13.divergence"], "progress": False}
    assert validate(small(name), **settings).holds
    texts = cross_entropy._texts
    monkeypatch.setattr(cross_entropy, "_texts", lambda run: texts(run)[::-1])
    assert not validate(small(name), **settings).holds


def test_moments_are_derivatives_of_the_losses(small):
    """The slope of Delta CE and the curvature of KL at every position, by differences, for contexts of two lengths."""
    with jax.enable_x64(True):
        model = small("gpt2").with_dtype(jnp.float64)
        cut = model.split(rows(8, 3, 7), 1, last_only=False)
        steering = Steering(Add(jnp.asarray(np.random.default_rng(9).normal(size=model.config.d_model))))
        curvature, slope = losses.moments(cut, steering)
        step = 1e-4
        loss, divergence = losses.increases(cut, steering, jnp.asarray([-step, step]))
        np.testing.assert_allclose((loss[:, 1] - loss[:, 0]) / (2 * step), slope, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose((divergence[:, 0] + divergence[:, 1]) / (2 * step**2), curvature, rtol=1e-5, atol=1e-6)


def test_concepts_that_ship_are_two_sides_of_a_contrast():
    assert len(CONCEPTS) >= 2
    for concept in CONCEPTS:
        assert len(set(concept.positive)) == len(concept.positive) >= 10
        assert not set(concept.positive) & set(concept.negative)


def test_an_unknown_statement_is_refused(small):
    with pytest.raises(ValueError, match=r"^statement: .*N7, .*got N5"):
        of(small("gpt2"), statements=["N5"])


def test_interference_needs_two_concepts(small):
    alone = TEXTS._replace(concepts=TEXTS.concepts[:1])
    with pytest.raises(ValueError, match=r"concepts: .*got 1"):
        validate(small("gpt2"), size=SMOKE, texts=alone, statements=["N23.mix"], progress=False)


def test_table_and_files(validation, tmp_path):
    files = write_validation(tmp_path, validation, alone=True)
    assert set(files) == set(VALIDATION_FIGURES)
    page = (tmp_path / "language-model.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == len(VALIDATION_FIGURES)
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (tmp_path / link).exists() or link.startswith("https://arxiv.org/abs/"), link
    kept = json.loads((tmp_path / "language-model.json").read_text())
    assert kept["holds"] is True
    assert len(kept["findings"]) == len(validation.findings)
    with xr.open_datatree(tmp_path / "language-model.nc", engine="h5netcdf") as tree:
        assert set(tree.children) == set(validation.data.children)
        assert tree.attrs["fingerprint"] == validation.numbers["fingerprint"]
    assert as_table(validation).endswith("comparisons hold on " + validation.model)
