"""Every stage against the same numbers from plain forward passes in float64, one at a time."""

import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sim.experiments.run as run_module
from sim.bridge.split import last_log_p
from sim.bridge.tokenizer import Tokenizer
from sim.directions.opinions import NO_ANSWER, NOT_SHOWN, SHOWN, judged, ratios
from sim.directions.prompt_texts import DEFINITIONS, judge_request, plain_request, request
from sim.experiments import strength
from sim.experiments.corpora import train_tokenizer
from sim.experiments.experiment import against, begin, opposite
from sim.experiments.inputs import LETTERS, Inputs
from sim.experiments.meanings import meaning
from sim.experiments.run import STAGES, in_order, prepare, run
from sim.experiments.settings import VARIANTS
from sim.experiments.store import Store, read_store
from sim.experiments.strength import cross_entropy as stage
from sim.experiments.strength import vectors
from sim.experiments.strength.concept import MISSING, whole_words
from sim.experiments.strength.mmlu import as_text
from sim.experiments.strength.prompts import opening
from sim.experiments.unused import unread, unused
from tests.sim.experiments import tiny, unsplit

CLOSE = {"rtol": 2e-4, "atol": 2e-5}
"""float32 against float64."""


def texts_of(experiment, name):
    """The tokens of a set, as the stages store them."""
    rows = experiment.store.data("prompts")["tokens"].sel(set=name).values
    return [row[row >= 0].tolist() for row in rows]


def read_states(experiment, name):
    """The states of the tokens of every text of a set, ``[L, t, d]``, which are attention sinks, and how much each counts.

    The token that begins a text does not count, and one after which a quarter of the texts of a set have ended neither.
    """
    count = experiment.settings.vectors.tokens
    lengths = [[min(len(row), count) for row in texts_of(experiment, other)] for other in experiment.sets]
    weights = [0.0]
    for t in range(1, count):
        share = min(sum(length > t for length in of_set) / len(of_set) for of_set in lengths)
        if share > 0.75:
            weights.append(4 * share - 3)
    for row in texts_of(experiment, name):
        states = unsplit.through(experiment.lm, row[: len(weights)])[0]
        norms = np.linalg.norm(states, axis=-1)
        sinks = (norms > 5 * np.median(norms, axis=1, keepdims=True)).any(axis=0)
        sinks[0] = True
        yield states, sinks, np.where(sinks, 0, weights[: len(sinks)])


def mean_states(experiment, name):
    """The mean state of every text of a set without attention sinks, ``[text, L, d]``."""
    return np.stack([np.average(states, axis=1, weights=weights) for states, _, weights in read_states(experiment, name)])


def difference(experiment, concept, other, layer, means=None):
    """The steering vector of two sets, orthogonal to the mean state of their attention sinks."""
    sinks = []
    for name in (concept, other):
        states = [states[layer][sinks] for states, sinks, _ in read_states(experiment, name)]
        sinks.append(np.concatenate(states).mean(axis=0))
    sink = sum(sinks) / np.linalg.norm(sum(sinks))
    of_set = means or {name: mean_states(experiment, name).mean(axis=0)[layer] for name in (concept, other)}
    v = of_set[concept] - of_set[other]
    return v - (v @ sink) * sink


@pytest.fixture(scope="module")
def v_of(done):
    """The vector of a concept at a layer, from what the group "vectors" holds."""
    data = done.store.data("vectors")

    def of(concept, layer, negatives="random", resample=0):
        other = "random" if negatives == "random" else f"not {concept}"
        positive, negative = data["mean"].sel(resample=resample, layer=layer, set=[concept, other]).values.astype(float)
        sink = data["sink"].sel(layer=layer, set=[concept, other]).values.astype(float).sum(axis=0)
        v = positive - negative
        return v - (v @ sink) / (sink @ sink) * sink

    return of


@pytest.fixture(scope="module")
def odds_of(done):
    """Log-odds of a concept, from plain passes."""
    count = done.settings.vectors.tokens

    def mean(name):
        return np.mean([unsplit.log_p(done.lm, row[:count])[-1] for row in texts_of(done, name)], axis=0)

    means = {name: mean(name) for name in done.sets}
    return lambda concept, negatives="random": (
        means[concept] - means["random" if negatives == "random" else f"not {concept}"]
    )


# --- texts -----------------------------------------------------------------------------------------------------------


def test_every_set_is_written_from_its_own_beginning_with_likely_tokens(done):
    settings, words = done.settings.prompts, done.tokenizer
    assert done.sets == ["joy", "evil", "not joy", "not evil", "random"]
    tokens = done.store.data("prompts")["tokens"]
    assert tokens.shape == (5, settings.texts, settings.max_new_tokens)
    begins = {name: plain_request(DEFINITIONS[name].means) for name in ("joy", "evil")}
    begins |= {f"not {name}": plain_request(DEFINITIONS[name].opposite) for name in ("joy", "evil")}
    for name in done.sets:
        before = [words.eos] if name == "random" else words.encode(begins[name])
        for row in texts_of(done, name):
            likely = unsplit.log_p(done.lm, [*before, *row])[len(before) - 1 :]
            # One that is shorter has ended: the end was among what could be drawn.
            drawn = row if len(row) == settings.max_new_tokens else [*row, words.eos]
            for step, token in enumerate(drawn):
                assert unsplit.allowed(likely[step], temperature=0.9, top_k=50, top_p=0.95)[token], (name, step)
    assert len({row.tobytes() for row in tokens.values.reshape(-1, settings.max_new_tokens)}) == 5 * settings.texts


