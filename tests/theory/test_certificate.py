import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import REGISTRY, balls, tilting
from theory.certificate import certify, certify_count, confirm
from theory.rationals import RationalInstance, checked, to_floats


def _rational(rows, contrast, members):
    return checked(
        RationalInstance(
            p=tuple(tuple(map(Fraction, row.split())) for row in rows),
            weights=tuple(Fraction(1, len(rows)) for _ in rows),
            concept=(0, 1, 1),
            members=members,
            contrast=tuple(map(Fraction, contrast.split())),
            target=0,
        )
    )


@pytest.fixture(scope="module")
def exact():
    """Three contexts, four tokens of two concepts, nothing equal."""
    rows = ["1/2 1/4 3/20 1/10", "1/5 1/10 2/5 3/10", "1/10 1/10 3/5 1/5"]
    return _rational(rows, "1 -1/2 -1/2", ((True, True, False, False), (False, False, True, True)))


CURVES = [
    pytest.param(curve, id=f"{statement.id}-{side}-{k}")
    for statement in REGISTRY.values()
    for side, claim in (("claim", statement.claim), ("twin", statement.twin))
    for k, curve in enumerate(claim.curves + claim.counts)
]


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_has_rules_in_this_release(exact, curve):
    """That it is proved or refuted takes longer: the certificate route does that, and tells of what it cannot compute."""
    for function, zero in ((curve.function, getattr(curve, "zero", 0)), (curve.beyond, 0)):
        if function is not None:
            result = certify(function, exact, (Fraction(1, 2), 1) if zero == 0 else (0, 1), zero=zero, budget=3)
            assert result.precision >= 128


def log_odds_gaps(instance):
    return instance.log_odds[:, None] - instance.log_odds


def rising(instance, alpha):
    """Positive where a token's probability rises: ``sum_z' p(z') (M(z) - M(z')) e^{alpha (M(z') - M(z))}``."""
    ahead = log_odds_gaps(instance)
    return instance.p @ (ahead * jnp.exp(-alpha * ahead)).T


def concave(instance, alpha):
    """Minus the slope of `rising`: a sum of positive terms."""
    ahead = log_odds_gaps(instance)
    return instance.p @ (ahead**2 * jnp.exp(-alpha * ahead)).T


def before_the_peak(instance, alpha):
    """`rising`, claimed on [-2, 0] for those tokens that peak beyond 0."""
    return jnp.where(instance.peaks > 0, rising(instance, alpha), jnp.inf)


def variance(instance, alpha):
    return jax.vmap(lambda row: tilting.variance(row, instance.log_odds, alpha))(instance.log_p)


def partition(instance, alpha):
    """``E[e^{alpha d}] - 1`` with d = M - E[M]: 0 at 0, of order 2, and convex."""
    d = instance.log_odds - (instance.p @ instance.log_odds)[:, None]
    return jnp.sum(instance.p * jnp.expm1(alpha * d), axis=-1)


def parabola(instance, alpha, root, offset):
    del instance
    return (alpha - root) ** 2 + offset


def cubic(instance, alpha):
    """alpha^3 e^alpha, and an entry that claims nothing."""
    del instance
    return jnp.stack([alpha**3 * jnp.exp(alpha), alpha / 0.5 * 0 + jnp.inf])


@pytest.mark.parametrize("curve", [concave, variance])
def test_true_curves_are_proved(exact, curve):
    got = certify(curve, exact)
    assert got.verdict == "proved"
    assert got.remaining == 0
    assert got.at is None
    assert got.interval == (-60, 60)
    assert got.pieces <= got.evaluations <= 4000
    smallest = min(float(np.min(curve(to_floats(exact), alpha))) for alpha in np.linspace(-60, 60, 241))
    assert 0 < got.lower <= smallest * (1 + 1e-9)


def test_the_pattern_of_a_bump(exact):
    assert certify(before_the_peak, exact, (-2, 0)).verdict == "proved"
    assert certify(rising, exact, (-2, 0)).verdict == "refuted"


def test_false_curves_are_refuted_at_a_strength(exact):
    def dips(instance, alpha):
        return jnp.stack([1 + alpha**2, parabola(instance, alpha, 1.625, -1e-6)])

    got = certify(dips, exact)
    assert got.verdict == "refuted"
    assert dips(None, got.at)[1] < 0
    assert dips(None, got.at)[1] <= got.lower < 0
    assert got.lower == pytest.approx(float(dips(None, got.at)[1]), rel=1e-6)
    assert got.remaining > 0
    assert certify(dips, exact, (2, 60)).verdict == "proved"


