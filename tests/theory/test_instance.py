import jax
import jax.numpy as jnp
import numpy as np
import pytest

import theory
from theory.instance import SHAPES, Measured, draw, says_nothing
from ufm import assumption_1, difference_of_means, exact, from_table, log_odds


def each(population):
    """The instances of a population one by one, in NumPy."""
    for batch in population:
        batch = jax.tree.map(np.asarray, batch)
        for k in range(batch.target.size):
            yield jax.tree.map(lambda leaf: leaf[k], batch)  # noqa: B023


def log_odds_of(one):
    return one.contrast @ one.corpus.log_rows[one.corpus.row]


def test_an_instance_by_hand(small_corpus):
    one = theory.make_instance(small_corpus, [0, 1], [4], target=0)
    log_p = np.asarray(small_corpus.log_p)
    np.testing.assert_allclose(one.contrast, [0.5, 0.5, 0, 0, -1])
    np.testing.assert_allclose(one.log_odds, (log_p[0] + log_p[1]) / 2 - log_p[4], rtol=1e-13)
    np.testing.assert_array_equal(one.log_p, log_p)
    assert one.in_target.tolist() == [True, False, True, False]
    assert one.members.tolist() == [[True, False, True, False], [False, True, False, True]]
    assert not says_nothing(one)


def test_a_constant_says_nothing(constant_instance):
    assert says_nothing(constant_instance)


@pytest.mark.parametrize(
    ("positive", "negative", "target", "message"),
    [
        ([], [2], 0, "positive: expected a non-empty list of contexts"),
        ([0], [], 0, "negative: expected a non-empty list of contexts"),
        ([0], [0, 2], 0, r"negative: expected contexts that are not in positive, got \[0\] in both"),
        ([0, 2], [3], 0, r"positive: expected contexts of the target concept 0, got contexts \[2\] of others"),
        ([0], [1, 2], 0, r"negative: expected contexts outside the target concept 0, got contexts \[1\] of it"),
        ([0], [2], 2, r"target: expected a concept in 0\.\.1, got 2"),
        ([0], [2], -1, r"target: expected a concept in 0\.\.1, got -1"),
        ([5], [2], 0, r"positive: expected contexts between 0 and 4, got \[5\]"),
    ],
)
def test_refuses(small_corpus, positive, negative, target, message):
    with pytest.raises(ValueError, match="^" + message):
        theory.make_instance(small_corpus, positive, negative, target)


def test_refuses_one_concept():
    corpus = from_table(np.full((2, 2), 0.5), [[0, 1]], [0, 0])
    with pytest.raises(ValueError, match=r"^corpus: expected at least two concepts to contrast, got 1"):
        theory.make_instance(corpus, [0], [1], 0)


def test_drawn_instances_are_what_they_claim(population):
    for one in each(population):
        corpus = one.corpus
        p = np.exp(corpus.log_rows)
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-13)
        assert p.min() > 0
        assert corpus.weights.min() > 0
        assert corpus.weights.sum() == pytest.approx(1, abs=1e-13)
        positive, negative = np.flatnonzero(one.contrast > 0), np.flatnonzero(one.contrast < 0)
        assert (corpus.concept[positive] == one.target).all()
        assert (corpus.concept[negative] != one.target).all()
        np.testing.assert_allclose(one.contrast[positive], 1 / positive.size)
        np.testing.assert_allclose(one.contrast[negative], -1 / negative.size)


def test_drawn_instances_satisfy_what_the_proofs_use(population):
    a_exact = []
    for one in each(population):
        margins = assumption_1(jax.tree.map(jnp.asarray, one.corpus))
        assert float(margins.separation) > 0
        assert float(margins.outside) > -1e-14
        a_exact.append(float(margins.inside) > -1e-14)
    # Three of the four families have an exact a.
    assert 0.5 < np.mean(a_exact) < 0.95


def test_drawn_instances_are_varied(population):
    ones = list(each(population))
    for g in (2, 3):
        some = [one for one in ones if one.corpus.concepts.count == g]
        assert {int(one.target) for one in some} == set(range(g))
        assert {(int((one.contrast > 0).sum()), int((one.contrast < 0).sum())) for one in some} >= {(1, 1), (1, 2), (2, 1)}
    ranges = [float(np.ptp(log_odds_of(one))) for one in ones]
    assert min(ranges) < 0.1
    assert max(ranges) > 10
    tied = [np.unique(np.round(log_odds_of(one), 9)).size < one.corpus.log_rows.shape[1] for one in ones]
    assert 0.2 < np.mean(tied) < 0.9
    opposites = [set(one.corpus.concept[one.contrast < 0].tolist()) for one in ones]
    assert {len(o) for o in opposites} == {1, 2}


def test_draw_is_a_function_of_its_key():
    draws = [jax.jit(draw, static_argnums=1)(jax.random.key(k), SHAPES[1]) for k in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0].corpus.log_rows, draws[1].corpus.log_rows)
    assert (draws[0].corpus.log_rows != draws[2].corpus.log_rows).any()


def test_log_odds_of_a_batch(population):
    batch = population[1]
    got = jax.vmap(lambda one: one.log_odds)(batch)
    for k in (0, 11):
        one = jax.tree.map(lambda leaf: leaf[k], batch)  # noqa: B023
        np.testing.assert_allclose(got[k], np.asarray(one.contrast) @ np.asarray(one.log_p), atol=1e-12)
        np.testing.assert_allclose(got[k], log_odds(one.corpus, one.contrast), atol=1e-12)


def test_measured_concept_log_odds(small_corpus):
    one = theory.make_instance(small_corpus, [0], [2, 3], target=0)
    model = exact(small_corpus)
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(4), size=(5, 3))
    swept = Measured(one, model, difference_of_means(model, jnp.arange(5), one.contrast), np.arange(-1.0, 2.0), np.log(q))
    total = q[..., [0, 2]].sum(axis=-1)
    np.testing.assert_allclose(swept.concept_log_odds[..., 0], np.log(total / (1 - total)), rtol=1e-12)
    np.testing.assert_allclose(swept.concept_log_odds[..., 1], -np.log(total / (1 - total)), rtol=1e-12)
    assert swept.step == 1.0
