"""The states of texts against NumPy on the states of all tokens: which tokens count, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

import sim.directions.states as states_module
from sim.bridge.split import block_activation_size
from sim.directions.states import SINK, answer_row, place_weights, text_states, token_states
from tests.sim.bridge.test_model import letters

POSITIVE = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16, 17]]
NEGATIVE = [[20, 21, 22, 23, 24, 25, 26], [27, 28, 29], [30, 31, 32, 33], [34, 35, 36, 37, 38]]


@pytest.fixture
def lm(small):
    return small("llama")


@pytest.fixture
def lm_with_sink(lm):
    """The same model with a token whose state is very long, at whatever position."""
    parameters = lm.parameters
    table = np.array(parameters["embedding"])
    table[60] *= 400
    return type(lm)(type(lm.decoder)(lm.config, parameters | {"embedding": table}, dtype=lm.decoder.dtype))


def states_of(lm, text):
    """All states of one text, ``[L, T, d]``."""
    states, mask = lm.states([text])
    return np.asarray(states, float)[:, 0, mask[0]]


def mean_of(lm, texts, tokens):
    return np.stack([states_of(lm, text)[:, tokens(text)].mean(axis=1) for text in texts], axis=1)


@pytest.mark.parametrize(
    ("tokens", "places"),
    {
        "all": lambda text: slice(None),
        "last": lambda text: slice(-1, None),
        2: lambda text: slice(-2, None),
        # All texts have 3 tokens, and in neither set more than three quarters have more.
        "content": lambda text: slice(1, 3),
    }.items(),
)
def test_which_tokens_are_averaged(lm, tokens, places):
    states = text_states(lm, POSITIVE, NEGATIVE, tokens=tokens)
    np.testing.assert_allclose(states.positive, mean_of(lm, POSITIVE, places), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(states.negative, mean_of(lm, NEGATIVE, places), rtol=2e-5, atol=1e-5)
    assert states.tokens.tolist() == [len(text[places(text)]) for text in POSITIVE + NEGATIVE]
    assert (states.places is None) == (tokens != "content")
    assert tokens != "content" or len(states.places) == 3


def test_places_that_few_texts_reach_count_less(lm):
    """4 places are reached by all, the fifth by 9 of 10 and 8 of 9, the sixth by 9 and 7 of these, the seventh by fewer."""
    positive = [[5 + k, *range(20, 20 + n)] for k, n in enumerate((8, 5, 3, 6, 6, 9, 7, 5, 5, 5))]
    negative = [[40 - k, *range(30, 30 + n)] for k, n in enumerate((4, 5, 5, 5, 5, 3, 6, 8, 11))]
    expected = [1, 1, 1, 1, 4 * 8 / 9 - 3, 4 * 7 / 9 - 3]
    np.testing.assert_allclose(place_weights([list(map(len, positive)), list(map(len, negative))]), expected, rtol=1e-12)
    states = text_states(lm, positive, negative)
    assert len(states.places) == 6
    for k, text in enumerate(positive):
        total, mass = 0, 0
        # The first token is a sink.
        for place in range(1, min(len(text), 6)):
            total, mass = total + expected[place] * states_of(lm, text)[:, place], mass + expected[place]
        np.testing.assert_allclose(states.positive[:, k], total / mass, rtol=2e-5, atol=1e-5)
    assert states.tokens[:4].tolist() == [5, 5, 3, 5]


def test_the_length_of_a_text_hardly_moves_the_weights():
    lengths = [[12 + k % 7 for k in range(40)], [13 + k % 5 for k in range(40)]]
    before = place_weights(lengths)
    after = place_weights([[length + 7 * (k == 5) for k, length in enumerate(lengths[0])], lengths[1]])
    n = min(len(before), len(after))
    np.testing.assert_allclose(before[:n], after[:n], atol=0.1 + 1e-9)
    assert len(after) - n <= 1
    assert after[n:].sum() <= 0.1
    assert set(place_weights([[3, 3], [5, 5, 5]])) == {1.0}


def test_masks(lm):
    masks = tuple([np.arange(len(text)) % 2 == 0 for text in texts] for texts in (POSITIVE, NEGATIVE))
    states = text_states(lm, POSITIVE, NEGATIVE, tokens=masks)
    np.testing.assert_allclose(
        states.positive, mean_of(lm, POSITIVE, lambda text: slice(None, None, 2)), rtol=2e-5, atol=1e-5
    )


def test_sinks_are_left_out_and_averaged_apart(lm_with_sink):
    positive = [[5, 60, 7, 8, 9], [9, 10, 60]]
    negative = [[20, 21, 22, 23], [27, 28, 60]]
    states = text_states(lm_with_sink, positive, negative)
    assert len(states.places) == 3
    sinks = []
    for k, text in enumerate(positive + negative):
        every = states_of(lm_with_sink, text)[:, : len(states.places)]
        norms = np.linalg.norm(every, axis=-1)
        sink = (norms > SINK * np.median(norms, axis=1, keepdims=True)).any(axis=0)
        assert sink.tolist() == [z == 60 for z in text[: len(states.places)]]
        sink[0] = True
        mean = states.positive[:, k] if k < 2 else states.negative[:, k - 2]
        np.testing.assert_allclose(mean, every[:, ~sink].mean(axis=1), rtol=2e-5, atol=1e-5)
        sinks.append(every[:, sink])
    assert states.left_out == sum(part.shape[1] for part in sinks) == 4 + 3
    np.testing.assert_allclose(states.sinks, np.concatenate(sinks, axis=1).mean(axis=1), rtol=2e-5, atol=1e-5)


def test_what_comes_after_the_cut_has_no_say(lm):
    longer = [[*text, 50, 51, 52, 53, 54, 55, 56] for text in POSITIVE]
    before, after = (text_states(lm, texts, [[20, 21, 22], [23, 24, 25, 26]]) for texts in (POSITIVE, longer))
    np.testing.assert_allclose(before.positive, after.positive, atol=1e-6)


def test_scales_are_the_median_norms(lm):
    states = text_states(lm, POSITIVE, NEGATIVE, tokens="all")
    norms = [np.median(np.linalg.norm(states_of(lm, text), axis=-1), axis=1) for text in POSITIVE + NEGATIVE]
    np.testing.assert_allclose(states.scales, np.median(norms, axis=0), rtol=1e-5)


def test_batches_within_a_budget(lm, monkeypatch):
    whole, sizes = text_states(lm, POSITIVE, NEGATIVE), []
    program = states_module._compiled_means
    counted = lambda *args, **named: (sizes.append(args[1].shape[0]), program(*args, **named))[1]  # noqa: E731
    monkeypatch.setattr(states_module, "_compiled_means", counted)
    size = block_activation_size(lm.config, 3, 3) + 3 * lm.config.num_layers * lm.config.d_model
    for budget, expected in ((1, [1] * 7), (3 * size - 1, [2, 2, 2, 2]), (3 * size, [3, 3, 3]), (None, [7])):
        sizes.clear()
        batched = text_states(lm, POSITIVE, NEGATIVE, budget=budget)
        np.testing.assert_allclose(whole.positive, batched.positive, atol=1e-5)
        np.testing.assert_allclose(whole.negative, batched.negative, atol=1e-5)
        np.testing.assert_allclose(whole.sinks, batched.sinks, atol=1e-5)
        assert sizes == expected


def test_the_beginning_that_a_tokenizer_adds_is_no_content(lm):
    lm = replace(lm, tokenizer=letters())
    states = text_states(lm, ["ABC"], ["DEF"])
    assert states.tokens.tolist() == [3, 3]
    assert states.left_out == 2


def test_the_end_that_a_tokenizer_adds_is_no_content(lm):
    ends = replace(lm, tokenizer=replace(letters(), adds_eos=True))
    plain = replace(lm, tokenizer=letters())
    texts = (["ABCD", "BCDA"], ["DCBA", "CDAB"])
    for options in (
        {},
        {"tokens": "last"},
        {"tokens": 2},
        {"questions": ["A", "B"]},
        {"questions": ["A", "B"], "tokens": "answer"},
    ):
        got, expected = (text_states(model, *texts, **options) for model in (ends, plain))
        np.testing.assert_array_equal(got.tokens, expected.tokens)
        np.testing.assert_allclose(got.positive, expected.positive, rtol=1e-5, atol=1e-6)
    assert text_states(ends, *texts, tokens="all").tokens.tolist() == [6] * 4


def test_the_form_of_a_chat_is_no_content(lm):
    lm = replace(lm, tokenizer=letters())
    states = text_states(lm, ["ABC", "ABCDEF"], ["DCA", "CDAB"], chat=True)
    assert len(states.places) == 3
    assert states.tokens.tolist() == [3] * 4
    row = lm.tokenizer.encode(lm.tokenizer.chat([{"role": "user", "content": "ABCDEF"}]), special=False)
    first = row.index(lm.tokenizer.encode("A", special=False)[0])
    expected = states_of(lm, row)[:, first : first + 3].mean(axis=1)
    np.testing.assert_allclose(states.positive[:, 1], expected, rtol=2e-5, atol=1e-5)
    talk = [{"role": "user", "content": "B"}, {"role": "assistant", "content": "BB"}, {"role": "user", "content": "CAB"}]
    assert text_states(lm, [talk], ["CAB"], chat=True).tokens.tolist() == [3, 3]
    last = text_states(lm, ["A"], ["DC"], chat=True, tokens="last").positive
    whole = lm.tokenizer.encode(lm.tokenizer.chat([{"role": "user", "content": "A"}]), special=False)
    np.testing.assert_allclose(last[:, 0], states_of(lm, whole)[:, -1], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("questions", "answers", "words"),
    [
        (["A", None], ["B", "C"], "questions: expected a text, got None"),
        (["A", "A"], [[5], [6]], "texts: expected a text, got"),
    ],
)
@pytest.mark.usefixtures("as_users_have_it")
def test_questions_and_answers_are_texts(lm, questions, answers, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        text_states(replace(lm, tokenizer=letters()), answers, answers, questions=questions)


def test_answers_to_questions(lm):
    lm = replace(lm, tokenizer=letters())
    questions = ["A", "BB"]
    states = text_states(lm, ["CD", "E"], ["F", "GHI"], questions=questions, chat=True)
    row = answer_row(lm, "BB", "GHI", chat=True)
    assert row.ids[row.start :] == lm.tokenizer.encode("GHI", special=False)
    assert row.ids[: row.start] == lm.tokenizer.encode(lm.tokenizer.chat([{"role": "user", "content": "BB"}]), special=False)
    assert len(states.places) == 1
    np.testing.assert_allclose(states.negative[:, 1], states_of(lm, row.ids)[:, row.start], rtol=2e-5, atol=1e-5)
    every = text_states(lm, ["CD", "E"], ["F", "GHI"], questions=questions, chat=True, tokens="answer")
    np.testing.assert_allclose(
        every.negative[:, 1], states_of(lm, row.ids)[:, row.start :].mean(axis=1), rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [[1]]), "^positive: "),
        (([[1, 2]], []), "^negative: "),
        (("AB", [[1]]), "^positive: .*list"),
        (([[1]], [[1, 2]]), "^text 0 of positive: .*first"),
        (([[1, 2], [3, 99]], [[1, 2]]), "^tokens: .*99.*text 1 of positive"),
        (([[1, 2]], [[1, 2]], {"tokens": "some"}), "^tokens: .*content"),
        (([[1, 2]], [[1, 2]], {"tokens": True}), "^tokens: "),
        (([[1, 2]], [[1, 2]], {"tokens": 0}), "^tokens: "),
        (([[1, 2]], [[1, 2]], {"tokens": 3}), "^text 0 of positive: .*3 tokens"),
        (([[1, 2]], [[1, 2]], {"tokens": "answer"}), "^tokens: .*questions"),
        (([[1, 2]], [[1, 2]], {"tokens": ([[True, True]],)}), "^tokens: .*two sets"),
        (([[1, 2]], [[1, 2]], {"tokens": (True, False)}), "^tokens: expected a list of masks for each set, got True"),
        (([[1, 2]], [[1, 2]], {"tokens": ([[True, True]], [[True]])}), "^mask of text 0 of negative: "),
        (([[1, 2]], [[1, 2]], {"tokens": ([[True, True]], [[False, False]])}), "^mask of text 0 of negative: .*one token"),
        (([[1, 2]], [[1, 2]], {"questions": ["A", "B"]}), "^positive: .*2 questions"),
        (([[1, 2]], [[1, 2]], {"budget": 0}), "^budget: "),
    ],
)
def test_bad_input(lm, arguments, message):
    positive, negative, *more = arguments
    with pytest.raises(ValueError, match=message):
        text_states(lm, positive, negative, **(more[0] if more else {}))


@pytest.mark.parametrize("budget", [None, 1, 4_000])
def test_states_of_tokens(lm_with_sink, budget):
    texts = [[5, 60, 7, 8], [9, 10, 60], [20, 21, 22, 23, 24]]
    batches = list(token_states(lm_with_sink, texts, 1, budget=budget))
    assert len(batches) == 1 if budget is None else len(batches) > 1
    states, of_text, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert of_text.tolist() == [0, 0, 1, 2, 2, 2, 2]
    expected = [states_of(lm_with_sink, text)[1, [k for k in range(1, len(text)) if text[k] != 60]] for text in texts]
    np.testing.assert_allclose(states, np.concatenate(expected), rtol=2e-5, atol=1e-5)
    assert weights.tolist() == [1] * 7
    parts = token_states(lm_with_sink, texts, 1, places=np.array([1, 1, 0.5]), budget=budget)
    short, _, weights = (np.concatenate(values) for values in zip(*parts, strict=True))
    np.testing.assert_allclose(short, states[[0, 2, 3, 4]], atol=1e-5)
    assert weights.tolist() == [0.5, 1, 1, 0.5]
    # The means of texts are over the same tokens, as far as all texts reach.
    means = text_states(lm_with_sink, texts, texts).positive[1]
    np.testing.assert_allclose(means[2], states[3:5].mean(axis=0), rtol=2e-5, atol=1e-5)


def test_states_of_tokens_of_answers(lm):
    lm = replace(lm, tokenizer=letters())
    row = answer_row(lm, "BB", "GHI")
    ((states, of_text, _),) = token_states(lm, ["GHI"], 2, questions=["BB"])
    np.testing.assert_allclose(states, states_of(lm, row.ids)[2, row.start :], rtol=2e-5, atol=1e-5)
    assert of_text.tolist() == [0] * len(states)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0), "^texts: "),
        (([[1, 2]], 3), "^layer: .*0 to 2, got 3"),
        (([[1, 2]], -1), "^layer: "),
        (([[1, 2]], 0, {"questions": []}), "^questions: "),
        (([[1, 2]], 0, {"questions": ["A", "B"]}), "^questions: .*1 texts, got 2"),
        (([[1, 2]], 0, {"places": np.zeros(2)}), "^places: expected finite weights"),
        (([[1, 2]], 0, {"places": np.array([1.0, -1.0])}), "^places: expected finite weights"),
        (([[1, 2]], 0, {"places": np.array([1, np.nan])}), "^places: expected finite weights"),
        (([[1, 2]], 0, {"places": np.ones(1)}), "^text 0: .*first"),
        (([[1, 2], [1]], 0), "^text 1: .*first"),
    ],
)
def test_bad_input_of_token_states(lm, arguments, message):
    texts, layer, *more = arguments
    with pytest.raises(ValueError, match=message):
        list(token_states(lm, texts, layer, **(more[0] if more else {})))


def test_an_empty_text_has_no_states_of_tokens(lm):
    with pytest.raises(ValueError, match=r"^text 0: .*first"):
        list(token_states(replace(lm, tokenizer=letters()), [""], 0))


def test_states_that_are_not_finite(small):
    lm = small("llama").with_dtype("float16")
    grown = {name: value * 3e4 for name, value in lm.parameters.items()}
    broken = type(lm)(type(lm.decoder)(lm.config, grown, dtype=lm.decoder.dtype))
    with pytest.raises(ValueError, match=r"^states: .*finite.*block \d+, in float16"):
        text_states(broken, [[1, 2]], [[3, 4]])