def test_a_small_positive_minimum_is_proved(exact):
    curve = functools.partial(parabola, root=1 / 3, offset=1e-9)
    got = certify(curve, exact)
    assert got.verdict == "proved"
    assert 0 < got.lower <= 1e-9


def test_a_curve_that_touches_zero_is_undecided(exact):
    got = certify(functools.partial(parabola, root=1 / 3, offset=0.0), exact)
    assert got.verdict == "undecided"
    assert got.remaining < 1e-8
    assert got.at == pytest.approx(1 / 3, abs=1e-8)


def test_a_zero_at_zero(exact):
    got = certify(partition, exact, zero=2)
    assert got.verdict == "proved"
    unsaid = certify(partition, exact)
    assert (unsaid.verdict, unsaid.at) == ("refuted", 0)
    assert certify(partition, exact, (1, 60)).verdict == "proved"


def test_an_order_that_is_too_low_or_too_high_proves_nothing(exact):
    def quartic(instance, alpha):
        del instance
        return alpha**4

    assert certify(quartic, exact, zero=4).verdict == "proved"
    assert certify(quartic, exact, zero=2).verdict == "undecided"
    # The second derivative of x^2 is not 0 at 0: it has no zero of order 4, and so none that is allowed.
    assert certify(functools.partial(parabola, root=0.0, offset=0.0), exact, zero=4).verdict == "refuted"
    # Nor is it where there is no zero.
    assert certify(functools.partial(parabola, root=0.0, offset=1.0), exact, zero=2).verdict == "proved"
    assert certify(functools.partial(parabola, root=0.0, offset=-1.0), exact, zero=2).verdict == "refuted"


def test_odd_orders_on_one_side(exact):
    assert certify(cubic, exact, (0, 5), zero=3).verdict == "proved"
    assert certify(lambda instance, alpha: -cubic(instance, alpha)[:1], exact, (-5, 0), zero=3).verdict == "proved"
    assert certify(cubic, exact, (-5, 0), zero=3).verdict == "refuted"
    with pytest.raises(ValueError, match=r"^interval: .*zero=3"):
        certify(cubic, exact, zero=3)


def test_the_zero_must_not_hide_a_negative_side(exact):
    def changes(instance, alpha):
        del instance
        return alpha**2 * (alpha + 1 / 8)

    got = certify(changes, exact, zero=2)
    assert got.verdict == "refuted"
    assert got.at < -1 / 8
    assert certify(changes, exact, (-1 / 16, 60), zero=2).verdict == "proved"


def test_cancellation_raises_the_precision(exact):
    def cancels(instance, alpha):
        large = jnp.exp(100 * instance.log_odds[0] ** 0 + alpha)
        return (large + 1e-20) - large

    got = certify(cancels, exact, (-1, 1), precision=64)
    assert (got.verdict, got.precision) == ("proved", 256)

    def differs(instance, alpha):
        return jnp.log(instance.p[0, 0] + 1e-45) - jnp.log(instance.p[0, 0]) + 0 * alpha

    got = certify(differs, exact, (-1, 1), precision=64)
    assert got.verdict == "proved"
    assert got.precision == 256
    assert got.pieces == 1


def test_an_entry_that_is_zero_everywhere_is_soon_given_up(exact):
    def curve(instance, alpha):
        third = instance.p[0, 0] / 3
        return jnp.stack([third + third + third - instance.p[0, 0] + 0 * alpha, 1 + alpha**2])

    got = certify(curve, exact)
    assert got.verdict == "undecided"
    assert got.remaining == 120
    assert got.evaluations < 100


def test_choices_that_are_not_decided_are_split(exact):
    def largest(instance, alpha):
        curve = jnp.stack([alpha - 1, 1 - alpha / 2])
        return curve[jnp.argmax(curve)] + 2

    assert certify(largest, exact, (-60, 1)).verdict == "proved"
    got = certify(largest, exact, budget=400)
    assert got.verdict == "undecided"
    assert got.at == pytest.approx(4 / 3, abs=1e-3)


