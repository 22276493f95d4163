import dataclasses
import json
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from theory import balls, rationals, tilting
from theory.instance import Instance

MEMBERS = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]], dtype=bool)
CONCEPT = np.array([0, 0, 1, 1, 2])


def instance(p, *, contrast=(0.5, 0.5, -1 / 3, -1 / 3, -1 / 3), members=MEMBERS, concept=CONCEPT):
    return Instance(
        log_p=jnp.log(jnp.asarray(p)),
        weights=jnp.asarray(np.arange(1.0, 1 + len(p)) / np.arange(1.0, 1 + len(p)).sum()),
        concept=jnp.asarray(concept),
        members=jnp.asarray(members),
        contrast=jnp.asarray(contrast),
        target=jnp.asarray(0),
    )


def shares(rng, members=MEMBERS):
    """Positive numbers that sum to 1 within each concept."""
    x = np.exp(rng.normal(size=members.shape[1]))
    return x / (members.T @ (members @ x))


def table(gamma, omega, epsilon=0.3):
    return np.where(MEMBERS[CONCEPT], (1 - epsilon) * gamma, epsilon / 2 * omega)


RNG = np.random.default_rng(5)
EVEN = 1 / (MEMBERS.T @ MEMBERS.sum(axis=1))
FAMILIES = {
    "uniform": lambda: table(EVEN, EVEN),
    "weighted": lambda: table(shares(RNG), shares(RNG)),
    "tied": lambda: (lambda omega: table(omega, omega))(shares(RNG)),
    "per context": lambda: table(np.stack([shares(RNG) for _ in CONCEPT]), shares(RNG)),
    "any": lambda: RNG.dirichlet(np.ones(6), size=5),
}

families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def exact():
    return rationals.rationalise(instance(FAMILIES["per context"]()), 4)


@families
@pytest.mark.parametrize("digits", [None, 3, 8])
def test_structure_is_kept(family, digits):
    p = FAMILIES[family]()
    got = rationals.rationalise(instance(p), digits)
    assert all(sum(row) == 1 and min(row) > 0 for row in got.p)
    assert sum(got.weights) == 1
    assert got.contrast == (Fraction(1, 2), Fraction(1, 2), *3 * (Fraction(-1, 3),))
    np.testing.assert_allclose(np.array(got.p, dtype=float), p, rtol=1e-14 if digits is None else 10.0 ** (2 - digits))
    np.testing.assert_allclose(np.array(got.weights, dtype=float), np.arange(1, 6) / 15, rtol=10.0 ** (1 - (digits or 15)))
    if family == "any":
        return
    for z in range(6):
        assert len({row[z] for row, c in zip(got.p, CONCEPT, strict=True) if not MEMBERS[c, z]}) == 1
    if family != "per context":
        assert got.p[0] == got.p[1]
        assert got.p[2] == got.p[3]
    if family == "uniform":
        assert len({x for row in got.p for x in row}) <= 2 * 3


def test_the_smallest_uniform_table_has_the_obvious_fractions():
    p = np.array([[0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]])
    members = np.kron(np.eye(2, dtype=bool), np.ones(2, dtype=bool))
    got = rationals.rationalise(instance(p, contrast=(1.0, -1.0), members=members, concept=np.arange(2)), 6)
    assert got.p == (2 * (Fraction(2, 5),) + 2 * (Fraction(1, 10),), 2 * (Fraction(1, 10),) + 2 * (Fraction(2, 5),))
    assert got.weights == (Fraction(333333, 10**6), Fraction(666667, 10**6))


@pytest.mark.parametrize(("family", "levels"), [("uniform", 2), ("tied", 2), ("weighted", 6), ("any", 6)])
@pytest.mark.parametrize("digits", [None, 5])
def test_ties_are_kept(family, levels, digits):
    """If the probabilities of a concept are proportional everywhere, log-odds are one number in P's concept and others."""
    got = rationals.rationalise(instance(FAMILIES[family](), contrast=(1, 0, -0.5, 0, -0.5)), digits)
    ranks = np.array(rationals.log_odds_ranks(got))
    assert len(set(ranks.tolist())) == levels
    m = np.asarray(rationals.to_floats(got).log_odds)
    assert (np.diff(m[np.argsort(ranks, kind="stable")]) > -1e-12).all()


