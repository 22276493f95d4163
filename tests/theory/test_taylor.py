import re
from itertools import pairwise
from math import factorial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import sympy
from jax.experimental import jet
from mpmath import mp, mpf

from sim.tex import to_html
from theory import predicted, tilting
from theory._compilation import compiled_quickly
from theory.taylor import MAX_ORDER, QUANTITIES, as_text, taylor
from ufm import contrast, contrastive, log_odds, weighted

WEIGHTS = np.array([0.5, 0.2, 0.3])
MEMBERS = np.array([True, True, False, False, False])

quantities = pytest.mark.parametrize("quantity", QUANTITIES)


def ordinary():
    rng = np.random.default_rng(1)
    return np.log(rng.dirichlet(np.ones(5), size=3)), rng.normal(size=5)


def far():
    """Log-odds far from 0: raw moments agree in all their digits, and cumulants must not come from them."""
    rows, m = ordinary()
    return rows, 1e6 + np.round(m, 3)


def tiny():
    p = np.array([[1e-30, 1e-20, 0.4, 0.5, 0.1], [0.2, 0.2, 0.2, 1e-30, 0.4], [1e-12, 0.3, 1e-3, 0.3, 0.399]])
    return np.log(p), np.array([3.0, -30.0, 2.0, 0.5, -4.0])


def tied():
    rows, _ = ordinary()
    return rows, np.array([2.0, 2.0, -1.0, 2.0, -1.0])


FAMILIES = {"ordinary": ordinary, "far": far, "tiny": tiny, "tied": tied}


def arguments(quantity, rows, m):
    rows, m = jnp.asarray(rows), jnp.asarray(m)
    rest = {"cross-entropy": (jnp.asarray(WEIGHTS),), "concept-log-odds": (jnp.asarray(MEMBERS),)}.get(quantity, ())
    return rows if quantity == "cross-entropy" else rows[0], m, *rest


def curve(quantity, rows, m, z):
    """The quantity as a function of alpha, written out for mpmath; `z` is the token whose probability it is."""
    m = [mpf(float(x)) for x in m]
    rows = [[mp.exp(mpf(float(x))) for x in row] for row in rows]
    rows = [[p / mp.fsum(row) for p in row] for row in rows]

    def partition(row, alpha, tokens=range(5)):
        return mp.fsum(row[i] * mp.exp(alpha * m[i]) for i in tokens)

    def divergence(row, alpha):
        return mp.log(partition(row, alpha)) - alpha * mp.fsum(p * x for p, x in zip(row, m, strict=True))

    return {
        "cross-entropy": lambda alpha: mp.fsum(
            mpf(float(w)) * divergence(row, alpha) for w, row in zip(WEIGHTS, rows, strict=True)
        ),
        "log-partition": lambda alpha: mp.log(partition(rows[0], alpha)),
        "probability": lambda alpha: rows[0][z] * (mp.exp(alpha * m[z]) / partition(rows[0], alpha) - 1),
        "concept-log-odds": lambda alpha: mp.log(partition(rows[0], alpha, (0, 1)) / partition(rows[0], alpha, (2, 3, 4))),
    }[quantity]


@quantities
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_coefficients_are_those_of_numerical_differentiation(quantity, family):
    rows, m = family()
    got = np.asarray(taylor(quantity, 8).evaluate(*arguments(quantity, rows, m)))
    tokens = range(5) if quantity == "probability" and family in (ordinary, tiny) else [0]
    assert got.shape == ((9, 5) if quantity == "probability" else (9,))
    got = got if quantity == "probability" else got[:, None]
    for z in tokens:
        with mp.workdps(80):
            expected = [float(c) for c in mpmath.taylor(curve(quantity, rows, m, z), 0, 8)]
        np.testing.assert_allclose(got[:, z], expected, rtol=1e-12, atol=1e-60)


def nested(function, order):
    """Taylor coefficients of a JAX function at 0 by nested forward mode."""
    derivatives = [function]
    for _ in range(order):
        derivatives.append(jax.jacfwd(derivatives[-1]))
    values = compiled_quickly(lambda a: [derivative(a) for derivative in derivatives])(0.0)
    return np.stack([value / factorial(k) for k, value in enumerate(values)])