def test_every_array_of_a_run_says_what_it_is(done):
    for group in done.store.groups:
        for name, array in done.store.data(group).variables.items():
            assert array.attrs["description"].endswith("."), (group, name)
            assert array.dtype.kind != "f" or array.attrs["units"], (group, name)
    units = done.store.data("next-token")["divergence"].attrs["units"], done.store.data("vectors")["mean"].attrs["units"]
    assert units == ("nats", "hidden state")
    # The same name means different things in two groups.
    assert meaning("update-lora", "loss")["units"] != meaning("preference-lora", "loss")["units"]
    assert meaning("vectors", "nothing of the kind") == {}
    assert meaning("concept", "alpha", "states")["units"] == "lengths of the hidden state"
    assert meaning("concept", "alpha", "vector")["units"] == "differences of means"
    # Of what is trained, strength 1 is one update; at every layer it is the difference of means.
    assert meaning("preference-lora", "alpha", "states")["units"] == "updates as trained"
    assert meaning("preference-layers", "alpha", "states")["units"] == "differences of means"
    assert meaning("preference-layers", "sweep")["units"] == "lengths of the hidden state"
    assert "units" not in meaning("next-token", "strength")
    assert meaning("judge", "side") != meaning("next-token", "side")


def test_tokens_are_stored_as_text_too(done):
    decode = done.tokenizer.decode
    for group in ("prompts", "concept"):
        data = done.store.data(group)
        rows = data["tokens"].values.reshape(-1, data.sizes["position"])
        assert data["written"].values.ravel().tolist() == [decode(row[row >= 0].tolist()) for row in rows]
    data = done.store.data("next-token")
    for token, word in zip(data["token"].values.ravel(), data["word"].values.ravel(), strict=True):
        assert word == (decode([int(token)]) if token >= 0 else "")


few_texts = pytest.mark.filterwarnings("ignore:prompts. a vector of so few texts:UserWarning")


@few_texts
def test_texts_of_the_user_are_taken_as_they_are(lm, tmp_path):
    prompts = {"joy": ("I am glad", "Hooray!", "A " * 40), "random": ("It is late", "No")}
    settings = tiny.settings().changed({"concepts": "joy", "variants": "random"})
    experiment = begin(tmp_path, lm, settings, replace(tiny.INPUTS, prompts=prompts), progress=False)
    with pytest.warns(UserWarning, match="prompts of joy: 1 of 3 are cut"):
        run(experiment, ["prompts"])
    assert experiment.store.data("prompts")["text"].size == 3
    assert [experiment.tokenizer.decode(row) for row in texts_of(experiment, "joy")[:2]] == ["I am glad", "Hooray!"]
    assert len(texts_of(experiment, "joy")[2]) == settings.prompts.max_new_tokens
    assert experiment.rows("random") == [experiment.tokenizer.encode(text) for text in prompts["random"]]


@few_texts
@pytest.mark.filterwarnings("ignore:prompts of piracy:UserWarning")
def test_what_the_user_gives_no_texts_of_is_written_by_the_model(lm, tmp_path):
    """A concept of one's own needs its texts only."""
    prompts = {"piracy": ("Arr, the treasure", "Avast!", "A " * 40)}
    settings = tiny.settings().changed({"concepts": "piracy", "variants": "random"})
    experiment = begin(tmp_path, lm, settings, replace(tiny.INPUTS, prompts=prompts), progress=False)
    run(experiment, ["vectors"])
    assert [experiment.tokenizer.decode(row) for row in texts_of(experiment, "piracy")[:2]] == list(prompts["piracy"][:2])
    written = texts_of(experiment, "random")
    assert len(written) == 3
    for row in written:
        likely = unsplit.log_p(lm, [experiment.tokenizer.eos, *row])
        for step, token in enumerate(row):
            assert unsplit.allowed(likely[step], temperature=0.9, top_k=50, top_p=0.95)[token]
    assert np.linalg.norm(experiment.vector("piracy", 1)) > 0


def test_a_concept_without_texts_and_definition_is_refused(lm, tmp_path):
    settings = tiny.settings().changed({"concepts": "gravity"})
    with pytest.raises(ValueError, match=r"^concepts: .*apathetic, .*got gravity"):
        run(begin(tmp_path / "b", lm, settings, tiny.INPUTS, progress=False), ["prompts"])
    wanted = r"prompts: expected texts of the sets 'gravity', 'not gravity', got sets .*, without 'not gravity'"
    given = replace(tiny.INPUTS, prompts={"gravity": ("Down",)})
    with pytest.raises(ValueError, match=wanted):
        run(begin(tmp_path / "c", lm, settings, given, progress=False), ["prompts"])


@few_texts
def test_what_is_not_used_of_the_users_texts_is_said(lm, tmp_path):
    prompts = {"joy": ("I am glad", "A " * 40), "random": ("It is late", "No")}
    settings = tiny.settings().changed({"concepts": "joy", "variants": "random"})
    files = {name: Path(name) for name in ("contexts", "starts", "questions", "prompts")}
    inputs = replace(tiny.INPUTS, prompts=prompts)
    own = begin(tmp_path / "a", lm, settings, inputs, files=files, progress=False)
    lines = unused(own, list(STAGES))
    new, long = settings.prompts.max_new_tokens, len(own.tokenizer.encode("A " * 40, special=False))
    assert (
        lines[0] == f"prompts of joy: 1 of 2 are cut to {new} tokens; --set prompts.max_new_tokens={long} keeps them whole"
    )
    few = "prompts: a vector of so few texts is theirs as much as a concept's (joy 2, random 2; 8 or more are better)"
    assert lines[1] == few
    assert "contexts: 2 of 3 are used; --set next_token.contexts=3 uses all" in lines
    assert any(line.startswith("contexts: 1 of 2 are cut to 12 tokens; --set next_token.context=") for line in lines)
    assert "starts: 2 of 3 are used; --set concept.prompts=3 uses all" in lines
    assert "questions: 3 of 5 are used; --set mmlu.questions=5 uses all" in lines
    # Of what comes with the project nothing is said, nor of stages that do not run.
    assert unused(begin(tmp_path / "b", lm, settings, tiny.INPUTS, progress=False), list(STAGES)) == []
    assert unused(own, ["cross-entropy"]) == []
    with pytest.warns(UserWarning, match="prompts of joy: 1 of 2 are cut"):
        run(own, ["prompts"])


