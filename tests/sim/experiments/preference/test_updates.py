"""Updates trained on paired answers, and preference and utility under them: against whole passes, row by row."""

import json
from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from sim.bridge.tokenizer import Tokenizer
from sim.directions.texts import Pair
from sim.experiments import estimate
from sim.experiments.experiment import begin
from sim.experiments.preference import page, pairs, updates
from sim.experiments.run import run
from sim.experiments.settings import Recipe
from tests.browser import assert_readable
from tests.sim.experiments import tiny
from ufm import Add, Answers, LoRA, NullOut, Steering, Weight, init_update, preference, steer
from ufm.steerable import one_of

FORMS = ("vector", "lora", "weight")
QUICK = (("reps", "vector"), ("split", "lora"), ("sft", "weight"))


@pytest.fixture(scope="session")
def experiment(lm, tmp_path_factory):
    """A run in which updates are trained and measured."""
    with jax.enable_x64(False):
        begun = tiny.start(tmp_path_factory.mktemp("updates") / "run", lm, lm)
        run(begun, ["preference-utility"])
        return begun


def test_every_array_says_what_it_is(experiment):
    for group in experiment.store.groups:
        for name, array in experiment.store.data(group).variables.items():
            assert array.attrs["description"].endswith("."), (group, name)
            assert array.dtype.kind != "f" or array.attrs["units"], (group, name)


@pytest.fixture(scope="session")
def task(experiment):
    with jax.enable_x64(False):
        return updates.tasks(experiment)["optimistic"]


def log_p(lm, row, count, steering=None):
    """The log-probability of the last tokens of a row, from a whole pass."""
    if steering is None:
        logits = lm.logits([list(row)])[0]
    else:
        layer, b = steering
        cut = lm.split([list(row)], layer, last_only=False)
        logits = np.asarray(last_logits(cut, b))[0]
    every = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
    return sum(float(every[len(row) - count + k - 1, row[len(row) - count + k]]) for k in range(count))


@jax.jit
def last_logits(cut, v):
    return steer(cut, jnp.arange(1), v, 1.0)


def some_update(split, form, seed=0):
    inputs, outputs = split.sites[updates.SITES[form]]
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(0.1 * rng.normal(size=shape))

    kinds = {
        "vector": lambda: Add(normal(outputs)),
        "lora": lambda: LoRA(normal(2, inputs), normal(outputs, 2)),
        "weight": lambda: Weight(normal(outputs, inputs), normal(outputs)),
    }
    return kinds[form]()


# --- pairs -------------------------------------------------------------------------------------------------------------


def test_pairs_as_tokens(lm):
    asked = tiny.INPUTS.pairs["optimistic"]
    encoded = pairs.encode(lm, asked)
    assert encoded.pairs == len(asked)
    for k, pair in enumerate(asked):
        for side in (0, 1):
            row, count = encoded.rows[2 * k + side], encoded.counts[2 * k + side]
            assert lm.tokenizer.decode(list(row)) == f"Question: {pair.question}\nAnswer: {pair[1 + side]}"
            assert lm.tokenizer.decode(list(row[-count:])).strip() == pair[1 + side]
            assert encoded.first[k, side] == row[-count]
        assert encoded.questions[k] == encoded.rows[2 * k][: -encoded.counts[2 * k]]
    assert encoded.subset([2, 0]).rows == (*encoded.rows[4:6], *encoded.rows[:2])


def test_pairs_before_a_tokenizer_that_begins_every_text_with_a_space(lm):
    """As Llama 2's does: an answer is preceded by one space, not by two."""
    letters = ["▁", "\n", ":", "?", *"abcdefghijklmnopqrstuvwxyzAQ"]
    core = tokenizers.Tokenizer(tokenizers.models.BPE({letter: k for k, letter in enumerate(letters)}, []))
    before = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    core.normalizer = tokenizers.normalizers.Sequence(before)
    encoded = pairs.encode(replace(lm, tokenizer=Tokenizer(core)), [Pair("who?", "you", "not me ")])
    spelt = ["".join(letters[z] for z in row) for row in encoded.rows]
    assert spelt == ["▁Question:▁who?\nAnswer:▁you", "▁Question:▁who?\nAnswer:▁not▁me"]
    assert encoded.counts == (4, 7)


