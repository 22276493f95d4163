"""The verification run: statements by routes, with a verdict for each, as data and as JSON.

Language models (`ufm verify --model`) are in `sim.checks.validation`.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from sim.output import package_version
from sim.progress import bar
from sim.toy.curves import Trained
from theory import REGISTRY, Claim, Domain, Evidence, Measured, Statement, examples, find_all, routes
from theory._compilation import release_programs
from theory.rationals import RationalInstance
from theory.statement import TABLES
from ufm._check import require, typed
from ufm.precision import in_float64

INSTANCES = 1_000
"""Random instances per statement, unless told otherwise."""

DEFAULT_ROUTES = ("instances", "autodiff", "sweep", "symbolic", "certificate")
"""The routes taken unless told otherwise; "refutation" takes longer than all of them."""

ORDER = ("instances", "autodiff", "certificate", "symbolic", "refutation", "sweep")
"""In which the routes are queued: sweeps wait for the training."""

SHARE, FEW = 20, 200
"""The autodiff route, and false twins, take one instance in `SHARE`, and at least `FEW` if there are so many: formulas are
checked there, not corner cases."""

ENOUGH = 1000
"""How many instances a false twin is tried on where the first did not show it to be wrong: some twins are wrong on few."""


@dataclass(frozen=True)
class Verdict:
    """A statement, what each route found, and what each found about its false twin.

    Attributes:
        statement: what was checked.
        evidence: what each route found.
        twin: what each route found about the false twin, if it was put to them.
    """

    statement: Statement
    evidence: tuple[Evidence, ...]
    twin: tuple[Evidence, ...] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether every route checked something and found it to hold, and no route took the false twin for true."""
        held = len(self.evidence) > 0 and all(result.holds for result in self.evidence)
        return held and self.rejections == len(self.twin)

    @property
    def rejections(self) -> int:
        """How many routes rejected the false twin: they checked it on something, and it did not hold there."""
        return sum(map(_fell, self.twin))


@typed
def train_examples(seed: int = 0, names: Sequence[str] | None = None) -> dict[str, Trained]:
    """The cases of `theory.examples` (or those named) with trained models, in float64.

    Raises:
        ValueError: an unknown case.
    """
    with in_float64():
        cases = examples.all_cases()
        unknown = [name for name in names or () if name not in cases]
        require(not unknown, "names", f"some of {'; '.join(cases)}", unknown)
        chosen = {name: cases[name] for name in (names or cases)}
        fits = bar(examples.train(chosen, jax.random.key(seed)), total=len(chosen), desc="train", unit="corpus")
        return {name: Trained(chosen[name], fit) for name, fit in fits}


@typed
def verify(
    ids: Sequence[str] | None = None,
    *,
    seed: int = 0,
    instances: int = INSTANCES,
    names: Sequence[str] = DEFAULT_ROUTES,
    twins: bool = False,
    trained: Callable[[], dict[str, Trained]] | None = None,
    workers: int = 2,
) -> list[Verdict]:
    """Check statements by every route that applies to them, in float64.

    Args:
        ids: statements to check, or names of several (`theory.find_all`); all if left out.
        seed: of the random instances and of the initial parameters of trained models.
        instances: random instances per statement.
        names: routes to take.
        twins: whether to put the false twins to them too; every route that applies has to reject them.
        trained: gives the models of the sweep route on tables, if they are wanted elsewhere too; called in a worker. By
            default `train_examples` with the seed.
        workers: routes checked at the same time. Most of the time goes into compilation, which runs in parallel.

    Raises:
        ValueError: an unknown id or route, fewer than one instance.
    """
    statements = find_each(ids or REGISTRY)
    unknown = [name for name in names if name not in routes.ROUTES]
    require(bool(names) and not unknown, "routes", f"some of {', '.join(routes.ROUTES)}", unknown or "none")
    require(workers >= 1, "workers", "at least one", workers)
    require(instances >= 1, "instances", "at least one", instances)
    wanted = [
        (route, statement, claim)
        for route in ORDER
        for statement in statements
        for claim in ((statement.claim, statement.twin) if twins else (statement.claim,))
        if route in names and routes.applies(claim, route)
    ]
    with in_float64(), ThreadPoolExecutor(workers) as pool:
        domains = {statement.domain.name: statement.domain for statement in statements}
        material = _material(pool, domains, names, seed, instances, trained or partial(train_examples, seed))
        futures = {
            (claim, route): pool.submit(_check, route, statement, claim, material) for route, statement, claim in wanted
        }
        with bar(total=len(futures), desc="verify", unit="route") as progress:
            for future in futures.values():
                future.add_done_callback(lambda _: progress.update())

            def evidence(claim: Claim) -> tuple[Evidence, ...]:
                return tuple(futures[claim, route].result() for route in routes.ROUTES if (claim, route) in futures)

            return [Verdict(statement, evidence(statement.claim), evidence(statement.twin)) for statement in statements]


def find_each(ids: Iterable[str]) -> list[Statement]:
    """The statements that names stand for (`theory.find_all`), each once, in the order of the names.

    Raises:
        ValueError: an unknown id.
    """
    return list({statement.id: statement for name in ids for statement in find_all(name, REGISTRY)}.values())