def test_coefficients_are_derivatives_of_the_closed_forms():
    rows, m = map(jnp.asarray, ordinary())
    curves = {
        "log-partition": lambda a: tilting.log_partition(rows[0], m, a),
        "probability": lambda a: jnp.exp(tilting.log_probabilities(rows[0], m, a)) - jnp.exp(rows[0]),
        "concept-log-odds": lambda a: tilting.concept_log_odds(rows[0], m, a, jnp.asarray(MEMBERS)),
        "cross-entropy": lambda a: jnp.dot(
            WEIGHTS, jax.vmap(lambda row: tilting.log_partition(row, m, a) - a * tilting.mean(row, m, 0.0))(rows)
        ),
    }
    assert set(curves) == set(QUANTITIES)
    for quantity, function in curves.items():
        got = taylor(quantity, 4).evaluate(*arguments(quantity, rows, m))
        np.testing.assert_allclose(got, nested(function, 4), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("order", [5, MAX_ORDER])
def test_log_partition_by_propagation_of_series(order):
    """Orders beyond the reach of nested derivatives, by JAX's own arithmetic of Taylor series."""
    rows, m = map(jnp.asarray, ordinary())
    steps = (jnp.asarray(1.0), *[jnp.asarray(0.0)] * (order - 1))

    def log_partition(a):
        return jnp.log(jnp.sum(jnp.exp(rows[0] + a * m)))

    _, derivatives = compiled_quickly(lambda a: jet.jet(log_partition, (a,), (steps,)))(jnp.asarray(0.0))
    expected = [d / factorial(k) for k, d in enumerate(derivatives, 1)]
    np.testing.assert_allclose(taylor("log-partition", order).evaluate(rows[0], m)[1:], expected, rtol=1e-10)


POINT = {
    "p": [[sympy.Rational(k, 15) for k in (1, 2, 3, 4, 5)], [sympy.Rational(k, 20) for k in (6, 3, 5, 2, 4)]],
    "M": [sympy.Rational(k, 3) for k in (2, -1, 4, -5, 1)],
    "pi": [sympy.Rational(3, 7), sympy.Rational(4, 7)],
}


def at_point(coefficient, z):
    """A coefficient in sums, with every sum written out and exact numbers put in."""
    sizes = {sympy.Symbol(name, integer=True, positive=True): n for name, n in (("V", 5), ("s", 2), ("m", 2))}
    written_out = coefficient.subs({**sizes, sympy.Symbol("z", integer=True): z + 1}).doit()

    def number(symbol):
        *context, token = (int(i) - 1 for i in symbol.indices)
        values = POINT[str(symbol.base)]
        return values[token] if str(symbol.base) != "p" else values[context[0] if context else 0][token]

    return written_out.xreplace({symbol: number(symbol) for symbol in written_out.atoms(sympy.Indexed)})


@quantities
def test_sums_are_the_same_numbers(quantity):
    expansion = taylor(quantity, 4)
    rows, m = np.log(np.array(POINT["p"], float)), np.array(POINT["M"], float)
    numbers = [jnp.asarray(POINT["pi"], float)] if quantity == "cross-entropy" else arguments(quantity, rows, m)[2:]
    got = expansion.evaluate(jnp.asarray(rows if quantity == "cross-entropy" else rows[0]), jnp.asarray(m), *numbers)
    exact = [float(at_point(coefficient, 3)) for coefficient in expansion.sums]
    np.testing.assert_allclose(got[:, 3] if quantity == "probability" else got, exact, rtol=1e-13, atol=1e-16)


def test_forms_known_from_textbooks():
    z, kappas = sympy.Symbol("z", integer=True), sympy.symbols("kappa_1:5")
    p, m = sympy.IndexedBase("p"), sympy.IndexedBase("M")
    mu = [sympy.Sum(p[z] * m[z] ** k, (z, 1, sympy.Symbol("V", integer=True, positive=True))) for k in range(5)]
    fourth = mu[4] - 4 * mu[3] * mu[1] - 3 * mu[2] ** 2 + 12 * mu[2] * mu[1] ** 2 - 6 * mu[1] ** 4
    assert sympy.expand(taylor("log-partition", 4).sums[4] - fourth / 24) == 0
    d = m[z] - kappas[0]
    bell = d**4 - 6 * kappas[1] * d**2 - 4 * kappas[2] * d - kappas[3] + 3 * kappas[1] ** 2
    assert sympy.expand(taylor("probability", 4).cumulants[4] - p[z] * bell / 24) == 0
    assert taylor("cross-entropy", 3).cumulants == (0, 0, sympy.Symbol("kappabar_2") / 2, sympy.Symbol("kappabar_3") / 6)
    assert taylor("cross-entropy", 1).sums == (0, 0)
    inside, outside = sympy.symbols("kappa^C_2 kappa^notC_2")
    assert sympy.expand(taylor("concept-log-odds", 2).cumulants[2] - (inside - outside) / 2) == 0


def test_number_of_terms_is_that_of_partitions():
    counts = [
        len(sympy.Add.make_args(sympy.expand(coefficient))) for coefficient in taylor("log-partition", MAX_ORDER).sums[1:]
    ]
    assert counts == [sympy.functions.combinatorial.numbers.partition(k) for k in range(1, MAX_ORDER + 1)]


@quantities
def test_evaluation_is_compiled_and_mapped(quantity):
    rng = np.random.default_rng(4)
    batch = [(np.log(rng.dirichlet(np.ones(5), size=3)), rng.normal(size=5)) for _ in range(3)]
    series = taylor(quantity, 4).evaluate
    one_by_one = np.stack([series(*arguments(quantity, *case)) for case in batch])
    stacked = [jnp.stack(leaves) for leaves in zip(*(arguments(quantity, *case) for case in batch), strict=True)]
    mapped = jax.jit(jax.vmap(series))(*stacked)
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-12, atol=1e-16)
    assert taylor(quantity, 4).evaluate is series
    slopes = jax.jacrev(lambda m: series(stacked[0][0], m, *(leaf[0] for leaf in stacked[2:])))(stacked[1][0])
    assert np.isfinite(slopes).all()