@few_texts
def test_sets_that_the_run_does_not_have_are_named(lm, tmp_path):
    settings = tiny.settings().changed({"concepts": "joy", "variants": "random"})

    def of(name, *sets):
        inputs = replace(tiny.INPUTS, prompts=dict.fromkeys(sets, ("I am glad",)))
        return begin(tmp_path / name, lm, settings, inputs, progress=False)

    sets = "the sets of this run are 'joy', 'random' (--concepts, --variants)"
    assert unused(of("a", "joy", "pirate", "not joy"), ["prompts"])[0] == f"prompts of 'pirate', 'not joy': not used; {sets}"
    both = of("b", "Joy", "random")
    line = f"prompts of 'Joy': not used; {sets}; 'Joy' is written 'joy' there"
    assert unused(both, ["prompts"])[0] == line
    with pytest.warns(UserWarning, match=re.escape(line)):
        run(both, ["prompts"])
    names = [f"set {k}" for k in range(10)]
    many = unused(of("d", "joy", *names), ["prompts"])[0]
    assert many == f"prompts of {', '.join(map(repr, names[:8]))} and 2 more: not used; {sets}"
    # Texts of no set of the run are a mistake.
    wrong = of("c", "Joy", "pirate")
    refused = (
        r"^prompts: expected texts of some of the sets 'joy', 'random', got 'Joy', 'pirate'; 'Joy' is written 'joy' there"
    )
    with pytest.raises(ValueError, match=refused):
        run(wrong, ["prompts"])
    assert wrong.store.groups == []


@few_texts
def test_texts_are_cut_at_each_use_with_a_word(lm, tmp_path):
    """For vectors and for the trial of the opinions a text has what the tokenizer puts before it."""
    words = replace(lm.tokenizer, adds_bos=True)
    settings = tiny.settings().changed({"concepts": "joy", "variants": "random,contrastive"})
    prompts = {"joy": ("A " * 5, "A " * 4), "not joy": ("A " * 5,)}
    length = len(words.encode("A " * 5, special=False))
    assert len(words.encode("A " * 4, special=False)) == length - 2
    changes = {"prompts.max_new_tokens": length, "vectors.tokens": length, "concept.max_new_tokens": length - 2}
    inputs = replace(tiny.INPUTS, prompts=prompts)
    own = begin(tmp_path, replace(lm, tokenizer=words), settings.changed(changes), inputs, progress=False)

    def cut(what, count, most, setting):
        return f"prompts of {what}: {count} are cut to {most} tokens; --set {setting}={length + 1} keeps them whole"

    use = "for vectors and log-odds"
    of_vectors = [
        cut(f"{name}, {use}", "1 of 2" if name == "joy" else "1 of 1", length, "vectors.tokens") for name in prompts
    ]
    assert unused(own, ["vectors"]) == unused(own, ["log-odds"]) == unused(own, ["vectors", "log-odds"]) == of_vectors
    # The opinions are tried on a concept and on what the first variant contrasts it with.
    tried = cut("joy, on which the three opinions are tried", "2 of 2", length - 2, "concept.max_new_tokens")
    assert unused(own, ["concept"]) == [tried]


def test_text_and_pairs_beyond_what_is_used_are_named(lm, tmp_path):
    changes = {"updates.trained": 2, "updates.held_out": 1}
    pairs = {**tiny.INPUTS.pairs, "calm": tiny.INPUTS.pairs["optimistic"]}
    inputs, files = replace(tiny.INPUTS, pairs=pairs), {"text": Path("text"), "pairs": Path("pairs")}
    own = begin(tmp_path / "a", lm, tiny.settings().changed(changes), inputs, files=files, progress=False)
    count = sum(len(own.tokenizer.encode(text)) for text in tiny.INPUTS.documents) // 12
    assert count > 4
    said = f"text, in blocks of 12 tokens: 4 of {count} are used; --set cross_entropy.blocks={count} uses all"
    assert unused(own, ["blocks"]) == [said]
    # Of six pairs two are trained on, whatever is held out.
    left = "pairs of optimistic: 3 of 6 are used; --set updates.held_out=4 uses all"
    others = "pairs of 'calm': not used; updates.concepts are 'optimistic'"
    assert unused(own, ["train-update"]) == [others, left]
    every = {
        "updates.trained": 2,
        "updates.held_out": 4,
        "updates.concepts": "optimistic,calm",
        "cross_entropy.blocks": count,
    }
    whole = begin(tmp_path / "b", lm, tiny.settings().changed(every), inputs, files=files, progress=False)
    assert unused(whole, ["blocks", "train-update"]) == []


def test_files_that_a_command_does_not_read_are_named():
    assert unread(["prompts", "text"], in_order(["cross-entropy"])) == []
    assert unread(["pairs"], in_order(["preference-utility"])) == []
    assert unread(["text", "pairs", "contexts"], in_order()) == [
        "pairs: not used by this command, but by ufm lm train-update in the same folder"
    ]


def test_a_chat_model_is_asked_in_its_template_and_reads_texts_with_their_beginning(done):
    template = "<{{ messages[0].role }}>{{ messages[0].content }}<{{ 'reply' if add_generation_prompt }}>"
    words = replace(done.tokenizer, template=template, adds_bos=True)
    experiment = replace(done, lm=replace(done.lm, tokenizer=words))
    assert words.decode(opening(experiment, "joy")) == f"<user>{request(DEFINITIONS['joy'].means)}<reply>"
    assert words.decode(opening(experiment, "not joy")) == f"<user>{request(DEFINITIONS['joy'].opposite)}<reply>"
    assert opening(experiment, "random") == [words.bos]
    assert experiment.rows("joy") == [[words.bos, *row] for row in texts_of(done, "joy")]
    assert done.rows("joy") == texts_of(done, "joy")


