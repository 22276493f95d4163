"""A steering as a value: how it is made, shown and refused. What it does is in the tests of models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm import UFM, Add, After, All, Last, LoRA, Steering, Where, steer, sweep
from ufm.steering import Part, as_steering, stacks

V = np.array([1.0, -2.0, 0.5])


def model():
    rng = np.random.default_rng(0)
    return UFM(jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(3, 5))))


def test_one_intervention_and_several():
    assert [(p.layer, p.site, p.order) for p in Steering(Add(V)).parts] == [(None, "residual", 0)]
    several = Steering({7: Add(V), 2: [Add(V), Add(2 * V)]}, site="mlp_down", tokens=Last())
    assert [(p.layer, p.site, p.order, p.tokens) for p in several.parts] == [
        (7, "mlp_down", 0, Last()),
        (2, "mlp_down", 0, Last()),
        (2, "mlp_down", 1, Last()),
    ]
    both = Steering({2: Add(V)}) + Steering({2: Add(V), 3: Add(V)}) + Steering(Add(V))
    assert [(p.layer, p.order) for p in both.parts] == [(2, 0), (2, 1), (3, 0), (None, 0)]


def test_layers_of_any_whole_number_type():
    for layer in (np.int64(3), np.uint8(3), 3):
        (part,) = Steering({layer: Add(V)}).parts
        assert part.layer == 3


def test_it_is_shown():
    steering = Steering({2: Add(V)}, tokens=Last()) + Steering({3: LoRA(V[None], V[:, None])}, site="mlp_down")
    assert repr(steering) == "Steering(2: Add, Last(), 3: LoRA at mlp_down)"
    assert repr(Steering(Add(V))) == "Steering(Add)"


def test_it_is_a_pytree():
    steering = Steering({2: Add(jnp.asarray(V))}, tokens=After(3))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, steering)
    assert isinstance(doubled, Steering)
    assert (doubled.parts[0].layer, doubled.parts[0].tokens.length) == (4, 6)
    np.testing.assert_array_equal(doubled.parts[0].intervention.v, 2 * V)
    assert jax.tree.structure(steering) != jax.tree.structure(Steering({2: Add(jnp.asarray(V))}, tokens=Last()))


def test_a_vector_is_one():
    for vector in (V, V.tolist(), jnp.asarray(V)):
        (part,) = as_steering(vector).parts
        np.testing.assert_array_equal(part.intervention.v, V)
    assert as_steering(Steering(Add(V))).parts[0].layer is None
    assert isinstance(as_steering(Add(V)), Steering)


MASK = np.array([[False, False, True, True, True], [True, True, True, True, True], [False, False, False, False, True]])


@pytest.mark.parametrize(
    ("tokens", "chosen", "new"),
    [
        (All(), None, None),
        (Last(), [[4], [4], [4]], None),
        (After(1), [[3, 4], [1, 2, 3, 4], []], [True, True, True]),
        (After(jnp.asarray([2, 5, 0])), [[4], [], [4]], [True, False, True]),
        (Where(np.array([True, False, True, False, False])), [[2], [0, 2], []], [False] * 3),
        (Where(np.arange(5) == np.array([[3], [1], [0]])), [[3], [1], []], [False] * 3),
    ],
)
def test_tokens(tokens, chosen, new):
    """Positions as they are padded; new tokens are at the positions 3, 4 and 5."""
    got = tokens.chosen(jnp.asarray(MASK), jnp.arange(3))
    assert (None if got is None else [np.flatnonzero(row).tolist() for row in np.asarray(got)]) == chosen
    later = tokens.chosen_new(jnp.asarray([3, 4, 5]), jnp.arange(3))
    assert (None if later is None else np.asarray(later).tolist()) == new


def test_the_last_token_of_contexts_that_are_padded_on_the_right():
    got = Last().chosen(jnp.asarray(MASK[:, ::-1]), jnp.arange(3))
    assert np.argmax(got, axis=1).tolist() == [2, 4, 0]


def test_stacks_keep_what_cannot_be_one():
    steering = (
        Steering({k: Add(V) for k in range(4)}) + Steering({1: Add(V), 5: Add(V)}) + Steering({1: LoRA(V[None], V[:, None])})
    )
    result = stacks(steering)
    assert [list(stack.layers) for stack in result] == [[0, 1, 2, 3, 5], [1], [1]]
    assert [stack.numbers.tolist() for stack in result] == [[0, 1, 2, 3, 5], [4], [6]]
    assert isinstance(result[0].parts, Part)
    assert result[0].parts.intervention.v.shape == (5, 3)


REFUSED = {
    "no intervention": (lambda: Steering({}), "steering: expected at least one intervention, got none"),
    "an empty list": (lambda: Steering({3: []}), "steering: expected at least one intervention, got none"),
    "a bare vector": (lambda: Steering({3: V}), r"steering: expected interventions, such as Add\(v\), got an array"),
    "a layer that is a word": (
        lambda: Steering({"middle": Add(V)}),
        "layer: expected a block, counted from 0, got 'middle'",
    ),
    "a negative layer": (lambda: Steering({-1: Add(V)}), "layer: expected a block, counted from 0, got -1"),
    "half a layer": (lambda: Steering({1.5: Add(V)}), "layer: expected a block, counted from 0, got 1.5"),
    "tokens by name": (
        lambda: Steering(Add(V), tokens="last"),
        "tokens: expected a selection of tokens: All, Last, After, Where",
    ),
    **{
        f"tokens after {length!r}": (
            lambda length=length: Steering(Add(V), tokens=After(length)),
            r"^tokens: expected After\(length\) with whole numbers of at least 0, got",
        )
        for length in ("a", float("nan"), -1, 2.5, [3, -2], [[1]])
    },
    **{
        f"tokens after {length!r}": (
            lambda length=length: Steering(Add(V), tokens=After(length)),
            r"^tokens: expected After\(length\) with whole numbers of at least 0, and less than 2\*\*31, got",
        )
        for length in (2**32, [0, 2**31])
    },
    **{
        f"tokens where {mask!r}": (
            lambda mask=mask: Steering(Add(V), tokens=Where(mask)),
            r"^tokens: expected Where\(mask\) with truth values in an axis of positions, got",
        )
        for mask in ("a", True, [2, 1], [0.5, 1.0], [[[1, 0]]])
    },
    "a site by number": (lambda: Steering(Add(V), site=3), "site: expected the name of a site, got 3"),
    "a vector added": (lambda: Steering(Add(V)) + V, "steering: expected a Steering to add, got an array"),
    "a table": (
        lambda: as_steering(np.ones((2, 3))),
        r"steering: expected a Steering, or a vector \[d\], got shape",
    ),
    "words": (lambda: as_steering("joy"), "steering: expected a Steering, or a vector"),
    "a layer of a UFM": (
        lambda: steer(model(), [0], Steering({0: Add(V)}), 1.0),
        "layer: expected none, for a model with one place to steer, got 0",
    ),
    "tokens of a UFM": (
        lambda: steer(model(), [0], Steering(Add(V), tokens=Last()), 1.0),
        r"tokens: expected All\(\), for a model without tokens",
    ),
    "strengths": (
        lambda: steer(model(), [0], V, [1.0, 2.0]),
        r"alpha: expected a number, or one for each of the 1 interventions, got shape \(2,\)",
    ),
    "strengths of a sweep": (
        lambda: sweep(model(), jnp.arange(2), V, jnp.ones((3, 2)), lambda logits, _: logits),
        r"alphas: expected strengths \[K\], or one for each of the 1 interventions, \[K, 1\], got \(3, 2\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