def test_ties_are_decided_exactly():
    """M(0) - M(1) = log(1 + 1e-90) is not 0; and M(2) = M(3) although no two of their probabilities are equal."""
    tiny = Fraction(1, 10**90)
    rows = ((Fraction(3, 10) * (1 + tiny), Fraction(3, 10), Fraction(1, 5), Fraction(1, 10)), 4 * (Fraction(1, 4),))
    rows = (tuple(x / sum(rows[0]) for x in rows[0]), (Fraction(1, 4), Fraction(1, 4), Fraction(1, 3), Fraction(1, 6)))
    rational = rationals.checked(
        rationals.RationalInstance(
            p=rows,
            weights=(Fraction(1, 2), Fraction(1, 2)),
            concept=(0, 1),
            members=((True, True, False, False), (False, False, True, True)),
            contrast=(Fraction(1), Fraction(-1)),
            target=0,
        )
    )
    assert rationals.log_odds_ranks(rational) == (2, 1, 0, 0)
    peaks = rationals.to_balls(rational).known_peaks
    assert [balls.bounds(x)[0] for x in peaks[:, 0]] == [np.inf, np.inf]
    assert [balls.bounds(x)[1] for x in peaks[:, 2:].ravel()] == 4 * [-np.inf]
    # p_0 (1e-90) is balanced by the rest, of weight e^{-alpha (M(1) - M(2))}.
    gap = float(np.log(1.2) - np.log(0.6))
    share = float(rows[0][0] / (gap * (rows[0][2] + rows[0][3])))
    expected = -np.log(1e-90 * share) / gap
    assert float(peaks[0, 1]) == pytest.approx(expected, rel=1e-10)


@families
@pytest.mark.parametrize("precision", [64, 128, 400])
def test_peaks(family, precision):
    rational = rationals.rationalise(instance(FAMILIES[family]()), 6)
    got = rationals.to_balls(rational, precision)
    floats = rationals.to_floats(rational)
    expected = np.asarray(floats.peaks)
    for ball, value in zip(got.known_peaks.ravel(), expected.ravel(), strict=True):
        if np.isinf(value):
            assert balls.bounds(ball) == (value, value)
        else:
            assert float(ball) == pytest.approx(value, rel=1e-9, abs=1e-9)
            assert float(ball.rad()) < 2.0 ** (8 - precision) * (1 + abs(value))
    inner = np.argwhere(np.isfinite(expected))[:3]
    for j, z in inner:
        value = oracles.peak(np.asarray(floats.log_p[j]), np.asarray(floats.log_odds), z)
        assert float(got.known_peaks[j, z]) == pytest.approx(value, rel=1e-9)


def test_peaks_are_enclosed_where_the_mean_changes_sign(exact):
    got = rationals.to_balls(exact, 128)

    def excess(arrays, j, z, alpha):
        return tilting.mean(arrays.log_p[j], arrays.log_odds - arrays.log_odds[z], alpha)

    for j, z in [(0, 0), (2, 3), (4, 2)]:
        peak = got.known_peaks[j, z]
        if not peak.is_finite():
            continue
        for end, sign in ((peak.lower(), -1), (peak.upper(), 1)):
            with balls.working(400):
                beyond = end + sign * abs(end) * 2.0**-100
            value = balls.evaluate(excess, rationals.to_balls(exact, 400), np.array(j), np.array(z), beyond, precision=400)
            assert (value.item() * sign > 0) is True


def test_a_constant_has_no_peaks():
    p = np.full((5, 6), 1 / 6)
    got = rationals.to_balls(rationals.rationalise(instance(p)))
    assert all(x.is_nan() for x in got.known_peaks.ravel())


def test_equal_fractions_are_one_object():
    rational = rationals.rationalise(instance(FAMILIES["uniform"]()), 4)
    got = rationals.to_balls(rational)
    assert got.log_p[0, 0] is got.log_p[1, 1]
    difference = balls.evaluate(lambda arrays: arrays.log_odds[0] - arrays.log_odds[1], got).item()
    assert difference.is_zero()
    assert got is rationals.to_balls(rational)


def test_floats_and_balls_agree(exact):
    floats, enclosed = rationals.to_floats(exact), rationals.to_balls(exact)
    for name in ("log_p", "weights", "contrast"):
        for value, ball in zip(np.ravel(getattr(floats, name)), getattr(enclosed, name).ravel(), strict=True):
            assert float(ball) == pytest.approx(float(value), rel=1e-15)
    for name in ("concept", "members", "target"):
        np.testing.assert_array_equal(getattr(floats, name), getattr(enclosed, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_p": np.log(np.eye(6)[:5] + 1e-300) - np.inf}, "instance: expected positive probabilities"),
        ({"weights": np.array([1.0, 0, 0, 0, 0])}, "instance: expected positive weights"),
        ({"contrast": np.array([0.75, 0.25, -0.5, -0.5, 0])}, "instance: expected a contrast of 1/|P| on P"),
        ({"log_p": np.zeros((2, 5, 6))}, "instance: expected a single instance"),
        ({"target": np.array(1)}, "contrast: expected contexts of P in the target concept 1"),
    ],
)
def test_what_has_no_exact_instance(change, message):
    changed = dataclasses.replace(instance(FAMILIES["any"]()), **change)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        rationals.rationalise(changed)
    assert str(error.value).startswith(message)