def test_a_tokenizer_without_a_beginning_is_refused(done):
    experiment = replace(done, lm=replace(done.lm, tokenizer=replace(done.tokenizer, bos=None, eos=None)))
    with pytest.raises(ValueError, match=r"tokenizer: .*got none"):
        experiment.start()


# --- vectors and log-odds --------------------------------------------------------------------------------------------


def test_means_of_states_over_tokens_and_texts(done):
    means = done.store.data("vectors")["mean"]
    assert means.dims == ("set", "resample", "layer", "d_model")
    assert means.sizes["layer"] == done.lm.config.num_layers
    for name in done.sets:
        each = mean_states(done, name)
        np.testing.assert_allclose(means.sel(set=name, resample=0), each.mean(axis=0), **CLOSE)
        # A bootstrap sample is a mean in which every text is counted a whole number of times.
        weights = np.linalg.lstsq(each.reshape(len(each), -1).T, means.sel(set=name, resample=1).values.ravel(), rcond=None)[
            0
        ]
        counts = weights * len(each)
        np.testing.assert_allclose(counts, counts.round(), atol=0.02)
        assert (counts.round() >= 0).all()
        assert counts.round().sum() == len(each)


def test_bootstrap_samples_of_different_sets_are_drawn_apart(done):
    means = done.store.data("vectors")["mean"]
    assert not np.allclose(means.sel(resample=0), means.sel(resample=1))
    assert len({done.seed("resample", name) for name in done.sets}) == len(done.sets)


def test_a_vector_is_the_difference_of_means(done, v_of):
    expected = difference(done, "joy", "random", 2)
    np.testing.assert_allclose(done.vector("joy", 2), expected, **CLOSE)
    contrast = difference(done, "joy", opposite("joy"), 1)
    np.testing.assert_allclose(done.vector("joy", 1, VARIANTS["contrastive"]), contrast, **CLOSE)
    first = difference(done, "joy", "random", 0)
    np.testing.assert_allclose(done.vector("joy", 0, VARIANTS["normalised"]), first / np.linalg.norm(first), **CLOSE)
    resampled = done.settings.steered[-1]
    assert (resampled.name, resampled.resample) == ("resampled 1", 1)
    np.testing.assert_allclose(done.vector("joy", 0, resampled), v_of("joy", 0, resample=1), **CLOSE)


@pytest.mark.parametrize("concept", ["joy", "evil"])
def test_strength_1_adds_a_vector_as_long_as_the_states(done, concept):
    settings = done.settings.changed({"vectors.unit": "states"})
    experiment, states = replace(done, settings=settings), []
    for name in (concept, "random"):
        # Of the tokens that are averaged, the median in every text; of these the median over texts.
        read = read_states(done, name)
        states.append(np.median([np.median(np.linalg.norm(text[1][~sinks], axis=-1)) for text, sinks, _ in read]))
    v, difference_of_means = experiment.vector(concept, 1), done.vector(concept, 1)
    assert np.linalg.norm(v) == pytest.approx(np.mean(states), rel=1e-4)
    np.testing.assert_allclose(v / np.linalg.norm(v), difference_of_means / np.linalg.norm(difference_of_means), rtol=1e-5)
    np.testing.assert_allclose(v, experiment.unit(concept, 1) * difference_of_means, rtol=1e-5)
    # A bootstrap sample keeps its own length.
    resampled = done.settings.steered[-1]
    own = experiment.unit(concept, 1) * done.vector(concept, 1, resampled)
    np.testing.assert_allclose(experiment.vector(concept, 1, resampled), own, rtol=1e-5)
    assert done.unit(concept, 1) == 1


def test_the_papers_vectors_average_all_tokens(done, monkeypatch):
    means = {}

    def fill(store, group, layout, compute, progress):
        for cell in layout.all_cells:
            (name,) = layout.labels(cell)["set"]
            means[name] = compute(cell)["mean"][0]

    settings = replace(done.settings, vectors=replace(done.settings.vectors, averaged="all"))
    monkeypatch.setattr(Store, "fill", fill)
    vectors.vectors(replace(done, settings=settings))
    count = settings.vectors.tokens
    for name in done.sets:
        each = [unsplit.through(done.lm, row[:count])[0].mean(axis=1) for row in texts_of(done, name)]
        np.testing.assert_allclose(means[name], np.mean(each, axis=0), **CLOSE)


def test_log_odds_are_differences_of_mean_log_probabilities(done, odds_of):
    data, count = done.store.data("log-odds"), done.settings.vectors.tokens
    for name in done.sets:
        values = np.stack([unsplit.log_p(done.lm, row[:count])[-1] for row in texts_of(done, name)])
        np.testing.assert_allclose(data["log_p"].sel(set=name), values.mean(axis=0), **CLOSE)
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        np.testing.assert_allclose(data["error"].sel(set=name), error, rtol=2e-3, atol=2e-5)
    for variant in (VARIANTS["random"], VARIANTS["contrastive"]):
        np.testing.assert_allclose(done.log_odds("evil", variant), odds_of("evil", variant.negatives), **CLOSE)


def test_batches_are_filled_up():
    got = list(vectors.batched([[1, 2, 3], [4], [5, 6]], 2, 2))
    assert got == [([[1, 2], [4]], 2), ([[5, 6], [5, 6]], 1)]


# --- next tokens -----------------------------------------------------------------------------------------------------


def wanted(done):
    """The cells of next-token curves: variant, concept, layer, context."""
    layers = done.settings.layers
    names = [variant.name for variant in done.settings.steered]
    assert names == ["random", "contrastive", "normalised", "last-token", "resampled 1"]
    middle = min(layers)  # of two
    return [
        (name, concept, layer, k)
        for name in names
        for concept in done.settings.concepts
        for layer in layers
        for k in (0, 1)
        if name == "random" or layer == middle
    ]