def test_a_run_records_the_pairs_that_it_trains_on(lm, tmp_path):
    """So that a run goes on where the library has grown."""

    def recorded(name, **more):
        e = begin(tmp_path / name, lm, tiny.settings(), replace(tiny.INPUTS, pairs={**tiny.INPUTS.pairs, **more}))
        return e.store.about["inputs"]

    pair = Pair("a", "b", "c")
    assert "pairs.optimistic" in recorded("run")
    assert recorded("run", calm=(pair,)) == recorded("run")
    assert recorded("other", optimistic=(pair,)) != recorded("run")


def test_an_answer_of_no_tokens_is_refused(lm):
    with pytest.raises(ValueError, match="got none in not_matching of pair 1"):
        pairs.encode(lm, [Pair("a", "b", "c"), Pair("a", "b", " ")])
    with pytest.raises(ValueError, match="at most 256 tokens"):
        pairs.encode(lm, [Pair("a", "b " * 300, "c")])


# --- how likely answers are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_answers_without_an_update_are_those_of_the_model(lm, task, form):
    asked = task.asked(task.training, form)
    h = updates.states(asked)
    answers = updates.unsteered(asked, h, int(task.experiment.settings.updates.layer))
    for k in range(task.training.pairs):
        for side, values, tokens in (
            (0, answers.positive, answers.tokens_positive),
            (1, answers.negative, answers.tokens_negative),
        ):
            row, count = task.training.rows[2 * k + side], task.training.counts[2 * k + side]
            assert float(values[k]) == pytest.approx(log_p(lm, row, count), abs=1e-4)
            assert int(tokens[k]) == count


def test_answers_under_a_vector_are_those_of_the_steered_model(lm, task):
    layer = int(task.experiment.settings.updates.layer)
    asked = task.asked(task.held_out, "vector")
    b = jnp.asarray(task.difference.v)
    answers = updates.likelihoods(layer, asked, updates.states(asked), Add(b), jnp.asarray([0.0, 3.0]), 2)
    row, count = task.held_out.rows[1], task.held_out.counts[1]
    assert float(answers.negative[0, 1]) == pytest.approx(log_p(lm, row, count, (layer, 3 * b)), abs=1e-4)
    assert abs(float(answers.negative[0, 1] - answers.negative[0, 0])) > 1e-2