def test_digits_are_checked():
    with pytest.raises(ValueError, match=r"digits: .*got 0"):
        rationals.rationalise(instance(FAMILIES["any"]()), 0)


@families
def test_files(family):
    rational = rationals.rationalise(instance(FAMILIES[family]()))
    assert rationals.from_json(json.loads(json.dumps(rationals.as_json(rational)))) == rational


def test_what_a_file_looks_like():
    p = np.array([[0.4, 0.4, 0.2], [0.1, 0.1, 0.8]])
    members = np.array([[True, True, False], [False, False, True]])
    rational = rationals.rationalise(instance(p, contrast=(1.0, -1.0), members=members, concept=np.arange(2)), 2)
    assert rationals.as_json(rational) == {
        "p": [["2/5", "2/5", "1/5"], ["1/10", "1/10", "4/5"]],
        "weights": ["1/3", "2/3"],
        "concept": [0, 1],
        "members": [[0, 1], [2]],
        "contrast": ["1", "-1"],
        "target": 0,
    } | {"weights": [str(x) for x in rational.weights]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": [["1/2", "1/3"], ["1/2", "1/2"]]}, "p[0]: expected fractions that sum to 1, got a sum of 5/6"),
        ({"p": [["3/2", "-1/2"], ["1/2", "1/2"]]}, "p[0]: expected positive fractions, got {1: '-1/2'}"),
        ({"p": [["1", "0"], ["1/2", "1/2"]]}, "p[0]: expected positive fractions, got {1: '0'}"),
        ({"p": [["1/2", "1/2"], ["1"]]}, "p[1]: expected as many tokens as the first row, 2, got 1"),
        ({"p": [["1/2", "1/2"]]}, "p: expected at least two rows, got 1"),
        ({"p": [[0.5, "1/2"], ["1/2", "1/2"]]}, 'p[0][0]: expected a fraction as a string, such as "3/10", got 0.5'),
        ({"p": [["half", "1/2"], ["1/2", "1/2"]]}, 'p[0][0]: expected a fraction as a string, such as "3/10", got half'),
        ({"p": [["1/0", "1/2"], ["1/2", "1/2"]]}, 'p[0][0]: expected a fraction as a string, such as "3/10", got 1/0'),
        ({"p": "1/2"}, "p: expected a list, got str"),
        ({"weights": ["1"]}, "weights: expected one for each row of p, 2, got 1"),
        ({"weights": ["1/2", "1/3"]}, "weights: expected fractions that sum to 1, got a sum of 5/6"),
        ({"concept": [0]}, "concept: expected one for each row of p, 2, got 1"),
        ({"concept": [0, 2]}, "concept: expected concepts in 0..1, the target too, got [2]"),
        ({"target": -1}, "concept: expected concepts in 0..1, the target too, got [-1]"),
        ({"target": True}, "target: expected an integer, got True"),
        ({"members": [[0], [2]]}, "members: expected tokens in 0..1, got [2]"),
        ({"members": [[0], []]}, "members[1]: expected a non-empty set of the 2 tokens, got 0 tokens"),
        ({"members": [[0], [0, 1]]}, "members: expected concepts that are disjoint or equal, got concepts 0 and 1"),
        ({"members": [[0], [0]]}, "members: expected concepts that cover all tokens, got none with the tokens [1]"),
        ({"contrast": ["1", "-1/2"]}, "contrast: expected -1/|N| on a non-empty N, got ['1', '-1/2']"),
        ({"contrast": ["0", "-1"]}, "contrast: expected 1/|P| on a non-empty P, got ['0', '-1']"),
        ({"contrast": ["-1", "1"]}, "contrast: expected contexts of P in the target concept 0, got contexts [1]"),
        ({"contrast": ["1"]}, "contrast: expected one for each row of p, 2, got 1"),
        ({"more": 1}, "data: expected the fields"),
    ],
)
def test_bad_files(change, message):
    good = {
        "p": [["2/3", "1/3"], ["1/2", "1/2"]],
        "weights": ["1/2", "1/2"],
        "concept": [0, 1],
        "members": [[0], [1]],
        "contrast": ["1", "-1"],
        "target": 0,
    }
    assert rationals.from_json(good).p[0] == (Fraction(2, 3), Fraction(1, 3))
    with pytest.raises(ValueError) as error:  # noqa: PT011
        rationals.from_json(good | change)
    assert str(error.value).startswith(message)
    with pytest.raises(ValueError, match="got list"):
        rationals.from_json([])