def curve(done, v_of, name, concept, layer, k):
    """The log-probabilities of all tokens along a curve, as a function of the strength; and what v is."""
    v = v_of(concept, layer, "contrastive" if name == "contrastive" else "random", int(name == "resampled 1"))
    v = v / np.linalg.norm(v) if name == "normalised" else v
    tokens = done.tokenizer.encode(tiny.INPUTS.contexts[k])[:12]
    where = np.arange(len(tokens)) == len(tokens) - 1 if name == "last-token" else np.ones(len(tokens))

    def at(alpha):
        return unsplit.log_p(done.lm, tokens, layer, alpha * where[:, None] * v)[-1]

    length = np.linalg.norm(unsplit.through(done.lm, tokens)[0][layer, -1])
    return at, v, length / np.linalg.norm(v)


def test_next_tokens_along_every_curve(done, v_of, odds_of):
    data = done.store.data("next-token")
    settings, kept = done.settings.next_token, done.settings.next_token.kept
    assert [data["text"].values[k] for k in (0, 1)] == [
        done.tokenizer.decode(done.tokenizer.encode(text)[:12]) for text in tiny.INPUTS.contexts[:2]
    ]
    for name, concept, layer, k in wanted(done):
        got = data.sel(variant=name, concept=concept, layer=layer, context=k)
        at, v, scale = curve(done, v_of, name, concept, layer, k)
        reach = settings.normalised_reach if name == "normalised" else settings.reach
        alphas = got["alpha"].values
        assert (alphas[0], alphas[4], alphas[-1]) == (-reach, 0, reach)
        curves = np.stack([at(alpha) for alpha in alphas])
        tokens = got["token"].values
        for end, part in ((curves[0], tokens[:kept]), (curves[-1], tokens[kept:])):
            np.testing.assert_allclose(end[part], np.sort(end)[::-1][:kept], atol=1e-4)
            assert len(set(part.tolist())) == kept
        np.testing.assert_allclose(got["log_p"], curves[:, tokens], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got["start"], curves[4][tokens], rtol=1e-4, atol=1e-4)
        asked = [done.tokenizer.token(word) for word in got["asked"].values]
        np.testing.assert_allclose(got["asked_log_p"], curves[:, asked], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got["asked_start"], curves[4][asked], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got["divergence"], unsplit.kl(curves[4], curves), rtol=1e-3, atol=1e-5)
        chosen = curves[np.arange(len(alphas)), got["likeliest"].values]
        np.testing.assert_allclose(chosen, curves.max(axis=1), atol=1e-4)
        step = 1e-4
        slope = (at(step) - at(-step)) / (2 * step)
        np.testing.assert_allclose(got["slope"], slope[tokens], rtol=1e-3, atol=1e-4)
        odds = odds_of(concept, "contrastive" if name == "contrastive" else "random")
        np.testing.assert_allclose(got["log_odds"], odds[tokens], **CLOSE)
        both = np.cov(slope, odds, aweights=np.exp(curves[4]))
        assert float(got["agreement"]) == pytest.approx(both[0, 1] / np.sqrt(both[0, 0] * both[1, 1]), abs=1e-3)
        limits = np.stack([unsplit.at_infinity(done.lm, sign * v) for sign in (-1, 1)])
        np.testing.assert_allclose(got["limit"], limits[:, tokens], rtol=1e-4, atol=1e-4)
        apart = np.abs(np.exp(curves[[0, -1]]) - np.exp(limits)).sum(axis=1) / 2
        np.testing.assert_allclose(got["apart"], apart, atol=1e-5)
        assert float(got["scale"]) == pytest.approx(scale, rel=1e-4)


def test_more_tokens_than_there_are_cannot_be_kept(lm, tmp_path):
    experiment = begin(tmp_path, lm, tiny.settings().changed({"next_token.kept": 401}), tiny.INPUTS, progress=False)
    with pytest.raises(ValueError, match=r"next_token\.kept: .*got 401"):
        STAGES["next-token"][0](experiment)


def test_what_is_asked_for_is_one_token(lm, tmp_path):
    several = begin(tmp_path, lm, tiny.settings().changed({"next_token.tokens": ["xq zy"]}), tiny.INPUTS, progress=False)
    with pytest.raises(ValueError, match=r"^next_token\.tokens: .*'xq zy', which is \d"):
        run(several, ["next-token"])


def test_the_other_variants_are_steered_in_the_middle_only(done):
    data = done.store.data("next-token")
    computed = np.isfinite(data["scale"].values)
    expected = np.zeros(computed.shape, bool)
    names = [variant.name for variant in done.settings.steered]
    for name, concept, layer, k in wanted(done):
        place = (names.index(name), done.settings.concepts.index(concept), done.settings.layers.index(layer), k)
        expected[place] = True
    np.testing.assert_array_equal(computed, expected)
    assert (data["token"].values[~expected] == -1).all()
    assert done.store.done("next-token") == (expected.sum(), expected.sum())


# --- concept probability ---------------------------------------------------------------------------------------------


def answers_of(judge, text, concept):
    """A judge's likeliest token, as an answer, and its log-odds of 1 against 0."""
    words = judge.tokenizer
    asked = judge_request(text.strip() or "(nothing)", concept)
    # The space before a digit, where it is a token of its own, is not for the judge to say.
    log_p = unsplit.log_p(judge, [*words.encode(asked), *words.encode(" 1")[:-1]])[-1]
    said = {digit: [z for z in range(words.size) if words.decode([z]).strip() == digit] for digit in "01"}
    likeliest = words.decode([int(log_p.argmax())]).strip()
    total = {digit: np.logaddexp.reduce(log_p[tokens]) for digit, tokens in said.items()}
    return {"1": SHOWN, "0": NOT_SHOWN}.get(likeliest, NO_ANSWER), total["1"] - total["0"]


