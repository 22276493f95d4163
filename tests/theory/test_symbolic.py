import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy

from theory import predicted, symbolic, tilting
from theory.symbolic import ALPHA, IDENTITIES, RATES, TWINS, Identity, at_zero, counterexample, derivative, holds
from theory.taylor import _log_partition_of
from ufm import from_table

CLAIMS = {f"{name}: {identity.name}": identity for name, claim in IDENTITIES.items() for identity in claim()}

x, y, t = sympy.symbols("x y t", positive=True)


def tilted_symbols():
    """E of the first context and M, by token."""
    row = sympy.symbols("E_0_0:4", positive=True)
    return row, [RATES[symbol] / symbol for symbol in row]


@pytest.mark.parametrize("name", CLAIMS)
def test_identities_hold(name):
    assert holds(CLAIMS[name])
    assert counterexample(CLAIMS[name]) is None


@pytest.mark.parametrize("name", TWINS)
def test_twins_do_not(name):
    identities = TWINS[name]()
    wrong = [identity for identity in identities if not holds(identity)]
    assert wrong
    for identity in identities:
        point = counterexample(identity)
        assert (point is not None) == (identity in wrong)
        if point is not None:
            assert set(point) == (identity.left - identity.right).free_symbols
            assert all(value.is_Rational for value in point.values())
            assert sympy.N(identity.left.xreplace(point), 20) != sympy.N(identity.right.xreplace(point), 20)


def test_every_claim_has_a_twin_and_names_are_distinct():
    assert list(IDENTITIES) == list(TWINS)
    assert len(CLAIMS) == sum(len(claim()) for claim in IDENTITIES.values())


def test_where_twins_differ():
    """Central moments are cumulants up to the third; the shares of N matter off the target only."""
    assert [holds(identity) for identity in TWINS["N4.taylor"]()] == [True, True, False, False]
    assert [holds(identity) for identity in TWINS["lemma-B.4"]()] == [True, True, False, False]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ((x + y) ** 3 / (x + y), x**2 + 2 * x * y + y**2, True),
        (1 / x + 1 / y, (x + y) / (x * y), True),
        (1 / x + 1 / y, 2 / (x + y), False),
        (x / 3 + sympy.Rational(2, 3) * x, x, True),
        (sympy.sqrt(x + y) ** 3, (x + y) * sympy.sqrt(x + y), True),
        (1 / (sympy.sqrt(1 + t**2) - t), sympy.sqrt(1 + t**2) + t, True),
        ((sympy.sqrt(x) + sympy.sqrt(y)) ** 2, x + y + 2 * sympy.sqrt(x) * sympy.sqrt(y), True),
        (sympy.sqrt(1 + t**2), 1 + t, False),
        (sympy.sqrt(3) ** 3, 3 * sympy.sqrt(3), True),
        (sympy.Integer(2), sympy.Integer(2), True),
        (sympy.Integer(2), sympy.Integer(3), False),
    ],
)
def test_decisions(left, right, same):
    assert holds(Identity("", left, right)) is same
    assert (counterexample(Identity("", left, right)) is None) is same


@pytest.mark.parametrize("side", [sympy.log(x), x**y, sympy.exp(x), x ** sympy.Rational(1, 3)])
def test_what_is_not_decided_is_refused(side):
    with pytest.raises(ValueError, match=r"^identity: .*arithmetic, got "):
        holds(Identity("", side, sympy.Integer(0)))


def test_a_square_root_of_a_fraction_is_refused():
    with pytest.raises(ValueError, match=r"^identity: .*got sqrt\("):
        holds(Identity("", sympy.sqrt(x + 1 / (1 + t)), t))


def test_derivative_is_that_of_tilting():
    """Numbers for the symbols, against derivatives that JAX takes of the closed forms."""
    rng = np.random.default_rng(2)
    p, m, alpha = rng.dirichlet(np.ones(4)), rng.normal(size=4), 0.7
    row, log_odds = tilted_symbols()
    values = {**dict(zip(row, p * np.exp(alpha * m), strict=True)), **dict(zip(log_odds, m, strict=True)), ALPHA: alpha}
    log_p, members = jnp.log(jnp.asarray(p)), jnp.asarray([True, True, False, False])
    curves = {
        sympy.log(sum(row)): lambda a: tilting.log_partition(log_p, jnp.asarray(m), a),
        sympy.log((row[0] + row[1]) / (row[2] + row[3])): lambda a: tilting.concept_log_odds(
            log_p, jnp.asarray(m), a, members
        ),
        row[2] / sum(row) * ALPHA: lambda a: a * jnp.exp(tilting.log_probabilities(log_p, jnp.asarray(m), a))[2],
    }
    for expression, curve in curves.items():
        first = derivative(expression)
        for got, function in ((first, jax.grad(curve)), (derivative(first), jax.grad(jax.grad(curve)))):
            assert float(got.subs(values)) == pytest.approx(float(function(alpha)), rel=1e-12)


def test_curvature_of_the_cross_entropy_is_that_of_the_prediction():
    """The right-hand side that theorem 3.8 is proved for, with numbers, against the closed form of a corpus."""
    rng = np.random.default_rng(3)
    p, m, weights = rng.dirichlet(np.ones(4), size=3), rng.normal(size=4), rng.dirichlet(np.ones(3))
    corpus = from_table(p, [[0, 1], [2, 3]], [0, 0, 1], weights)
    *_, curvature = IDENTITIES["theorem-3.8"]()
    names = {f"p_{j}_{z}": p[j, z] for j, z in itertools.product(range(3), range(3))}
    names |= {f"M_{z}": m[z] for z in range(4)} | {f"pi_{j}": weights[j] for j in range(3)}
    h = 1e-3
    down, up = predicted.cross_entropy_increase(corpus, jnp.asarray(m), [-h, h])
    for side in (curvature.left, curvature.right):
        got = float(side.subs({symbol: names[symbol.name] for symbol in side.free_symbols}))
        assert got == pytest.approx(float(up + down) / h**2, rel=1e-5)


def test_at_zero():
    row, _ = tilted_symbols()
    assert at_zero(sum(row) * sympy.exp(ALPHA)) == 1
    assert at_zero(row[0]) == sympy.Symbol("p_0_0", positive=True)


def test_given_rates():
    assert derivative(x**2 * y, {x: y, y: sympy.Integer(1)}) == 2 * x * y**2 + x**2
    assert derivative(x * ALPHA) == x


def test_cumulants_by_partitions_are_those_of_the_series():
    raw = sympy.symbols("mu_1:6")
    for k, series in enumerate(_log_partition_of(raw)[1:], 1):
        assert sympy.expand(series * sympy.factorial(k) - symbolic._cumulant(k, raw)) == 0
