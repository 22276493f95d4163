"""Vectors as values: arithmetic, the steering they make, models that they fit, and what is said of them."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from sim.directions.vector import Diagnosis, ModelTag, SteeringVector

A, B = np.array([3.0, 4.0, 0.0]), np.array([0.0, 1.0, 2.0])
TAG = ModelTag("tiny", "llama", "abc", 3, 4)


def vector(v=A, name="joy", **changes):
    sink = np.array([0.6, 0.8, 0.0])
    facts = {
        "model": TAG,
        "diagnosis": {1: Diagnosis(1.0, None, 0.9, 1.0, 3.0, 0.5)},
        "sinks": {1: sink},
        "scales": {1: 10.0},
    }
    return SteeringVector({1: v, 3: B}, name, **facts | changes)


def test_directions_are_float32_and_in_order():
    made = SteeringVector({3: A, 1: [1, 2, 3]})
    assert made.layers == (1, 3)
    assert {v.dtype for v in made.directions.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(made[3], A)
    assert made.d_model == 3


def test_arithmetic():
    joy, anger = vector(), vector(B, "anger")
    mixed = 2 * joy - anger / 4
    np.testing.assert_allclose(mixed[1], 2 * A - B / 4)
    assert mixed.name == "2 * joy - (0.25 * anger)"
    assert mixed.model == TAG
    # What is known from the numbers alone is found anew; what texts told is not known of a mixture.
    np.testing.assert_allclose(
        mixed.diagnosis[1].sink_share, (mixed[1] @ [0.6, 0.8, 0]) ** 2 / (mixed[1] @ mixed[1]), rtol=1e-6
    )
    assert mixed.diagnosis[1].relative_norm == pytest.approx(np.linalg.norm(mixed[1]) / 10)
    assert mixed.diagnosis[1].accuracy is None
    np.testing.assert_array_equal((-joy)[1], -A)
    assert (3 * joy).diagnosis[1] == replace(joy.diagnosis[1], relative_norm=1.5)
    unit = joy.normalized()
    np.testing.assert_allclose(unit[1], A / 5)
    assert unit.diagnosis[1].relative_norm == pytest.approx(0.1)


def test_what_either_of_two_vectors_knows_their_sum_knows():
    """In whatever order they are added."""
    known, other = vector(), vector(A, model=ModelTag(family="llama"), diagnosis={}, sinks={}, scales={})
    for total in (known + other, other + known):
        assert total.model == TAG
        np.testing.assert_array_equal(total.sinks[1], known.sinks[1])
        assert total.diagnosis[1].sink_share == pytest.approx(1.0)
        assert total.diagnosis[1].relative_norm == pytest.approx(1.0)
    unlike = vector(sinks={1: np.array([0.0, 0.0, 1.0])}, scales={1: 20.0})
    for total in (known + unlike, unlike + known):
        np.testing.assert_allclose(total.sinks[1], np.array([0.6, 0.8, 1.0]) / 2**0.5, rtol=1e-6)
        assert total.scales[1] == 15.0


def test_how_it_was_made_is_kept_as_files_keep_it():
    made = vector(extraction={"a": (1, np.float32(2)), "b": {1: np.arange(2)}})
    assert made.extraction == {"a": [1, 2.0], "b": {"1": [0, 1]}}
    assert made == vector(extraction=made.extraction)


def test_blocks_that_both_have_are_combined():
    mixed = vector() + SteeringVector({3: A, 5: A}, "more")
    assert mixed.layers == (3,)
    np.testing.assert_allclose(mixed[3], A + B)


def test_the_steering_adds_it():
    steering = vector().steering(3)
    (part,) = steering.parts
    assert part.layer == 3
    np.testing.assert_array_equal(part.intervention.v, B.astype(np.float32))
    assert len(vector().steering().parts) == 2
    last = vector().steering([1, 3], tokens=ufm.Last())
    assert [part.layer for part in last.parts] == [1, 3]
    assert all(isinstance(part.tokens, ufm.Last) for part in last.parts)


def test_a_site_that_the_model_does_not_have_is_refused(small):
    lm = small("llama")
    with pytest.raises(ValueError, match=r"^vector: .* a site among residual, mlp_down, got one for 'nope'"):
        SteeringVector({1: np.ones(lm.config.d_model)}, site="nope").require_fits(lm)


def test_which_models_it_is_for(small):
    lm = replace(small("llama"), name="small")
    d, tag = lm.config.d_model, ModelTag.of(lm)
    fits = SteeringVector({2: np.ones(d)}, model=tag)
    assert fits.require_fits(lm) is fits
    other = SteeringVector({2: np.ones(d)}, model=replace(tag, fingerprint="other", name="cousin"))
    assert other.require_fits(lm, other_weights=True) is other
    assert SteeringVector({2: np.ones(d)}).require_fits(lm).model is None
    for wrong, message in (
        (other, "^vector: .*small.*other_weights=True.*cousin"),
        (SteeringVector({2: np.ones(d + 1)}), f"^vector: .*width {d}, got width {d + 1}"),
        (SteeringVector({3: np.ones(d)}), "^vector: .*blocks 0 to 2, .*block 3"),
        (SteeringVector({2: np.ones(d)}, model=ModelTag(num_layers=7)), "^vector: .*3 blocks.*7"),
        (SteeringVector({2: np.ones(d)}, model=ModelTag(family="gpt2")), "^vector: .*llama.*gpt2"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.require_fits(lm)


def test_what_is_said_of_it():
    table = str(vector())
    assert table.splitlines()[0] == "SteeringVector('joy' for tiny: blocks 1, 3, width 3)"
    assert table.splitlines()[2].split() == ["1", "5", "0.5", "1", "0.9", "1", "3"]
    assert table.splitlines()[3].split() == ["3", "2.24", "-", "-", "-", "-", "-"]
    assert table.splitlines()[4] == (
        "block 1: much of its squared length is along the attention sinks: it measures how long texts are"
    )
    poor = SteeringVector(dict.fromkeys((0, 1, 2, 5), A), diagnosis={k: Diagnosis(halves_cosine=0.1) for k in (0, 1, 2, 5)})
    assert str(poor).splitlines()[-1] == "blocks 0 to 2, 5: two halves of the texts give different directions"
    assert vector(diagnosis={}).warnings == {}
    assert Diagnosis(accuracy=0.5).warnings == ("it hardly tells held-out texts apart",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SteeringVector({}), "^directions: "),
        (lambda: SteeringVector([A]), "^directions: "),
        (lambda: SteeringVector({-1: A}), "^layer: "),
        (lambda: SteeringVector({"a": A}), "^layer: "),
        (lambda: SteeringVector({0: A * np.nan}), "^direction of block 0: "),
        (lambda: SteeringVector({0: np.eye(3)}), "^direction of block 0: "),
        (lambda: SteeringVector({0: A, 1: np.ones(4)}), "^directions: .*one width"),
        (lambda: SteeringVector({4: A}, model=TAG), "^layer: .*0 to 3"),
        (lambda: SteeringVector({0: np.ones(5)}, model=TAG), "^directions: .*3 numbers"),
        (lambda: vector()[2], "^layer: expected one of 1, 3, got 2"),
        (lambda: vector().steering(2), "^layer: "),
        (lambda: vector() / 0, "^divisor: "),
        (lambda: vector() * np.nan, "^factor: "),
        (lambda: SteeringVector({0: 0 * A}).normalized(), "^vector: .*block 0"),
        (lambda: vector() + vector(model=replace(TAG, fingerprint="else")), "^vector: .*tiny"),
        (lambda: vector() + vector(site="mlp_down"), "^vector: .*residual"),
        (
            lambda: vector() + vector(model=ModelTag(family="qwen2")),
            "^vector: expected another one for tiny, got one for family",
        ),
        (
            lambda: vector() + vector(model=ModelTag(num_layers=6)),
            "^vector: expected another one for tiny, got one for num layers",
        ),
        (lambda: SteeringVector({10**6: A}), "^layer: expected a block from 0 to 999999, got 1000000"),
        (lambda: vector(scales={1: np.nan}), "^scale of block 1: "),
        (lambda: vector(diagnosis={1: Diagnosis(accuracy=np.nan)}), "^accuracy of block 1: "),
        (lambda: vector(extraction={"a": {1, 2}}), "^extraction: expected facts that JSON can hold"),
        (lambda: vector() + SteeringVector({1: np.ones(4)}), "^vector: .*width"),
        (lambda: vector() + SteeringVector({2: A}), "^vector: .*some of 1, 3"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError):
        vector() + 1
    with pytest.raises(TypeError):
        vector() * "2"


def test_what_float32_cannot_hold_is_refused_without_more_words(recwarn):
    huge = SteeringVector({1: np.full(3, 3e38)})
    for made in (lambda: 2 * huge, lambda: huge + huge):
        with pytest.raises(ValueError, match=r"^direction of block 1: expected finite numbers, got inf"):
            made()
    np.testing.assert_allclose(huge.normalized()[1], 3**-0.5, rtol=1e-6)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": 3}, "name: expected text, got "),
        ({"name": "a\ud800"}, "name: expected text that UTF-8 can hold"),
        ({"directions": {1: np.ma.masked_array(np.ones(3), [0, 1, 0])}}, "direction of block 1: .* masked"),
        ({"site": 3}, "site: expected text"),
        ({"sinks": None}, "sinks: expected a mapping, got None"),
        ({"scales": {1: "x"}}, "scale of block 1: "),
        ({"model": "llama"}, "model: expected a ModelTag, or None, got 'llama'"),
        ({"diagnosis": {1: {"accuracy": 1}}}, "diagnosis of block 1: expected a Diagnosis"),
        ({"extraction": [1]}, "extraction: expected a mapping"),
    ],
)
@pytest.mark.usefixtures("as_users_have_it")
def test_what_no_file_could_give_back_is_refused(options, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        SteeringVector(**({"directions": {1: np.ones(3)}} | options))


def test_an_array_with_a_mask_that_hides_nothing_is_one():
    assert SteeringVector({1: np.ma.masked_array(np.ones(3), [0, 0, 0])})[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("layer", [15.0, 15.5, "15", True, [15.0], [[15]], 10**20, b"1"])
@pytest.mark.usefixtures("as_users_have_it")
def test_a_block_is_a_whole_number(layer):
    vector = SteeringVector({1: np.ones(3), 15: np.ones(3)})
    for look in (vector.at, vector.steering):
        with pytest.raises(ValueError, match=r"^layer: expected .*, got "):
            look(layer)
    with pytest.raises(ValueError, match=r"^layer: expected the number of a block, got None"):
        vector.at(None)
    assert vector.at(np.array(15)).layers == vector.at(np.array([15])).layers == (15,)


def test_factors_may_be_of_any_library():
    vector = SteeringVector({1: np.ones(3)}, "x")
    factors = [np.float64(2), np.array(2.0), jnp.float32(2), jnp.array(2.0)]
    assert all(factor * vector == vector * factor == 2 * vector for factor in factors)
    assert all(vector / factor == vector / 2 for factor in factors)
    for factor in (np.ones(3), jnp.ones(3)):
        for product in (lambda f: f * vector, lambda f: vector * f):
            with pytest.raises(ValueError, match=r"^factor: expected a finite number, got "):
                product(factor)