def test_jumps_are_not_overlooked(exact):
    """Their derivatives are 0 on both sides."""
    third = 1 / 3
    for jump in (
        lambda instance, alpha: jnp.where(alpha > third, -1.0, 1.0),
        lambda instance, alpha: jnp.sign(third - alpha) + 0.5,
        lambda instance, alpha: jnp.floor(third - alpha) + 0.5,
        lambda instance, alpha: (alpha < third) - 0.5,
        lambda instance, alpha: jax.lax.cond(alpha > third, lambda: -1.0, lambda: 1.0),
    ):
        got = certify(jump, exact, (-1, 0.5))
        assert got.verdict == "refuted"
        assert 1 / 3 <= got.at <= 0.5
        tiny = certify(jump, exact, (-1, Fraction(1, 3) + Fraction(1, 10**15)))
        assert tiny.verdict != "proved"


def test_kinks_do_no_harm(exact):
    def kinked(instance, alpha):
        return jnp.abs(alpha - 1 / 3) + jnp.maximum(alpha, 0.25) - 0.2

    assert certify(kinked, exact).verdict == "proved"
    assert certify(lambda instance, alpha: kinked(instance, alpha) - 0.14, exact).verdict == "refuted"


def test_nothing_claimed_is_no_success(exact):
    got = certify(lambda instance, alpha: jnp.where(instance.log_odds > 9, alpha, jnp.inf), exact)
    assert (got.verdict, got.pieces, got.lower) == ("nothing claimed", 0, np.inf)


def test_other_instances_are_taken_as_they_are():
    def curve(instance, alpha):
        return (alpha - instance["root"]) ** 2 + instance["offset"][instance["which"]]

    instance = {"root": np.float64(0.5), "offset": np.array([-1.0, 1e-6]), "which": 1}
    assert certify(curve, instance).verdict == "proved"
    assert certify(curve, instance | {"which": 0}).verdict == "refuted"
    got = confirm(lambda instance: curve(instance, instance["root"]), instance)
    assert (got.lower, got.upper) == (1e-6, 1e-6)


def test_the_budget_is_kept(exact):
    got = certify(concave, exact, budget=5)
    assert got.verdict == "undecided"
    assert got.evaluations <= 5 + 4
    assert got.remaining > 60


def test_intervals_of_fractions(exact):
    def above(instance, alpha):
        del instance
        return alpha - 1 / 3

    assert certify(above, exact, (Fraction(1, 3), 1)).verdict == "proved"
    assert certify(above, exact, (Fraction(333, 1000), 1)).verdict == "refuted"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": (1, 1)}, "interval: expected a first end below the second"),
        ({"interval": (0, np.inf)}, "interval: .*finite ends"),
        ({"zero": -1}, "zero: expected an order from 0 to 30, got -1"),
        ({"zero": 10**7}, "zero: .*got 10000000"),
    ],
)
def test_bad_arguments(exact, arguments, message):
    with pytest.raises(ValueError, match=message):
        certify(concave, exact, **arguments)


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.float64, np.longdouble, jnp.float32, jnp.bfloat16, np.asarray])
def test_ends_are_numbers_of_any_kind(exact, kind):
    proof = certify(concave, exact, (kind(-2), kind(2)))
    assert (proof.verdict, proof.interval) == ("proved", (-2, 2))
    with jax.enable_x64(True):
        end = jnp.asarray(0.1)
    assert certify(concave, exact, (0, end)).interval[1] == Fraction(0.1)
    assert certify(concave, exact, (0, np.float32(0.1))).interval[1] == Fraction(float(np.float32(0.1)))
    assert certify(concave, exact, (0, Fraction(1, 10))).interval[1] == Fraction(1, 10)


def forgets_to_return(instance, *_):
    instance.range - 100


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (forgets_to_return, "a function that returns NoneType"),
        (lambda instance, *_: (), "a function that returns tuple"),
        (lambda instance, *_: instance.range > 0, "a function that returns floats, got bool"),
        (lambda instance, *_: jnp.ones((), int), "a function that returns floats, got int64"),
    ],
)
def test_functions_that_return_no_numbers_are_refused(exact, function, message):
    with pytest.raises(ValueError, match=rf"^curve: expected .*{message}"):
        certify(function, exact)
    with pytest.raises(ValueError, match=rf"^curve: expected .*{message}"):
        certify_count(function, exact, (-1, 1), [])
    with pytest.raises(ValueError, match=rf"^margin: expected .*{message}"):
        confirm(function, exact)


def test_no_entries_prove_nothing(exact):
    for refused in (
        lambda: certify(lambda instance, alpha: jnp.zeros(0), exact),
        lambda: certify_count(lambda instance, alpha: jnp.zeros(0), exact, (-1, 1), []),
    ):
        with pytest.raises(ValueError, match=r"^curve: expected a function that returns numbers, got none: shape \(0,\)"):
            refused()