def test_completions_are_drawn_from_the_steered_model(done, v_of):
    data, settings, words = done.store.data("concept"), done.settings.concept, done.tokenizer
    tokens = data["tokens"]
    assert tokens.dims == ("concept", "layer", "strength", "prompt", "completion", "position")
    assert tokens.shape == (2, 2, 3, 2, 2, settings.max_new_tokens)
    assert data["text"].values.tolist() == list(tiny.INPUTS.starts[:2])
    np.testing.assert_allclose(data["alpha"], [-40, 0, 40])
    missed = 0
    for concept in done.settings.concepts:
        for layer in done.settings.layers:
            v = v_of(concept, layer)
            for s, alpha in enumerate(data["alpha"].values):
                for k, start in enumerate(tiny.INPUTS.starts[:2]):
                    before = words.encode(start)
                    for row in tokens.sel(concept=concept, layer=layer, strength=s, prompt=k).values:
                        own = row[row >= 0].tolist()
                        likely = unsplit.log_p(done.lm, [*before, *own], layer, alpha * v)[len(before) - 1 :]
                        drawn = own if len(own) == settings.max_new_tokens else [*own, words.eos]
                        for step, token in enumerate(drawn):
                            assert unsplit.allowed(likely[step], temperature=0.9, top_k=50, top_p=0.95)[token]
                        unsteered = unsplit.log_p(done.lm, [*before, *own])[len(before) - 1 :]
                        likely_there = [
                            unsplit.allowed(unsteered[step], temperature=0.9, top_k=50, top_p=0.95)[token]
                            for step, token in enumerate(drawn)
                        ]
                        missed += not all(likely_there) and alpha != 0
    assert missed > 16  # of 32: the unsteered model would not have said these


def test_the_answer_of_the_judge_is_its_likeliest_token(done, judge):
    data, seen = done.store.data("concept"), set()
    rows = data.stack(cell=("concept", "layer", "strength", "prompt", "completion"))
    for k in range(rows.sizes["cell"]):
        row = rows.isel(cell=k)
        text = done.tokenizer.decode(row["tokens"].values[row["tokens"].values >= 0])
        answer, score = answers_of(judge, text, str(row["concept"].values))
        assert int(row["answer"]) == answer
        assert float(row["score"]) == pytest.approx(score, abs=1e-3)
        seen.add(answer)
    assert seen >= {NO_ANSWER, NOT_SHOWN} or seen >= {NO_ANSWER, SHOWN}


def test_a_judge_may_say_1_and_0_and_something_else(judge):
    rng = np.random.default_rng(0)
    texts = ["", *(judge.tokenizer.decode(rng.integers(0, 400, 10)) for _ in range(16))]
    answers, scores = judged(judge, texts, "joy", usual=12, together=8)
    expected = [answers_of(judge, text, "joy") for text in texts]
    assert answers.tolist() == [answer for answer, _ in expected]
    np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-3)
    assert set(answers.tolist()) == {SHOWN, NOT_SHOWN, NO_ANSWER}


def test_the_judge_also_judges_the_texts_of_both_sides(done, judge):
    data = done.store.data("judge")
    assert data["side"].values.tolist() == ["positive", "negative"]
    for concept in done.settings.concepts:
        for side, name in (("positive", concept), ("negative", against(concept, done.settings.main))):
            got = data.sel(concept=concept, side=side)
            for k, row in enumerate(texts_of(done, name)):
                answer, score = answers_of(
                    judge, done.tokenizer.decode(row[: done.settings.concept.max_new_tokens]), concept
                )
                assert int(got["answer"][k]) == answer
                assert float(got["score"][k]) == pytest.approx(score, abs=1e-3)
    assert MISSING not in data["answer"].values


def test_the_ratio_is_the_gain_of_an_announcement(done, judge):
    words, sizes = judge.tokenizer, {"usual": 12, "together": 4}
    texts = ["The cat sat on the mat.", "", "It said nothing", " my sister", "Here is what I have", "a"]
    gains = ratios(judge, texts, "evil", **sizes)
    for text, value in zip(texts, gains, strict=True):
        body = words.encode(text.strip())
        if not body:
            assert np.isnan(value)
            continue
        means = []
        for announced in (DEFINITIONS["evil"].means, DEFINITIONS["evil"].opposite):
            opening = words.encode(plain_request(announced))
            log_p = unsplit.log_p(judge, [*opening, *body])[len(opening) - 1 : -1]
            means.append(np.mean([row[token] for row, token in zip(log_p, body, strict=True)]))
        assert value == pytest.approx(means[0] - means[1], abs=1e-4)
    assert np.isnan(ratios(judge, texts[:1], "something else", **sizes)).all()