# --- objectives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "form"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(("sft", "reps", "split"), FORMS)
    ],
)
def test_gradients_of_objectives_against_finite_differences(task, form, method):
    settings = task.experiment.settings.updates
    recipe = Recipe(0.1, 2.0, 5.0, 0.4)
    with jax.enable_x64(True):
        wide = replace(task, experiment=replace(task.experiment, lm=task.experiment.lm.with_dtype(jnp.float64)))
        asked = wide.asked(wide.training, form)
        h = asked.split.embed(jnp.arange(asked.split.n_contexts))
        update, which, m = some_update(asked.split, form), jnp.asarray([2, 0]), jnp.asarray([0.4, 1.7])
        nothing = jax.tree.map(jnp.zeros_like, update)
        rows = jnp.arange(2 * wide.training.pairs)
        reference = pairs.answers(asked, h, Steering(nothing, site=asked.split.site), jnp.zeros(rows.size), rows)

        @jax.jit
        def loss(candidate):
            return updates.objective(method, settings, recipe, asked, h, reference, candidate, m, which)

        value, gradient = jax.jit(jax.value_and_grad(loss))(update)
        direction = some_update(asked.split, form, seed=5)
        slope = sum(
            float(jnp.sum(a * b)) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        forth, back = (float(loss(jax.tree.map(lambda a, b, s=s: a + s * b, update, direction))) for s in (1e-4, -1e-4))
        assert slope == pytest.approx((forth - back) / 2e-4, rel=1e-3, abs=1e-6)
        assert abs(slope) > 1e-4
        assert np.isfinite(float(value))


def test_where_there_is_no_room_a_step_computes_blocks_again(task):
    whole = task.experiment
    cramped = replace(task, experiment=replace(whole, lm=replace(whole.lm, memory_budget=1000)))
    assert (task.rematerialises, cramped.rematerialises) == (False, True)
    assert replace(task, experiment=replace(whole, lm=replace(whole.lm, memory_budget=2**40))).rematerialises is False

    def gradient(task):
        asked = task.asked(task.training, "lora")
        arguments = (task.experiment.settings.updates, Recipe(0.1, 2.0, 5.0, 0.4), asked, updates.states(asked))
        nothing = Answers(*[jnp.zeros(task.training.pairs)] * 4)
        rest = (jnp.asarray([0.4, 1.7]), jnp.asarray([2, 0]))
        program = jax.jit(jax.grad(lambda update: updates.objective("split", *arguments, nothing, update, *rest)))
        return program(some_update(asked.split, "lora"))

    for kept, again in zip(*(jax.tree.leaves(gradient(each)) for each in (task, cramped)), strict=True):
        np.testing.assert_allclose(kept, again, rtol=1e-4, atol=1e-7)
    assert estimate._train_update(cramped.experiment).operations > estimate._train_update(whole).operations


def test_reps_has_both_branches(task):
    settings, recipe = task.experiment.settings.updates, Recipe(0.1, 2.0, 5.0, 0.4)
    asked = task.asked(task.training, "vector")
    h, which, m = updates.states(asked), jnp.asarray([1, 3]), jnp.asarray([1.0, 2.0])
    reference, update = updates.unsteered(asked, h, int(settings.layer)), Add(task.difference.v)
    rows = jnp.asarray([2, 3, 6, 7])
    answers = pairs.answers(asked, one_of(h, rows), Steering(update), jnp.asarray([1.0, 1.0, 2.0, 2.0]), rows)
    nulled = pairs.answers(asked, one_of(h, rows), Steering(NullOut(update)), jnp.zeros(4), rows)
    of = Answers(*(values[which] for values in reference))
    plain = float(jnp.mean(preference.reps(answers, of)))
    both = plain + float(jnp.mean(preference.reps(nulled.swapped, of.swapped)))
    value = float(updates.objective("reps", settings, recipe, asked, h, reference, update, m, which))
    assert value == pytest.approx(both, rel=1e-5)
    assert abs(value - plain) > 0.1
    unnulled = pairs.answers(asked, one_of(h, rows), Steering(update), jnp.zeros(4), rows)
    assert float(jnp.abs(nulled.positive - unnulled.positive).max()) > 1e-3


# --- training ----------------------------------------------------------------------------------------------------------


def test_every_pair_once_in_each_epoch():
    settings = tiny.settings().updates
    recipe = Recipe(0.1, 2.0, 5.0, 0.4, levels=4)
    steps = [updates.batch(settings, recipe, 6, k, seed=3) for k in range(4)]
    for epoch in (steps[:2], steps[2:]):
        assert sorted(np.concatenate([batch.which for batch in epoch])) == list(range(6))
    assert (steps[0].which != steps[2].which).any()
    every = np.concatenate([updates.batch(settings, recipe, 6, k, seed=3).alpha for k in range(200)])
    assert sorted(set(every)) == [0.5, 1.0, 1.5, 2.0]
    assert updates.steps_of(settings) == 4  # 4 pairs in batches of 3, twice


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["reps", "split"])
def test_trained_updates_lower_their_objective(experiment, task, form, method):
    settings = experiment.settings.updates
    update = updates.trained(experiment, form, "optimistic", method)
    asked = task.asked(task.training, form)
    h = updates.states(asked)
    reference = updates.unsteered(asked, h, int(settings.layer))
    inputs, outputs = asked.split.sites[asked.split.site]
    seed = experiment.seed("update", form, "optimistic", method)
    first = init_update(jax.random.key(seed), form, inputs, outputs, rank=settings.rank)
    which = jnp.arange(task.training.pairs)
    m = jnp.full(which.size, settings.recipe(form).strengths[2])

    @jax.jit
    def loss(candidate):
        return updates.objective(method, settings, settings.recipe(form), asked, h, reference, candidate, m, which)

    assert float(loss(update)) < float(loss(first))
    kept = experiment.store.data(f"update-{form}").sel(concept="optimistic", objective=method)
    assert np.isfinite(kept["loss"].values).all()
    assert int(kept["stopped"]) == -1