def test_what_is_infinite_everywhere_claims_nothing(exact):
    nothing = lambda instance, alpha: alpha * 0 + jnp.inf  # noqa: E731
    for result in (certify(nothing, exact), certify_count(nothing, exact, (-1, 1), [0])):
        assert (result.verdict, result.pieces, result.lower) == ("nothing claimed", 0, np.inf)


def test_what_has_no_rule_is_said(exact):
    with pytest.raises(balls.Unsupported, match="primitive"):
        certify(lambda instance, alpha: jnp.linalg.eigh(instance.p.T @ instance.p)[0] + alpha, exact)


def waves(instance, alpha):
    """Three changes of sign, at -3, 0 and 3; two; none; and an entry without a claim."""
    del instance
    return jnp.stack([alpha**3 - 9 * alpha, alpha**2 - 2, alpha**2 + 1e-3, alpha * 0 + jnp.inf])


def test_changes_of_sign_are_counted(exact):
    got = certify_count(waves, exact, (-10, 10), [3, 2, 0, 0])
    assert (got.verdict, got.lower, got.remaining, got.at) == ("proved", 0.5, 0, None)
    assert got.pieces > 0
    for most in ([2, 2, 0, 0], [3, 1, 0, 0]):
        refuted = certify_count(waves, exact, (-10, 10), most)
        assert (refuted.verdict, refuted.lower) == ("refuted", -0.5)
    assert certify_count(waves, exact, (1, 10), [1, 1, 0, 0]).verdict == "proved"


def test_a_zero_that_is_only_touched_or_nowhere_left_is_not_counted(exact):
    touching = certify_count(functools.partial(parabola, root=1 / 3, offset=0.0), exact, (-1, 1), [0])
    assert touching.verdict == "undecided"
    assert touching.at == pytest.approx(1 / 3, abs=1e-6)

    def nothing(instance, alpha):
        third = instance.p[0, 0] / 3
        return (third + third + third - instance.p[0, 0]) * (1 + alpha)

    got = certify_count(nothing, exact, (-1, 1), [0])
    assert (got.verdict, got.remaining) == ("undecided", 2)
    assert got.evaluations < 100


def test_counting_refuses(exact):
    with pytest.raises(ValueError, match=r"^most: expected one number for each of the 4 entries, got 1"):
        certify_count(waves, exact, (-1, 1), [3])
    with pytest.raises(ValueError, match=r"^interval: .*finite ends"):
        certify_count(waves, exact, (-1, np.inf), [3, 2, 0, 0])


def test_signs_are_confirmed(exact):
    got = confirm(lambda instance: jnp.max(instance.log_odds), exact)
    assert (got.sign, got.precision) == (1, 128)
    value = float(np.max(to_floats(exact).log_odds))
    assert got.lower <= value * (1 + 1e-12)
    assert got.upper >= value * (1 - 1e-12)
    assert got.digits.startswith(f"[{value:.12f}"[:12])
    assert confirm(lambda instance: jnp.min(instance.log_odds), exact).sign == -1
    assert confirm(lambda instance: jnp.inf + 0 * instance.log_odds[0], exact).sign == 1


def test_precision_is_doubled_until_the_sign_is_seen(exact):
    def tiny(instance):
        return jnp.log(instance.p[0, 0] + 1e-300) - jnp.log(instance.p[0, 0])

    assert confirm(tiny, exact).precision == 1024
    assert confirm(tiny, exact).sign == 1
    assert confirm(lambda instance: -tiny(instance), exact).sign == -1
    got = confirm(tiny, exact, limit=512)
    assert (got.sign, got.precision) == (0, 512)
    assert got.lower <= 0 <= got.upper


def test_zero_has_no_sign(exact):
    assert confirm(lambda instance: instance.log_odds[0] - instance.log_odds[0], exact).sign == 0
    third = confirm(lambda instance: 3 * (instance.p[0, 0] / 3) - instance.p[0, 0], exact, limit=256)
    assert (third.sign, third.precision) == (0, 256)


def test_confirm_checks_its_arguments(exact):
    with pytest.raises(ValueError, match="margin: expected a scalar function"):
        confirm(lambda instance: instance.log_odds, exact)
    with pytest.raises(ValueError, match="precision: expected at most limit=64, got 128"):
        confirm(lambda instance: instance.log_odds[0], exact, limit=64)