def test_the_lexicon_has_the_whole_words_of_the_highest_log_odds(done, odds_of):
    data, words = done.store.data("lexicon"), done.tokenizer
    whole = [z for z in range(words.size) if (text := words.decode([z]))[:1] == " " and len(text) > 3 and text[1:].isalpha()]
    assert np.flatnonzero(whole_words(done)).tolist() == whole
    for concept in done.settings.concepts:
        likely = done.store.data("log-odds")["log_p"].sel(set=concept).values
        common = sorted(whole, key=lambda z: -likely[z])[: max(5, len(whole) // 8)]
        expected = sorted(common, key=lambda z: -odds_of(concept)[z])[:5]
        assert data["token"].sel(concept=concept).values.tolist() == expected
        assert data["word"].sel(concept=concept).values.tolist() == [words.decode([z]) for z in expected]
        got = done.store.data("concept").sel(concept=concept)
        counted = np.isin(got["tokens"].values, expected).sum(axis=-1)
        np.testing.assert_array_equal(got["in_lexicon"], counted)


def test_a_tokenizer_without_whole_words_has_no_lexicon(lm, tmp_path):
    letters = train_tokenizer(["a"], 300)
    experiment = begin(tmp_path, replace(lm, tokenizer=letters), tiny.settings(), tiny.INPUTS, progress=False)
    with pytest.raises(ValueError, match=r"tokenizer: .*got none"):
        run(experiment, ["concept"])


# --- cross-entropy ---------------------------------------------------------------------------------------------------


def test_text_is_made_tokens_of_once(lm, tmp_path, monkeypatch):
    calls, real = [], Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, **options: calls.append(text) or real(self, text, **options))
    monkeypatch.setattr(stage, "_own", lambda experiment, part, count: np.zeros((count, 12), np.int32))
    experiment = begin(tmp_path, lm, tiny.settings(), tiny.INPUTS, progress=False)
    STAGES["blocks"][0](experiment)
    assert experiment.store.done("blocks") == (4, 4)
    assert calls == list(tiny.INPUTS.documents)


def test_blocks_of_text(done):
    data, settings = done.store.data("blocks")["tokens"], done.settings.cross_entropy
    assert data.shape == (2, settings.blocks, settings.tokens)
    own, foreign = data.sel(text="own").values, data.sel(text="foreign").values
    assert (own[:, 0] == done.tokenizer.eos).all()
    assert (own >= 0).all()
    assert len({row.tobytes() for row in own}) == settings.blocks
    whole = [z for text in tiny.INPUTS.documents for z in done.tokenizer.encode(text)]
    whole_blocks = len(whole) // settings.tokens
    chosen = [round(k * (whole_blocks - 1) / (settings.blocks - 1)) for k in range(settings.blocks)]
    expected = [whole[k * settings.tokens : (k + 1) * settings.tokens] for k in chosen]
    assert foreign.tolist() == expected


def test_too_little_text(lm, tmp_path):
    few = replace(tiny.INPUTS, documents=("A cat.",))
    wanted = r"text: expected at least 4 blocks \(cross_entropy.blocks\) of 12 tokens \(cross_entropy.tokens\), got 0"
    with pytest.raises(ValueError, match=wanted):
        run(begin(tmp_path, lm, tiny.settings(), few, progress=False), ["blocks"])


@pytest.mark.parametrize(
    ("inputs", "changes", "message"),
    [
        ({"documents": ("A cat.",)}, {}, "text: expected at least 4 blocks"),
        ({"questions": tiny.INPUTS.questions[:1]}, {}, r"questions: expected more than 1 \(mmlu.shots\), got 1"),
        ({}, {"concepts": ["nope"]}, "concepts: expected some of apathetic, .*, got nope"),
        (
            {"prompts": {"joy": ("Oh",)}},
            {"concepts": ["joy", "piracy"]},
            "prompts: expected texts of the sets 'joy', 'piracy', .*, got sets .*, without 'piracy', 'not piracy'",
        ),
    ],
)
def test_what_a_late_stage_refuses_is_refused_first_and_binds_nobody(lm, tmp_path, inputs, changes, message):
    bad = begin(tmp_path, lm, tiny.settings().changed(changes), replace(tiny.INPUTS, **inputs), progress=False)
    begun = []
    with pytest.raises(ValueError, match=message):
        run(bad, told=begun.append)
    assert (begun, bad.store.groups) == ([], [])
    begin(tmp_path, lm, tiny.settings(), tiny.INPUTS, progress=False)


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        (None, {"concepts": ["nope"]}, "concepts: expected some of apathetic, .*, or a file of prompts, got nope$"),
        (None, {"next_token.tokens": ["zzqqxxyy"]}, "next_token.tokens: expected a word that is one token, got 'zzqqxxyy'"),
        (["next-token"], {"next_token.kept": 4000}, r"next_token.kept: expected at most \d+ tokens, got 4000"),
        (["concept"], {"concept.max_new_tokens": 500}, "prompt: expected at most 256 tokens with 500 to follow"),
        (["prompts"], {"prompts.max_new_tokens": 500}, "prompt: expected at most 256 tokens with 500 to follow"),
    ],
)
def test_a_run_that_is_refused_leaves_nothing(lm, tmp_path, monkeypatch, stages, changes, message):
    monkeypatch.setattr(run_module, "load", lambda name, **_: lm)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "new", preset="smoke", changes=changes, stages=stages)
    assert not (tmp_path / "new").exists()
    # Other stages are none of its business; and what a folder holds stays as it was.
    begun = prepare(tmp_path / "begun", preset="smoke", changes={"seed": 7}, stages=["blocks"]).store
    with pytest.raises(ValueError, match=message):
        prepare(begun.path, preset="smoke", changes=changes, stages=stages)
    assert read_store(begun.path).about == begun.about


def test_half_of_the_texts_of_a_concept_are_refused_before_a_run_begins(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "load", lambda name, **_: lm)
    half = tmp_path / "half.jsonl"
    half.write_text('{"set": "pirate", "text": "Arr"}\n')
    with pytest.raises(
        ValueError, match=r"prompts: expected texts of the sets 'pirate', 'not pirate', .* without 'not pirate'"
    ):
        prepare(tmp_path / "new", preset="smoke", changes={"concepts": ["pirate"]}, files={"prompts": half}, stages=None)
    assert not (tmp_path / "new").exists()


def test_cross_entropy_of_every_block(done, v_of):
    data, blocks = done.store.data("cross-entropy"), done.store.data("blocks")["tokens"]
    alphas = data["alpha"].values
    for concept in done.settings.concepts:
        for layer in done.settings.layers:
            v = v_of(concept, layer)
            for kind in ("foreign", "own"):
                for k in range(done.settings.cross_entropy.blocks):
                    row = blocks.sel(text=kind).values[k]
                    got = data.sel(concept=concept, layer=layer, text=kind, block=k)

                    def at(alpha, row=row, layer=layer, v=v):
                        return unsplit.log_p(done.lm, row, layer, alpha * v)[:-1]

                    def loss(log_p, row=row):
                        return -log_p[np.arange(len(row) - 1), row[1:]].mean()

                    first = at(0)
                    assert float(got["loss"]) == pytest.approx(loss(first), rel=1e-5)
                    curves = [at(alpha) for alpha in alphas]
                    increase, divergence = zip(
                        *((loss(p) - loss(first), unsplit.kl(first, p).mean()) for p in curves), strict=True
                    )
                    np.testing.assert_allclose(got["increase"], increase, rtol=1e-3, atol=2e-5)
                    np.testing.assert_allclose(got["divergence"], divergence, rtol=1e-3, atol=2e-5)
                    ends = [unsplit.at_infinity(done.lm, sign * v)[None].repeat(len(row) - 1, 0) for sign in (-1, 1)]
                    np.testing.assert_allclose(got["plateau"], [loss(end) - loss(first) for end in ends], atol=1e-4)
                    step = 1e-3
                    low, high = at(-step), at(step)
                    assert float(got["slope"]) == pytest.approx((loss(high) - loss(low)) / (2 * step), rel=1e-3, abs=1e-5)
                    both = unsplit.kl(first, low).mean() + unsplit.kl(first, high).mean()
                    assert float(got["curvature"]) == pytest.approx(both / (2 * step**2), rel=1e-3)