def test_a_training_that_was_interrupted_gives_the_same_update(experiment, task, tmp_path, monkeypatch):
    step, count = updates._step, 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(updates, "_step", interrupted)
    seed = experiment.seed("update", "lora", "optimistic", "split")
    with pytest.raises(KeyboardInterrupt):
        updates.train(task, "lora", "split", tmp_path, seed=seed, progress=False)
    update, _ = updates.train(task, "lora", "split", tmp_path, seed=seed, progress=False)
    expected = updates.trained(experiment, "lora", "optimistic", "split")
    np.testing.assert_array_equal(update.up, expected.up)
    np.testing.assert_array_equal(update.down, expected.down)


def test_a_training_that_diverges_says_so_and_keeps_the_last_good_update(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("sim.experiments.settings.LARGEST", np.inf)  # no rate that is accepted diverges in so few steps
    of = tiny.settings().changed(
        {"updates.forms": ["vector"], "updates.methods": ["sft"], "updates.vector.rate": 3e38, "updates.epochs": 4}
    )
    diverged = tiny.start(tmp_path / "run", lm, lm, of=of)
    with pytest.warns(UserWarning, match="sft vector of optimistic: diverged at step"):
        run(diverged, ["train-update"])
    data = diverged.store.data("update-vector")
    assert int(data["stopped"].squeeze()) > 0
    assert np.isfinite(data["v"].values).all()


# --- preference and utility ----------------------------------------------------------------------------------------------


def test_losses_without_strength_are_those_of_the_model(experiment, lm, task):
    for form in FORMS:
        data = experiment.store.data(f"preference-{form}").sel(concept="optimistic")
        middle = data["loss"].isel(strength=int(np.flatnonzero(data["alpha"].values == 0)[0]))
        assert data["alpha"].values.max() == pytest.approx(2 * experiment.settings.updates.recipe(form).reach)
        for method in data["objective"].values:
            losses = middle.sel(objective=method).values
            if method == "difference" and form != "vector":
                assert np.isnan(losses).all()
                continue
            for k in range(task.held_out.pairs):
                for side in (0, 1):
                    row, count = task.held_out.rows[2 * k + side], task.held_out.counts[2 * k + side]
                    assert losses[k, side] == pytest.approx(-log_p(lm, row, count) / count, abs=1e-4)


def test_losses_under_a_trained_vector(experiment, lm, task):
    data = experiment.store.data("preference-vector").sel(concept="optimistic", objective="split")
    update, layer = updates.trained(experiment, "vector", "optimistic", "split"), int(experiment.settings.updates.layer)
    for k in (0, 5, 6):  # of both parts of the strengths
        alpha = float(data["alpha"][k])
        row, count = task.held_out.rows[2], task.held_out.counts[2]
        expected = -log_p(lm, row, count, (layer, alpha * update.v)) / count
        assert float(data["loss"][k, 1, 0]) == pytest.approx(expected, rel=1e-4)


def test_preference_of_first_tokens_by_layer(experiment, lm, task):
    data = experiment.store.data("preference-layers").sel(concept="optimistic")
    last = lm.config.num_layers - 1
    assert data["layer"].values.tolist() == [0, 1, 2]
    error = data["law_error"]
    assert float(error.sel(layer=last).max()) < 1e-6
    assert np.isnan(error.sel(layer=0).values).all()
    first = task.training.first
    differ = np.flatnonzero(first[:, 0] != first[:, 1])[:3]
    chosen = task.training.subset(differ)
    for layer in (1, last):
        v = task.difference_at(layer)
        alphas = data["alpha"].sel(layer=layer).values
        for pair in range(len(differ)):
            # Longer than any question: one program serves all.
            cut = lm.split([chosen.questions[pair]], layer, length=24)
            for k in (0, len(alphas) // 2, len(alphas) - 1):
                logits = np.asarray(last_logits(cut, jnp.asarray(alphas[k] * v, jnp.float32)))[0]
                expected = logits[chosen.first[pair, 0]] - logits[chosen.first[pair, 1]]
                assert float(data["preference"].sel(layer=layer)[pair, k]) == pytest.approx(expected, abs=2e-3)


def test_the_page_of_preference_and_utility(experiment):
    report = page.write(experiment)
    html, about = report.page.read_text(), json.loads((experiment.store.path / "preference.json").read_text())
    assert {row["update"] for row in about["table"]} == {
        "difference vector",
        *(f"{objective} {form}" for objective in ("reps", "split") for form in FORMS),
    }
    assert "reps weight" in report.text
    assert "local weight, RePS" in html
    assert html.count("<img") == len(list((experiment.store.path / "figures").glob("preference-*.svg"))) >= 2
    assert [row["layer"] for row in about["layers"]] == [0, 1, 2]
    # Behind the last block the law is exact, and the fit finds it.
    assert about["layers"][-1]["law_error"] < 1e-6
    assert about["layers"][-1]["exponent"] == pytest.approx(0.5, abs=0.02)
    assert about["stopped"] == []
    # W's two pieces, fitted to the toy, find the one law of N7.
    assert about["toy"]["fitted_exponents"] == pytest.approx([0.5, 0.5], abs=1e-6)
    for key in ("centre", "width"):
        assert about["toy"][f"fitted_{key}s"] == pytest.approx(2 * [about["toy"][key]], rel=1e-6)
    losses = page.measured(experiment)
    assert losses["loss"].sel(update="reps lora", concept="optimistic").notnull().all()


def test_the_page_begins_with_what_was_found_and_is_readable_on_a_phone(experiment, window):
    path, rows = experiment.store.path, json.loads((experiment.store.path / "preference.json").read_text())["table"]
    fits, gains = ([row[name] for row in rows if row[name] is not None] for name in ("preference_r_squared", "area"))
    fitted = f"with an R² of {min(fits):.2f} to {max(fits):.2f}." if fits else "could not be fitted"
    gained = f"gains the most preference, {max(gains):.2f} nats" if gains else "for a loss of utility is not defined"
    html = (path / "why.html").read_text()
    assert html.index("W's curve") < html.index(fitted) < html.index(gained) < html.index('<p class="lead">')
    assert_readable(window, path / "why.html")


def test_a_concept_without_pairs_is_refused(lm, tmp_path):
    of = tiny.settings().changed({"updates.concepts": ["calm"]})
    with pytest.raises(ValueError, match=r"updates.concepts: .*got calm"):
        run(tiny.start(tmp_path / "run", lm, lm, of=of), ["train-update"])
    many = tiny.settings().changed({"updates.trained": 6})
    with pytest.raises(ValueError, match=r"updates\.trained.*optimistic, got 6"):
        run(tiny.start(tmp_path / "other", lm, lm, of=many), ["train-update"])
    with pytest.raises(ValueError, match=r"updates.rank: expected at most 32"):
        tiny.start(tmp_path / "rank", lm, lm, of=tiny.settings().changed({"updates.rank": 33}))
    with pytest.raises(ValueError, match=r"updates.forms: .*got matrix"):
        tiny.settings().changed({"updates.forms": ["matrix"]})


def test_an_update_that_was_not_trained(experiment):
    with pytest.raises(ValueError, match="a trained one"):
        updates.trained(experiment, "lora", "optimistic", "difference")