@quantities
def test_float32(quantity):
    rows, m = ordinary()
    expected = taylor(quantity, 4).evaluate(*arguments(quantity, rows, m))
    with jax.enable_x64(False):
        got = taylor(quantity, 4).evaluate(*arguments(quantity, rows.astype(np.float32), m.astype(np.float32)))
        assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


@quantities
@pytest.mark.parametrize("order", [0, 1])
def test_low_orders_begin_the_longer_series(quantity, order):
    numbers = arguments(quantity, *ordinary())
    got = taylor(quantity, order).evaluate(*numbers)
    assert got.dtype == jnp.float64
    np.testing.assert_array_equal(got, taylor(quantity, 4).evaluate(*numbers)[: order + 1])


@pytest.mark.parametrize("quantity", ["cross-entropy", "concept-log-odds"])
def test_a_shift_of_the_log_odds_changes_nothing(quantity):
    rows, m = ordinary()
    series = taylor(quantity, 8).evaluate
    shifted = series(*arguments(quantity, rows, 1e3 + m))
    np.testing.assert_allclose(shifted, series(*arguments(quantity, rows, m)), rtol=1e-9, atol=1e-16)


def test_impossible_tokens_count_for_nothing():
    _, m = ordinary()
    without = taylor("log-partition", 6).evaluate(jnp.log(jnp.asarray([0.2, 0.8])), jnp.asarray(m[:2]))
    log_p = jnp.asarray([np.log(0.2), np.log(0.8), -np.inf, -np.inf, -np.inf])
    np.testing.assert_allclose(taylor("log-partition", 6).evaluate(log_p, jnp.asarray(m)), without, rtol=1e-13)


LOG_P, M = np.log([0.2, 0.3, 0.5]), np.array([1.0, 0.0, -1.0])


@pytest.mark.parametrize(
    ("quantity", "numbers", "message"),
    [
        ("log-partition", (np.exp(LOG_P), M), r"^log_p: expected logarithms of probabilities that sum to 1, got .* sum 4.2"),
        ("log-partition", (LOG_P, [1.0, np.nan, 0.0]), r"^m: expected .*got NaN at index \(1,\)"),
        ("log-partition", (LOG_P, [1.0, np.inf, 0.0]), r"^m: expected finite numbers, got inf at index \(1,\)"),
        ("log-partition", (LOG_P, M[:2]), r"^m: expected an axis V of 3, as log_p has, got shape \(2,\)"),
        ("probability", ([], []), r"^log_p: expected at least one number in its axis V, got shape \(0,\)"),
        ("cross-entropy", (LOG_P, M, [1.0]), r"^log_rows: expected an array \[r, V\] of real numbers, got shape \(3,\)"),
        ("cross-entropy", ([LOG_P, LOG_P + 1], M, [0.5, 0.5]), r"^log_rows: .*sum 2.71828 in row 1"),
        ("cross-entropy", ([LOG_P, LOG_P], M, [0.5, 0.6]), r"^weights: expected weights that sum to 1, got a sum of 1.1"),
        ("cross-entropy", ([LOG_P, LOG_P], M, [1.5, -0.5]), r"^weights: expected weights of at least 0, got -0.5"),
        (
            "cross-entropy",
            ([LOG_P, LOG_P], M, [1.0]),
            r"^weights: expected an axis r of 2, as log_rows has, got shape \(1,\)",
        ),
        ("concept-log-odds", (LOG_P, M, [True, True, True]), r"^members: expected between 1 and 2 of 3 tokens, got all"),
    ],
)
def test_evaluation_refuses(quantity, numbers, message):
    with pytest.raises(ValueError, match=message):
        taylor(quantity, 3).evaluate(*numbers)


def test_evaluation_takes_lists_and_names():
    rows = [list(LOG_P), list(LOG_P)]
    expected = taylor("cross-entropy", 3).evaluate(jnp.asarray(rows), jnp.asarray(M), jnp.asarray([0.5, 0.5]))
    got = taylor("cross-entropy", 3).evaluate(log_rows=rows, m=list(M), weights=[0.5, 0.5])
    np.testing.assert_array_equal(got, expected)