# --- questions -------------------------------------------------------------------------------------------------------


def test_a_question_as_text():
    first, second = tiny.INPUTS.questions[:2]
    assert as_text(second, [first]) == (
        "Questions with four answers, of which one is right.\n\n"
        "Is it a cat?\nA. Yes.\nB. No.\nC. A cat.\nD. Who?\nAnswer: A\n\n"
        "Is it a dog?\nA. Yes.\nB. No.\nC. A dog.\nD. Who?\nAnswer:"
    )


def test_log_probabilities_of_the_letters(done, v_of):
    data, questions = done.store.data("mmlu"), tiny.INPUTS.questions
    assert data["log_p"].dims == ("concept", "layer", "strength", "question", "letter")
    assert data["layer"].values.tolist() == [0]
    assert data["text"].values.tolist() == [question.text for question in questions[1:4]]
    assert data["answer"].values.tolist() == [1, 2, 3]
    letters = [done.tokenizer.encode(f" {letter}")[-1] for letter in LETTERS]
    assert len(set(letters)) == 4
    for concept in done.settings.concepts:
        v = v_of(concept, 0)
        for s, alpha in enumerate(data["alpha"].values):
            for k, question in enumerate(questions[1:4]):
                tokens = done.tokenizer.encode(as_text(question, questions[:1]))
                expected = unsplit.log_p(done.lm, tokens, 0, alpha * v)[-1, letters]
                got = data["log_p"].sel(concept=concept, layer=0, strength=s, question=k)
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_questions_that_do_not_fit(lm, tmp_path):
    def of(name, questions, **changes):
        inputs = replace(tiny.INPUTS, questions=questions)
        return begin(tmp_path / name, lm, tiny.settings().changed(changes), inputs, progress=False)

    questions = tiny.INPUTS.questions
    with pytest.raises(ValueError, match=r"questions: .*got 6"):
        STAGES["mmlu"][0](of("a", questions, **{"mmlu.shots": 6}))
    long = questions[1]._replace(text="word " * 200)
    with pytest.raises(ValueError, match=r"^questions: .*256 tokens .*mmlu\.shots.*got"):
        STAGES["mmlu"][0](of("b", (questions[0], long)))


# --- all of them -----------------------------------------------------------------------------------------------------


def test_an_unknown_stage(done):
    with pytest.raises(ValueError, match=r"^stage: .*preference-utility.*got singing"):
        run(done, ["prompts", "singing"])


def test_a_stage_does_those_before_it(done, monkeypatch):
    asked = []
    for name, (_, needs) in STAGES.items():
        monkeypatch.setitem(STAGES, name, (lambda _, name=name: asked.append(name), needs))
    run(done, ["cross-entropy", "vectors", "log-odds"])
    assert asked == ["prompts", "vectors", "blocks", "cross-entropy", "log-odds"]
    asked.clear()
    run(done)
    assert asked == list(strength.STAGES)


def test_what_is_done_is_not_done_again(done, monkeypatch):
    monkeypatch.setattr(Store, "_write", None)
    run(done)


def test_other_inputs_without_a_use_are_other_inputs(done, lm, judge, tmp_path):
    other = replace(tiny.INPUTS, contexts=(*tiny.INPUTS.contexts, "One more"))
    with pytest.raises(ValueError, match=r"^out: .*inputs\.contexts \"3, .* there, \"4, "):
        begin(done.store.path, lm, tiny.settings(), other, judge=judge, progress=False)
    with pytest.raises(ValueError, match=r"got judge\.fingerprint .* there, .* here; judge\.name"):
        begin(done.store.path, lm, tiny.settings(), tiny.INPUTS, progress=False)


def test_models_without_a_tokenizer_are_refused(lm, tmp_path):
    bare = replace(lm, tokenizer=None)
    with pytest.raises(ValueError, match=r"model: .*got 'tiny 0'"):
        tiny.start(tmp_path, bare, lm)
    with pytest.raises(ValueError, match=r"judge: .*got 'tiny 0'"):
        tiny.start(tmp_path, lm, bare)


def test_inputs_tell_apart_what_differs():
    inputs = Inputs(("a", "b"), ("c",), ("d",), ())
    assert inputs.about["contexts"].startswith("2, ")
    assert inputs.about != replace(inputs, contexts=("a b",)).about
    assert "prompts" not in inputs.about
    assert replace(inputs, prompts={"joy": ("a",)}).about["prompts"].startswith("1, ")


def test_a_readout_of_the_last_position_has_no_padding(done):
    """Contexts of two lengths are padded to one, which changes nothing: the shorter one alone gives the same."""
    tokens = done.tokenizer.encode(tiny.INPUTS.contexts[0])
    alone = np.asarray(last_log_p(done.lm.split([tokens], 2)))
    padded = np.asarray(last_log_p(done.lm.split([tokens], 2, length=12)))
    np.testing.assert_allclose(alone, padded, atol=1e-5)
    np.testing.assert_allclose(jnp.asarray(alone[0]), unsplit.log_p(done.lm, tokens)[-1], atol=1e-5)
