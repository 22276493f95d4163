"""Generation with a cache: against running the whole model again for every token."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sim.bridge import generation
from sim.bridge.generation import Sampler, Sampling, sample
from tests.sim.bridge.test_split import NAMES, PROMPTS, direction, whole
from ufm import Add, After, Last, Steering, Where


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steered", [False, True])
def test_greedy_is_the_likeliest_token_of_the_whole_model(small, name, steered):
    model = small(name)
    rows = np.zeros((model.config.num_layers, model.config.d_model), np.float32)
    rows[1] = steered * 2.0 * direction(model)
    got = model.generate(
        PROMPTS, max_new_tokens=12, steering=Steering({1: Add(direction(model))}) if steered else None, alpha=2.0
    )
    for prompt, tokens in zip(PROMPTS, got.tokens, strict=True):
        grown = list(prompt)
        for _ in range(12):
            grown.append(int(whole(model, rows, grown)[-1].argmax()))
        assert list(tokens) == grown[len(prompt) :]
    assert got.ended == (False,) * 3


def test_each_prompt_can_have_its_own_steering(small):
    """A strength for each prompt, and for each of two layers."""
    model, alphas = small("llama"), [[0.0, 0.0], [3.0, -1.0]]
    steering = Steering({0: Add(direction(model)), 2: Add(direction(model, 1))})
    both = model.generate(PROMPTS[:2], max_new_tokens=8, steering=steering, alpha=alphas).tokens
    alone = [
        model.generate([prompt], max_new_tokens=8, steering=steering, alpha=[alpha]).tokens[0]
        for prompt, alpha in zip(PROMPTS, alphas, strict=False)
    ]
    assert list(both) == alone
    steered = model.generate(PROMPTS[:2], max_new_tokens=8, steering=steering, alpha=[0.0, 1.0]).tokens
    assert steered[0] == both[0] == model.generate(PROMPTS[:1], max_new_tokens=8).tokens[0]
    assert steered[1] == model.generate(PROMPTS[1:2], max_new_tokens=8, steering=steering).tokens[0] != both[1]


@pytest.mark.parametrize("tokens", ["last", "after", "where"])
def test_only_some_tokens_are_steered(small, tokens):
    """Against the whole model, run again for every token with the additions of the tokens before it."""
    model, new = small("gpt2"), 6
    v = 4 * direction(model)
    masks = np.arange(8) == np.array([[3], [6], [7]])
    selection = {"last": Last(), "after": After([8, 3, 4]), "where": Where(masks)}[tokens]
    got = model.generate(PROMPTS, max_new_tokens=new, steering=Steering({1: Add(v)}, tokens=selection))
    for k, (prompt, written) in enumerate(zip(PROMPTS, got.tokens, strict=True)):
        n = len(prompt)
        touched = {
            "last": np.arange(n + new) >= n - 1,
            "after": np.arange(n + new) >= [8, 3, 4][k],
            "where": np.concatenate([masks[k, 8 - n :], np.zeros(new, bool)]),
        }[tokens]
        grown = list(prompt)
        for _ in range(new):
            at = np.zeros((model.config.num_layers, len(grown), v.size), np.float32)
            at[1] = touched[: len(grown), None] * v
            grown.append(int(whole(model, at, grown)[-1].argmax()))
        assert list(written) == grown[n:]


def test_each_continuation_is_steered_like_its_prompt(small):
    model, sampling = small("llama"), Sampling(temperature=1.0)
    steering = Steering({0: Add(100 * direction(model))}, tokens=After([8, 100]))
    steered = model.generate(
        PROMPTS[:2], max_new_tokens=8, num_return_sequences=3, sampling=sampling, steering=steering
    ).tokens
    free = model.generate(PROMPTS[:2], max_new_tokens=8, num_return_sequences=3, sampling=sampling).tokens
    assert steered[3:] == free[3:]
    assert [row[0] for row in steered[:3]] == [row[0] for row in free[:3]]  # the prompt is not steered
    assert steered[:3] != free[:3]


def test_the_seed_tells_what_is_sampled(small):
    model, sampling = small("gpt2"), Sampling(temperature=2.0)
    first, again, other = (
        model.generate(PROMPTS, max_new_tokens=10, sampling=sampling, seed=seed).tokens for seed in (1, 1, 2)
    )
    assert first == again != other


def test_more_tokens_than_there_are_are_all(small):
    model = small("gpt2")
    every, more = (
        model.generate(PROMPTS, max_new_tokens=3, sampling=Sampling(1.0, top_k=k)).tokens
        for k in (model.config.vocab_size, 10**12)
    )
    assert every == more


def test_a_sequence_stops_at_its_end(small):
    model = small("qwen3")
    free = model.generate(PROMPTS[:1], max_new_tokens=10).tokens[0]
    ids, mask = model.contexts(PROMPTS[:1])
    end = jnp.asarray([free[4], 60])
    out, lengths, *_ = generation.compiled(
        model.decoder,
        ids,
        mask,
        Sampler.of(Sampling(), jax.random.key(0), 61),
        end,
        None,
        jnp.zeros((1, 1)),
        max_new_tokens=10,
    )
    stop = free.index(free[4]) + 1
    assert int(lengths[0]) == stop
    assert np.asarray(out)[0, :stop].tolist() == list(free[:stop])


def test_sampling_follows_the_probabilities_that_are_left():
    logits = jnp.log(jnp.asarray([0.5, 0.2, 0.15, 0.1, 0.05]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(temperature, top_k, top_p):
        drawn = jax.vmap(lambda key: sample(key, logits[None], temperature, top_k, top_p)[0])(keys)
        return np.bincount(np.asarray(drawn), minlength=5) / 4000

    np.testing.assert_allclose(shares(1.0, 5, 1.0), [0.5, 0.2, 0.15, 0.1, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 2, 1.0), [5 / 7, 2 / 7, 0, 0, 0], atol=0.03)
    # 0.5 + 0.2 is not yet 0.75, so the third is kept too.
    np.testing.assert_allclose(shares(1.0, 5, 0.75), [0.5 / 0.85, 0.2 / 0.85, 0.15 / 0.85, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 5, 0.5), [1, 0, 0, 0, 0], atol=0)
    np.testing.assert_allclose(shares(0.5, 5, 1.0), np.array([25, 4, 2.25, 1, 0.25]) / 32.5, atol=0.03)
    np.testing.assert_allclose(shares(0.0, 5, 1.0), [1, 0, 0, 0, 0], atol=0)


def shares_left(logits, temperature, top_k, top_p):
    """The probabilities that tokens are drawn with, in NumPy."""
    scaled = np.asarray(logits, float) / temperature
    order = np.argsort(-scaled)[:top_k]
    p = np.exp(scaled[order] - np.logaddexp.reduce(scaled[order]))
    # The likeliest, until they have the probability top_p together.
    kept = order[: int(np.searchsorted(np.cumsum(p), top_p * (1 - 1e-6))) + 1]
    shares = np.zeros(len(logits))
    shares[kept] = np.exp(scaled[kept] - np.logaddexp.reduce(scaled[kept]))
    return shares


@pytest.mark.parametrize(
    ("sort", "top_k", "top_p"),
    [
        (None, 400, 1.0),
        (None, 400, 0.6),
        (None, 300, 0.9),
        (None, 3, 0.8),
        (256, 50, 0.95),
        (256, 256, 1.0),
        (256, 5, 0.3),
        (0, 1, 0.1),
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_what_is_drawn_has_the_probabilities_that_numpy_says(sort, top_k, top_p, temperature):
    """Of 400 tokens; where all are drawn from, top_k and top_p are not looked at."""
    logits, count = np.random.default_rng(3).normal(size=400).astype(np.float32) * 2, 5_000
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, 400))
    drawn = np.asarray(sample(jax.random.key(5), rows, temperature, top_k, top_p, sort=sort))
    expected = shares_left(logits, temperature, *((400, 1.0) if sort == 0 else (top_k, top_p)))
    got = np.bincount(drawn, minlength=400)
    assert (got[expected == 0] == 0).all()
    # Counts are binomial.
    off = np.abs(got - count * expected) / np.sqrt(count * expected * (1 - expected) + 1)
    assert off.max() < 5
    greedy = sample(jax.random.key(5), rows[:2], 0.0, top_k, top_p, sort=sort)
    assert greedy.tolist() == [int(logits.argmax())] * 2


@pytest.mark.usefixtures("as_users_have_it")
def test_temperatures_and_probabilities_may_be_fractions():
    assert Sampling(Fraction(1, 2), top_p=Fraction(3, 4)) == Sampling(0.5, top_p=0.75)
    assert type(Sampling(Fraction(1, 2)).temperature) is float


def test_no_more_tokens_are_sorted_than_need_be():
    assert Sampling(1.0).sort == 0
    assert Sampling(1.0, top_p=0.9).sort is None
    assert Sampling(1.0, top_k=256).sort == Sampling(1.0, top_k=50, top_p=0.9).sort == 256
    assert Sampling(1.0, top_k=257).sort is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number of at least 1, got 0"),
        ({"max_new_tokens": 250}, "prompt: expected at most 256 tokens with 250 to follow, got 258"),
        ({"seed": 2**32}, "seed: expected a whole number from 0 to 4294967295, got 4294967296"),
        ({"steering": np.zeros(32)}, r"steering: expected a Steering\({layer: ...}\), got an array"),
        ({"steering": Steering(Add(np.ones(32)))}, "steering: expected a layer for every intervention"),
        ({"steering": Steering({1: Add(np.ones(31))})}, "steering: expected an intervention for the site residual"),
        ({"steering": Steering({1: Add(np.full(32, np.nan))})}, "steering.v: expected finite numbers"),
        ({"steering": Steering({3: Add(np.ones(32))})}, "layer: expected a block from 0 to 2, got 3"),
        (
            {"steering": Steering({1: Add(np.ones(32))}), "alpha": [1.0, 2.0]},
            r"alpha: expected a number, one for each prompt",
        ),
        ({"steering": Steering({1: Add(np.ones(32))}), "alpha": np.inf}, "alpha: expected finite numbers"),
        ({"steering": Steering({1: Add(np.ones(32))}), "alpha": 1e39}, r"alpha: .*float32 holds, got 1e\+39"),
    ],
)
def test_bad_input(small, options, message):
    with pytest.raises(ValueError, match=message):
        small("llama").generate(PROMPTS, **options)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_sampling(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