def test_series_converges_to_the_predicted_curve():
    corpus = weighted((2, 3), [0.7, 0.3, 0.5, 0.3, 0.2], [0.6, 0.4, 0.4, 0.3, 0.3], 0.2)
    m = log_odds(corpus, contrast(corpus.n_contexts, *contrastive(corpus, target=0, opposite=1)))
    alphas = jnp.asarray([-0.2, 0.3])
    exact = predicted.cross_entropy_increase(corpus, m, alphas)
    coefficients = taylor("cross-entropy", 8).evaluate(corpus.log_rows, m, corpus.row_weights)
    series = [jnp.polyval(coefficients[order::-1], alphas) for order in (2, 4, 6, 8)]
    errors = [float(jnp.max(jnp.abs(value / exact - 1))) for value in series]
    assert errors[0] > 1e-2
    assert all(later < earlier / 3 for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-3


@quantities
@pytest.mark.parametrize("order", [0, 1, 5])
def test_tex_is_balanced_and_understood(quantity, order):
    expansion = taylor(quantity, order)
    assert len(expansion.tex_cumulants) == len(expansion.tex_sums) == order + 1
    for tex in (expansion.tex, *expansion.tex_cumulants, *expansion.tex_sums):
        assert tex.count("{") == tex.count("}")
        assert tex.count(r"\left") == tex.count(r"\right")
        assert "notC" not in tex
        assert to_html(tex, display=True).startswith("<math")
    assert expansion.tex.endswith(r"O\left(\alpha\right)" if order == 0 else rf"O\left(\alpha^{{{order + 1}}}\right)")


def test_tex_of_the_first_orders():
    assert taylor("cross-entropy", 3).tex == (
        r"\Delta\mathrm{CE}(\alpha) = \frac{1}{2} \bar{\kappa}_{2} \alpha^{2} + \frac{1}{6} \bar{\kappa}_{3} \alpha^{3}"
        r" + O\left(\alpha^{4}\right)"
    )
    assert taylor("concept-log-odds", 1).tex == (
        r"\operatorname{logit} F_C(\alpha) = r + \left(\kappa^{C}_{1} - \kappa^{C^{\complement}}_{1}\right) \alpha"
        r" + O\left(\alpha^{2}\right)"
    )
    assert taylor("cross-entropy", 2).tex_sums[2] == (
        r"\frac{1}{2} \sum_{j} \pi_{j} \left(\sum_{z} p_j(z) M(z)^{2} - \left(\sum_{z} p_j(z) M(z)\right)^{2}\right)"
    )


@quantities
def test_text_has_two_lines_for_each_coefficient(quantity):
    text = as_text(taylor(quantity, 8))
    *_, last = blocks = text.split("\n\n")
    assert [re.match(r"c_(\d+) = ", block)[1] for block in blocks[1:]] == [str(k) for k in range(9)]
    assert len(last.split("\n")) == 2
    assert last.split("\n")[1].startswith("    = ")
    assert last.count("(") == last.count(")")
    assert last.count("[") == last.count("]")


def test_text_of_the_second_order():
    assert as_text(taylor("cross-entropy", 2)).split("\n\n")[1:] == [
        "c_0 = 0",
        "c_1 = 0",
        "c_2 = kappabar_2/2\n    = sum_j[pi_j*(sum_z[p_j(z)*M(z)^2] - sum_z[p_j(z)*M(z)]^2)]/2",
    ]
    assert as_text(taylor("probability", 2)).split("\n\n")[-1] == (
        "c_2 = p(z)*((M(z) - kappa_1)^2 - kappa_2)/2\n"
        "    = p(z)*(M(z)^2 - 2*M(z)*sum_y[p(y)*M(y)] + 2*sum_y[p(y)*M(y)]^2 - sum_y[p(y)*M(y)^2])/2"
    )
    assert as_text(taylor("concept-log-odds", 1)).split("\n\n")[-1] == (
        "c_1 = kappa^C_1 - kappa^notC_1\n"
        "    = sum_{z in C}[p(z)*M(z)]/sum_{z in C}[p(z)] - sum_{z not in C}[p(z)*M(z)]/sum_{z not in C}[p(z)]"
    )


def test_bad_input():
    with pytest.raises(ValueError, match=r"^quantity: .*cross-entropy.*got 'cross-entrpy'$"):
        taylor("cross-entrpy", 2)
    with pytest.raises(ValueError, match=r"such as cross-entropy, log-partition, probability, concept-log-odds, got 'x'$"):
        taylor("x", 2)
    for order in (-1, MAX_ORDER + 1):
        with pytest.raises(ValueError, match=rf"^order: .*got {order}$"):
            taylor("log-partition", order)