class _Material(NamedTuple):
    """The material that routes check statements on.

    Attributes:
        populations: random instances, by the name of their domain.
        swept: the futures of measured sweeps, by the name of their domain.
        exacts: tables in fractions.
        instances: how many random ones.
        key: of the attacks.
    """

    populations: dict[str, Any]
    swept: dict[str, Future[Any]]
    exacts: list[RationalInstance]
    instances: int
    key: jax.Array


def _material(
    pool: ThreadPoolExecutor,
    domains: dict[str, Domain],
    names: Sequence[str],
    seed: int,
    instances: int,
    train: Callable[[], dict[str, Trained]],
) -> _Material:
    """The material that the routes named need: models are trained in the pool, as its first work."""
    swept = {}
    if "sweep" in names:
        swept = {
            name: pool.submit(_sweep_examples, train) if name == TABLES.name else pool.submit(_measured, domain, seed)
            for name, domain in domains.items()
        }
    key, random = jax.random.key(seed), {"instances", "autodiff"} & set(names)
    populations = {name: routes.populate(key, instances, domain) for name, domain in domains.items() if random}
    exacts = list(examples.exact_instances().values()) if "certificate" in names else []
    return _Material(populations, swept, exacts, instances, key)


def _check(route: str, statement: Statement, claim: Claim, material: _Material) -> Evidence:
    """The evidence of a route on a claim; for a worker, which the setting of float64 does not come to by itself."""
    name = statement.domain.name
    release_programs()
    with in_float64():
        if route in ("instances", "autodiff"):
            population = material.populations[name]
            if route == "autodiff" or claim is statement.twin:
                few = max(min(material.instances, FEW), material.instances // SHARE)
                population = routes.subset(population, few)
            evidence = getattr(routes, route)(statement, population, claim=claim)
            if claim is statement.twin and not _fell(evidence):
                more = routes.populate(material.key, ENOUGH, statement.domain)
                evidence = getattr(routes, route)(statement, more, claim=claim)
            return evidence
        if route == "sweep":
            return routes.sweep(statement, material.swept[name].result(), claim=claim)
        if route == "certificate":
            return routes.certificate(statement, material.exacts, claim=claim)
        if route == "symbolic":
            return routes.symbolic(statement, claim=claim)
        return routes.refutation(statement, material.key, claim=claim)


def _fell(evidence: Evidence) -> bool:
    return evidence.checked > 0 and not evidence.holds


def _sweep_examples(trained: Callable[[], dict[str, Trained]]) -> list[Measured]:
    with in_float64():
        return [examples.measure(example.case, example.model) for example in trained().values()]


def _measured(domain: Domain, seed: int) -> Sequence[object]:
    with in_float64():
        return domain.measured(seed)


@typed
def as_json(verdicts: Sequence[Verdict], seed: int) -> dict[str, object]:
    """The verdicts as JSON-ready data; a margin that is not a number, or of nothing, is null."""
    return {
        "version": package_version(),
        "seed": seed,
        "holds": bool(verdicts) and all(verdict.holds for verdict in verdicts),
        "statements": [
            {
                "id": verdict.statement.id,
                "source": verdict.statement.source,
                "holds": verdict.holds,
                "routes": [_plain(result) for result in verdict.evidence],
                "twin": [_plain(result) for result in verdict.twin],
            }
            for verdict in verdicts
        ],
    }


def _plain(result: Evidence) -> dict[str, object]:
    return {
        "route": result.route,
        "holds": result.holds,
        "instances": result.checked,
        "worst_margin": result.worst_margin if np.isfinite(result.worst_margin) else None,
        "seconds": round(result.seconds, 3),
        "note": result.note,
    }


@typed
def as_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table for the terminal: instances checked and the worst margin, route by route.

    Below each statement is its false twin, if it was put to the routes.
    """
    shown = [
        route for route in routes.ROUTES if any(result.route == route for verdict in verdicts for result in verdict.evidence)
    ]
    lines = [f"{'statement':<24}" + "".join(f"{route:^27}" for route in shown).rstrip()]
    for verdict in verdicts:
        lines.append(_line(verdict.statement.id, verdict.evidence, shown, ("holds", "FAILS")))
        if verdict.twin:
            lines.append(_line("  false twin", verdict.twin, shown, ("HOLDS", "fails")))
    lines.append("cells: verdict, how many were checked, worst margin (positive where the statement holds)")
    lines.append("of an equation or a limit the margin is the tolerance less the error: near 0 is no narrow escape")
    lines.append("fewer than were drawn are checked where a hypothesis fails on the others")
    if any(verdict.twin for verdict in verdicts):
        lines.append("false twins are wrong, and every route has to find them so")
    counted = {"symbolic": "identities", "certificate": "inequalities, each on a whole interval"}
    lines += [f"{route}: {what}" for route, what in counted.items() if route in shown]
    return "\n".join(lines)


def _line(name: str, evidence: Sequence[Evidence], shown: Sequence[str], words: tuple[str, str]) -> str:
    by_route = {result.route: result for result in evidence}
    return (f"{name:<24}" + " ".join(_cell(by_route.get(route), words) for route in shown)).rstrip()


def _cell(result: Evidence | None, words: tuple[str, str]) -> str:
    if result is None:
        return f"{'-':^26}"
    margin = f"{result.worst_margin:>+11.2e}" if np.isfinite(result.worst_margin) else " " * 11
    verdict = words[0] if result.holds else words[1] if result.checked else "NOTHING"
    return f"{verdict:>7} {result.checked:>5} {margin} "
