"""The ways to check a statement: random instances, autodiff, sweeps of trained models, symbols, ball arithmetic, attack.

Each route returns `Evidence`. A route that found no instance on which the statement claims something has checked nothing
and does not hold. A route applies to a statement if its claim has the part that the route works on.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from theory import balls, rationals
from theory import symbolic as proofs
from theory._compilation import compiled_quickly
from theory.certificate import Certificate, certify, certify_count
from theory.rationals import RationalInstance
from theory.refute import Attack, attack, confirmed, pick
from theory.statement import (
    Claim,
    Count,
    Curve,
    Domain,
    Margin,
    Statement,
    assemble_all,
    find,
    hold,
    hold_on,
    margins_on,
    sample_all,
)
from theory.statements import REGISTRY
from ufm._check import require, typed
from ufm.concepts import check_count

ROUTES = ("instances", "autodiff", "sweep", "symbolic", "certificate", "refutation")
"""The routes by name."""


Outcome = Literal["holds", "fails", "undecided", "nothing checked"]


@dataclass(frozen=True)
class Evidence:
    """The finding of one route on one statement.

    Attributes:
        route: its name.
        holds: whether it checked something and found the claim to hold. If not, `outcome` says what else became of it.
        checked: how many instances the statement claimed something about and was checked on (symbolic: identities,
            certificate: inequalities over an interval, refutation: instances tried).
        worst_margin: the least margin over them; NaN if a margin was, +inf if nothing was checked, if there is no margin,
            or if it was not decided.
        seconds: wall time, compilation included.
        worst: what attains the worst margin, where there is something.
        note: what else there is to say, in a few words.
        undecided: whether the claim was neither proved nor refuted, which means nothing about its truth.
    """

    route: str
    holds: bool
    checked: int
    worst_margin: float
    seconds: float
    worst: Any = None
    note: str = field(default="")
    undecided: bool = field(default=False)

    @property
    def outcome(self) -> Outcome:
        """The finding in words."""
        if self.holds:
            return "holds"
        return "nothing checked" if not self.checked else "undecided" if self.undecided else "fails"


@typed
def applies(claim: Claim, route: str) -> bool:
    """Whether a route has something to work on.

    Raises:
        ValueError: a route that there is not.
    """
    require(route in ROUTES, "route", f"one of {', '.join(ROUTES)}", repr(route))
    certified = claim.curves + claim.counts
    part = {"autodiff": claim.autodiff, "sweep": claim.sweep, "symbolic": claim.identities, "certificate": certified}
    return bool(part.get(route, True))


# --- random instances ------------------------------------------------------------------------------------------------


@typed
def populate(key: jax.Array, n: int, domain: Domain) -> Any:
    """`n` random instances of a domain's default families, with all that margins share: one batch.

    Raises:
        ValueError: no instances, or more than fit in memory.
    """
    require(n >= 1, "n", "at least one instance", n)
    check_count("n", "instances", n)
    return assemble_all(domain, *sample_all(domain, domain.families, jax.random.split(key, n)))


def subset(population: Any, n: int) -> Any:
    """The first `n` instances of a batch."""
    return jax.tree.map(lambda leaf: leaf[:n], population)


@typed
def instances(statement: Statement, population: Any, *, claim: Claim | None = None) -> Evidence:
    """The closed-form margin over random instances; those that the hypotheses exclude are not counted.

    Args:
        statement: what to check.
        population: from `populate`.
        claim: another claim under the same hypotheses (the false twin, say).
    """
    return _over_population("instances", statement, (claim or statement.claim).instances, population)


@typed
def autodiff(statement: Statement, population: Any, *, claim: Claim | None = None) -> Evidence:
    """The evidence of `instances`, with the margin from derivatives that JAX takes through a split model of gap 0."""
    margin = (claim or statement.claim).autodiff
    assert margin is not None
    return _over_population("autodiff", statement, margin, population)


def _over_population(route: str, statement: Statement, margin: Margin, population: Any) -> Evidence:
    start = time.perf_counter()
    values = np.where(hold_on(statement.conditions, population), margins_on(margin, population), np.inf)
    return _evidence(route, values, partial(pick, population), start)


# --- sweeps ----------------------------------------------------------------------------------------------------------


@typed
def sweep(statement: Statement, measured: Iterable[Any], *, claim: Claim | None = None) -> Evidence:
    """The margin read off the sweeps of trained models (`Domain.measured`)."""
    start = time.perf_counter()
    margin = (claim or statement.claim).sweep
    assert margin is not None
    checked = [(margin(swept), swept.instance) for swept in measured if within(statement, swept.instance)]
    return _evidence("sweep", [value for value, _ in checked], lambda i: checked[i][1], start)


Answer = Literal["holds", "fails", "the theorem says nothing here"]


@typed
def check(statement: Statement | str, instance: Any) -> tuple[Answer, float]:
    """A statement on one instance: the answer and the margin (+inf where the statement says nothing).

    It says nothing where a hypothesis fails (M constant, for instance) or where nothing in the instance is of the kind it
    speaks of. That is not a success.

    Args:
        statement: what to check, or the id of one of the registry.
        instance: an instance of its domain.

    Raises:
        ValueError: an unknown id, an instance of another domain.
    """
    if isinstance(statement, str):
        statement = find(statement, REGISTRY)
    kind = statement.domain.kind
    require(
        isinstance(instance, kind),
        "instance",
        f"an instance of {statement.domain.name}: {kind.__name__}",
        type(instance).__name__,
    )
    numbers = [leaf for leaf in jax.tree.leaves(instance) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    require(not any(np.isnan(leaf).any() for leaf in numbers), "instance", "one of numbers", "NaN")
    if not within(statement, instance):
        return "the theorem says nothing here", float("inf")
    margin = float(compiled_quickly(statement.claim.instances)(instance))
    if margin == np.inf:
        return "the theorem says nothing here", margin
    return ("holds" if margin > 0 else "fails"), margin


@typed
def within(statement: Statement, instance: Any) -> bool:
    """Whether all hypotheses hold on an instance."""
    return bool(hold(statement.conditions, instance))


# --- proofs ----------------------------------------------------------------------------------------------------------


@typed
def symbolic(statement: Statement, *, claim: Claim | None = None) -> Evidence:
    """Every identity of the claim, decided exactly for symbolic p and M (`theory.symbolic`)."""
    start = time.perf_counter()
    identities = (claim or statement.claim).identities
    assert identities is not None
    verdicts = {identity.name: proofs.holds(identity) for identity in identities()}
    false = [name for name, holds in verdicts.items() if not holds]
    note = f"false: {'; '.join(false)}" if false else f"{len(verdicts)} identities proved"
    return Evidence(
        "symbolic", bool(verdicts) and not false, len(verdicts), float("inf"), time.perf_counter() - start, None, note
    )


@typed
def certificate(
    statement: Statement, exacts: Iterable[RationalInstance], *, claim: Claim | None = None, budget: int = 4000
) -> Evidence:
    """Every curve of the claim, proved positive over its interval of strengths on exact instances, or on all of R.

    Counts of changes of sign are proved to be no larger than claimed. Where a curve or a count says from which strength on
    its sign stays (`Curve.beyond`), the interval is widened to there.

    Undecided is neither: the claim was not proved, and no ball refutes it. The note gives the width that remains.
    """
    start = time.perf_counter()
    stated = claim or statement.claim
    results: list[Certificate] = []
    everywhere = []
    for exact in exacts:
        instance = rationals.to_floats(exact)
        if not within(statement, instance):
            continue
        scale = float(instance.range)
        for part in stated.curves + stated.counts:
            ends, whole = _ends(part, exact, scale)
            everywhere.append(whole)
            result = _certified(part, exact, ends, budget)
            results.append(result)
            if result.verdict == "refuted":
                note = f"refuted at alpha = {result.at:.6g}, {result.precision} bits"
                return Evidence("certificate", False, len(results), result.lower, time.perf_counter() - start, exact, note)
    return _proved_or_open(results, everywhere, start)


def _proved_or_open(results: list[Certificate], everywhere: list[bool], start: float) -> Evidence:
    """The evidence of certificates none of which is refuted."""
    claimed = [result for result in results if result.verdict != "nothing claimed"]
    if not claimed:
        return Evidence("certificate", False, 0, float("inf"), time.perf_counter() - start)
    bits = max(result.precision for result in claimed)
    undecided = [result for result in claimed if result.verdict == "undecided"]
    if undecided:
        remaining = sum(result.remaining for result in undecided)
        note = f"undecided on a width of {remaining:.2g}, in {len(undecided)} of {len(claimed)}, {bits} bits"
        # What was bounded on the pieces that were proved is no margin of the claim.
        lower = float("inf")
    else:
        where = f", on all of R {sum(everywhere)} of {len(everywhere)}" if any(everywhere) else ""
        note = f"{sum(result.pieces for result in claimed)} pieces, {bits} bits{where}"
        lower = min(result.lower for result in claimed)
    seconds = time.perf_counter() - start
    return Evidence("certificate", not undecided, len(claimed), lower, seconds, None, note, undecided=bool(undecided))


def _certified(part: Curve | Count, exact: RationalInstance, ends: tuple[float, float], budget: int) -> Certificate:
    """The certificate of one curve or count between two strengths."""
    if isinstance(part, Curve):
        return certify(part.function, exact, ends, zero=part.zero, budget=budget)
    most = balls.evaluate(part.most, rationals.to_balls(exact))
    return certify_count(part.function, exact, ends, most.ravel().tolist(), budget=budget)


WIDER = 12
"""How often an end of an interval is doubled in search of a strength from which on signs stay."""


def _ends(part: Curve | Count, exact: RationalInstance, scale: float) -> tuple[tuple[float, float], bool]:
    """The strengths on which a curve or a count is to be proved, and whether it then is beyond them too."""
    ends = part.interval[0] / scale, part.interval[1] / scale
    beyond = part.beyond
    if beyond is None:
        return ends, False

    def stays(end: float) -> bool:
        if end == 0:
            return False
        # At the end itself, and a little farther, since an interval has some width.
        near = sorted((end, end * (1 + 2.0**-30)))
        return certify(beyond, exact, (near[0], near[1]), budget=3).verdict in ("proved", "nothing claimed")

    wide = [next((end * 2.0**k for k in range(WIDER) if stays(end * 2.0**k)), None) for end in ends]
    low, high = (end if wider is None else wider for end, wider in zip(ends, wide, strict=True))
    return (low, high), None not in wide


# --- attack ----------------------------------------------------------------------------------------------------------


@typed
def refutation(statement: Statement, key: jax.Array, *, claim: Claim | None = None) -> Evidence:
    """Gradient descent on the margin over instances that satisfy the hypotheses (`theory.refute`).

    Holds where the attack failed: the worst margin is how close to zero it came.
    """
    result = assault(statement, key, claim=claim)
    fell = result.confirmation is not None
    note = f"confirmed in exact fractions, margin {result.confirmation.digits}" if result.confirmation else result.note
    holds = not fell and result.tried > 0 and result.margin > 0
    return Evidence("refutation", holds, result.tried, result.margin, result.seconds, result.instance, note)


@typed
def assault(statement: Statement, key: jax.Array, *, claim: Claim | None = None) -> Attack:
    """The attack itself, on a statement's claim or another one under its hypotheses."""
    return confirmed(attack((claim or statement.claim).instances, key, statement.domain, statement.conditions))


def _evidence(route: str, margins: Any, worst: Callable[[int], Any], start: float) -> Evidence:
    values = np.asarray(margins, dtype=float)
    claimed = (values < np.inf) | np.isnan(values)
    count = int(claimed.sum())
    if count == 0:
        return Evidence(route, False, 0, float("inf"), time.perf_counter() - start)
    broken = np.isnan(values)
    index = int(np.argmax(broken)) if broken.any() else int(np.argmin(values))
    value = float(values[index])
    return Evidence(route, bool(value > 0), count, value, time.perf_counter() - start, worst(index))
