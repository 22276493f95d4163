"""N16 by hand: sets that turn as often as they may, tables warmed and cooled, ties, levels; N20.range in a transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import REGISTRY, budgets, examples, routes
from theory.instance import with_peaks
from theory.rationals import to_floats
from theory.statements import n16_turns
from ufm.transformer import init_transformer


def slopes(m, log_p, members, strengths):
    """The mean of M on a set less that off it, at every strength, in plain NumPy."""
    logits = log_p[:, None] + m[:, None] * strengths
    weights = np.exp(logits - logits.max(axis=0))

    def mean(mask):
        return (weights * m[:, None])[mask].sum(axis=0) / weights[mask].sum(axis=0)

    return mean(members) - mean(~members)


def turns(*arguments):
    rates = slopes(*arguments)
    # Where tokens of both sides tie at an end, both means tend to one value, and leave rounding.
    signs = np.sign(rates[np.abs(rates) > 1e-11])
    return int((signs[1:] != signs[:-1]).sum())


def changes(m, members):
    return int(n16_turns.membership_changes(jnp.asarray(m), jnp.asarray(members)[None])[0])


@pytest.mark.parametrize("s", range(1, 8))
def test_every_count_is_attained(s):
    m, members = np.arange(s + 1.0), np.arange(s + 1) % 2 == 0
    assert changes(m, members) == s
    for mask in (members, ~members):
        assert turns(m, -2 * m**2, mask, np.linspace(-7, 35, 9001)) == s - 1


def test_random_tables_never_turn_more_often_and_cooling_them_takes_no_turn_away():
    rng = np.random.default_rng(0)
    strengths = np.linspace(-60, 60, 1501)
    most = np.zeros(9, int)
    for _ in range(2500):
        v = rng.integers(3, 10)
        m = rng.normal(size=v) if rng.random() < 0.5 else np.round(rng.normal(size=v), 0)
        members = rng.random(v) < 0.5
        members[0], members[1] = True, False
        log_p = rng.normal(size=v) * 10 ** rng.uniform(-1, 1)
        s = changes(m, members)
        counts = [turns(m, log_p - cold * m**2 / 2, members, strengths) for cold in (-2.0, 0.0, 2.0)]
        assert max(counts) <= max(s - 1, 0)
        assert counts == sorted(counts)
        most[s] = max(most[s], counts[-1])
    assert (most[2:5] >= [1, 2, 3]).all()


def test_a_count_of_signs_does_not_prove_it():
    """Pairs of tokens by the sum of their log-odds, as the slope's numerator has them: five changes where s - 1 is 3."""
    m, members = np.array([0, 1, 2, 4, 4.5]), np.array([True, False, True, False, True])
    pairs = sorted((a + b, np.sign(a - b)) for a in m[members] for b in m[~members])
    signs = np.array([sign for _, sign in pairs])
    assert int((signs[1:] != signs[:-1]).sum()) == 5
    assert changes(m, members) == 4


def test_an_exact_table_attains_the_counts_and_refutes_what_a_bump_would_have():
    exact = examples.exact_instances()["concepts by turns"]
    instance = to_floats(exact)
    m, members = np.asarray(instance.log_odds), np.asarray(instance.members[0])
    assert changes(m, members) == 4
    for row in np.asarray(instance.log_p):
        assert turns(m, row, members, np.linspace(-12, 12, 9001)) == 3
    for name in ("N16.turns", "N16.levels"):
        right, wrong = (
            routes.certificate(REGISTRY[name], [exact], claim=claim) for claim in (REGISTRY[name].claim, REGISTRY[name].twin)
        )
        assert (right.holds, right.worst_margin) == (True, 0.5)
        assert right.note.endswith("on all of R 1 of 1")
        assert (wrong.holds, wrong.worst_margin) == (False, -0.5)


@pytest.mark.parametrize("name", ["random negatives", "concepts by turns"])
def test_no_sign_changes_where_one_exponential_leads(name):
    instance = with_peaks(to_floats(examples.exact_instances()[name]))

    @jax.jit
    def on_grid(strengths):
        return jax.lax.map(lambda a: (n16_turns._leads(instance, a), n16_turns._turning(instance, a)), strengths)

    for side in (1, -1):
        leads, slopes = on_grid(side * 2.0 ** jnp.arange(-3, 9) / instance.range)
        assert (leads[-1] > 0).all()
        leading = np.logical_or.accumulate(np.asarray(leads) > 0)
        signs = np.sign(slopes)
        assert (signs[1:] == signs[:-1])[leading[:-1]].all()


def test_levels_are_passed_and_intervals_counted():
    """A set with the lowest and the highest token is above a level on two half-lines though s is 2."""
    m, members = np.array([-1.0, 0.0, 1.0]), np.array([True, False, True])
    strengths = np.linspace(-20, 20, 2001)
    weights = np.exp(np.log([0.1, 0.8, 0.1])[:, None] + m[:, None] * strengths)
    share = weights[members].sum(axis=0) / weights.sum(axis=0)
    above = (share >= 0.5).astype(int)
    assert changes(m, members) == 2
    assert above[0] + (np.diff(above) == 1).sum() == 2


def test_the_range_bound_holds_in_a_transformer_at_any_place():
    """Before any block and after the last one, by any vector: the cost is below the bound of the change of logits."""
    rng = np.random.default_rng(1)
    for cut in (0, 1, 2):
        model = init_transformer(jax.random.key(cut), np.array([[0, 1, 2], [3, 2, 1]]), 6, 8, blocks=2, cut=cut, heads=2)
        states = model.embed(jnp.arange(2))
        v = rng.normal(size=states.shape[-1])
        before = jax.nn.log_softmax(model.decode(states))
        for alpha in (-20.0, -1.0, 0.1, 3.0, 50.0):
            after = jax.nn.log_softmax(model.decode(states + alpha * v))
            cost = np.sum(np.exp(before) * (before - after), axis=-1)
            assert (np.asarray(budgets.range_bound(after - before)) >= cost - 1e-13).all()
