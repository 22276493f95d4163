"""The verification run: statements by routes, with a verdict for each, as data and as JSON.

Language models (`ufm verify --model`) are in `sim.checks.validation`.
"""

import multiprocessing
import operator
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from sim._garbage import collect_seldom
from sim.output import finite_or_none, package_version
from sim.progress import bar
from sim.toy.curves import Trained
from theory import REGISTRY, Claim, Domain, Evidence, Measured, Statement, examples, find_all, routes
from theory._compilation import release_programs
from theory.rationals import RationalInstance
from theory.statement import TABLES
from ufm._check import known_names, require, typed
from ufm.concepts import check_count
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

RANDOM = {"instances", "autodiff"}
"""The routes on random instances, which may be checked in a process of their own."""

MAPS = 2_500
"""Memory maps from which on a process lets go of its compiled programs: nearly all of them run once."""

ENOUGH = 1000
"""How many instances a false twin is tried on where the first did not show it to be wrong: some twins are wrong on few."""


E = TypeVar("E", bound=Executor)

_Key = tuple[Claim, str]
"""A claim and the route that checks it."""


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
        """Whether every route checked something and found it to hold, and every route rejected the false twin."""
        held = len(self.evidence) > 0 and all(result.holds for result in self.evidence)
        return held and self.rejections == len(self.twin)

    @property
    def rejections(self) -> int:
        """How many routes rejected the false twin: they checked it on something, and found it to fail there."""
        return sum(map(_fell, self.twin))

    @property
    def undecided(self) -> bool:
        """Whether nothing speaks against it, but a certificate decided neither way on the claim or on the false twin."""
        standing = all(result.outcome in ("holds", "undecided") for result in self.evidence)
        answered = all(result.outcome in ("fails", "undecided") for result in self.twin)
        return len(self.evidence) > 0 and standing and answered and not self.holds

    @property
    def outcome(self) -> str:
        """The verdict in words."""
        return "holds" if self.holds else "undecided" if self.undecided else "fails"


@typed
def train_examples(seed: int = 0, names: Sequence[str] | None = None) -> dict[str, Trained]:
    """The cases of `theory.examples` (or those named) with trained models, in float64.

    Raises:
        ValueError: an unknown case.
    """
    with in_float64():
        cases = examples.all_cases()
        known_names("names", names or (), cases)
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
    apart: bool = False,
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
        apart: whether a second process checks the random instances. Threads take turns at tracing functions; two processes
            do not, which pays where there are many statements. When this one has nothing else left, it helps. A script
            that asks for it must be safe to import (``if __name__ == "__main__"``).

    Raises:
        ValueError: an unknown id or route, no instance or more than fit in memory; the second process was ended.
    """
    statements = find_each(ids or REGISTRY)
    known_names("routes", names, routes.ROUTES)
    require(bool(names), "routes", f"some of {', '.join(routes.ROUTES)}", "none")
    require(workers >= 1, "workers", "at least one", workers)
    require(instances >= 1, "instances", "at least one", instances)
    check_count("instances", "instances", instances)
    wanted = _wanted(statements, names, twins)
    with in_float64(), ExitStack() as stack, bar(total=len(wanted), desc="verify", unit="route") as progress:
        random = deque(
            ((claim, route), partial(_check_random, route, statement.id, claim is statement.twin, instances, seed))
            for route, statement, claim in wanted
            if route in RANDOM
        )
        stack.callback(_population.cache_clear)
        pool = _entered(stack, ThreadPoolExecutor(workers + apart))
        run = _second_process(stack) if apart else operator.call
        material = _material(pool, statements, names, seed, trained or partial(train_examples, seed))
        loops = [pool.submit(_work_off, random.popleft, run, progress) for _ in range(1 if apart else workers)]
        futures = {
            (claim, route): pool.submit(_check, route, statement, claim, material, progress)
            for route, statement, claim in wanted
            if route not in RANDOM
        }
        loops.append(pool.submit(_work_off, random.pop, operator.call, progress))
        stack.callback(random.clear)
        begun: list[Future[Any]] = [*loops, *futures.values()]
        for done in as_completed(begun):
            done.result()  # an error in any of them is raised at once
        results = {key: evidence for loop in loops for key, evidence in loop.result().items()}
        results |= {key: future.result() for key, future in futures.items()}
    return [_verdict(statement, results) for statement in statements]


def _verdict(statement: Statement, results: dict[_Key, Evidence]) -> Verdict:
    """A statement with the evidence on it and on its twin, in the order in which routes are shown."""
    evidence, twin = (
        tuple(results[claim, route] for route in routes.ROUTES if (claim, route) in results)
        for claim in (statement.claim, statement.twin)
    )
    return Verdict(statement, evidence, twin)


def _wanted(statements: Sequence[Statement], names: Collection[str], twins: bool) -> list[tuple[str, Statement, Claim]]:
    """The routes to take, in the order in which they are queued, each with the statement and the claim to check."""
    return [
        (route, statement, claim)
        for route in ORDER
        for statement in statements
        for claim in ((statement.claim, statement.twin) if twins else (statement.claim,))
        if route in names and routes.applies(claim, route)
    ]


def _entered(stack: ExitStack, executor: E) -> E:
    """An executor that ends with a stack; after an error it leaves undone what it has not begun."""
    stack.callback(executor.shutdown, cancel_futures=True)
    return executor


def _second_process(stack: ExitStack) -> Callable[[Callable[[], Evidence]], Evidence]:
    """A function that runs tasks in another process, one by one."""
    process = _entered(stack, ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _set_up))

    def run(task: Callable[[], Evidence]) -> Evidence:
        try:
            return process.submit(task).result()
        except BrokenProcessPool as error:
            words = "instances: the process that checks them was ended, as a system does that runs out of memory"
            raise ValueError(words) from error

    return run


def _set_up() -> None:
    """Leave accelerators to the process that started this one, and look for garbage seldom."""
    jax.config.update("jax_platforms", "cpu")
    collect_seldom()


def _work_off(
    take: Callable[[], tuple[_Key, Callable[[], Evidence]]], run: Callable[[Callable[[], Evidence]], Evidence], progress: Any
) -> dict[_Key, Evidence]:
    """The results of the tasks that it takes off a queue, until that is empty."""
    results: dict[_Key, Evidence] = {}
    while True:
        try:
            key, task = take()
        except IndexError:
            return results
        results[key] = run(task)
        progress.update()


def find_each(ids: Iterable[str]) -> list[Statement]:
    """The statements that names stand for (`theory.find_all`), each once, in the order of the names.

    Raises:
        ValueError: an unknown id.
    """
    return list({statement.id: statement for name in ids for statement in find_all(name, REGISTRY)}.values())


class _Material(NamedTuple):
    """The material that routes check statements on.

    Attributes:
        swept: the futures of measured sweeps, by the name of their domain.
        exacts: tables in fractions.
        key: of the attacks.
    """

    swept: dict[str, Future[Any]]
    exacts: list[RationalInstance]
    key: jax.Array


def _material(
    pool: Executor,
    statements: Sequence[Statement],
    names: Collection[str],
    seed: int,
    train: Callable[[], dict[str, Trained]],
) -> _Material:
    """The material that the routes named need: models are trained in the pool, as its first work."""
    swept: dict[str, Future[Any]] = {}
    if "sweep" in names:
        for domain in dict.fromkeys(statement.domain for statement in statements):
            tables = domain.name == TABLES.name
            swept[domain.name] = pool.submit(_sweep_examples, train) if tables else pool.submit(_measured, domain, seed)
    exacts = list(examples.exact_instances().values()) if "certificate" in names else []
    return _Material(swept, exacts, jax.random.key(seed))


def _check(route: str, statement: Statement, claim: Claim, material: _Material, progress: Any) -> Evidence:
    """The evidence of a route on a claim; for a worker, which the setting of float64 does not come to by itself."""
    release_programs(MAPS)
    with in_float64():
        if route == "sweep":
            evidence = routes.sweep(statement, material.swept[statement.domain.name].result(), claim=claim)
        elif route == "certificate":
            evidence = routes.certificate(statement, material.exacts, claim=claim)
        elif route == "symbolic":
            evidence = routes.symbolic(statement, claim=claim)
        else:
            evidence = routes.refutation(statement, material.key, claim=claim)
    progress.update()
    return evidence


def _check_random(route: str, name: str, twin: bool, instances: int, seed: int) -> Evidence:
    """The evidence of a route on random instances, for a worker that may be another process and makes its own."""
    statement = REGISTRY[name]
    claim = statement.twin if twin else statement.claim
    release_programs(MAPS)
    with in_float64():
        with _POPULATING:
            population = _population(statement.domain, instances, seed)
        if route == "autodiff" or twin:
            population = routes.subset(population, max(min(instances, FEW), instances // SHARE))
        evidence = getattr(routes, route)(statement, population, claim=claim)
        if twin and not _fell(evidence):
            more = routes.populate(jax.random.key(seed), ENOUGH, statement.domain)
            evidence = getattr(routes, route)(statement, more, claim=claim)
        return evidence


_POPULATING = threading.Lock()


@cache
def _population(domain: Domain, instances: int, seed: int) -> Any:
    return routes.populate(jax.random.key(seed), instances, domain)


def _fell(evidence: Evidence) -> bool:
    """Whether a route found a claim to be wrong; one that is undecided may be true."""
    return evidence.outcome == "fails"


def _sweep_examples(trained: Callable[[], dict[str, Trained]]) -> list[Measured]:
    with in_float64():
        return [examples.measure(example.case, example.model) for example in trained().values()]


def _measured(domain: Domain, seed: int) -> Sequence[object]:
    with in_float64():
        return domain.measured(seed)


@typed
def as_json(verdicts: Sequence[Verdict], seed: int) -> dict[str, object]:
    """The verdicts as JSON-ready data; a margin that is not a number, or of nothing, is null.

    Beside ``holds``, a truth value, stands ``outcome``: "holds", "fails" or "undecided", of a route also "nothing checked".
    """
    return {
        "version": package_version(),
        "seed": seed,
        "holds": bool(verdicts) and all(verdict.holds for verdict in verdicts),
        "statements": [
            {
                "id": verdict.statement.id,
                "source": verdict.statement.source,
                "holds": verdict.holds,
                "outcome": verdict.outcome,
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
        "outcome": result.outcome,
        "instances": result.checked,
        "worst_margin": finite_or_none(float(result.worst_margin)),
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
    if undecided := [verdict.statement.id for verdict in verdicts if verdict.undecided]:
        lines.append(f"undecided, neither verified nor found to fail: {', '.join(undecided)}")
    if any(result.undecided for verdict in verdicts for result in (*verdict.evidence, *verdict.twin)):
        lines.append("a certificate that is undecided proves nothing and refutes nothing: it means nothing about the truth")
    counted = {"symbolic": "identities", "certificate": "inequalities or counts, each on a whole interval"}
    lines += [f"{route}: {what}" for route, what in counted.items() if route in shown]
    return "\n".join(lines)


def _line(name: str, evidence: Sequence[Evidence], shown: Sequence[str], words: tuple[str, str]) -> str:
    by_route = {result.route: result for result in evidence}
    return (f"{name:<24}" + " ".join(_cell(by_route.get(route), words) for route in shown)).rstrip()


def _cell(result: Evidence | None, words: tuple[str, str]) -> str:
    if result is None:
        return f"{'-':^26}"
    margin = f"{result.worst_margin:>+11.2e}" if np.isfinite(result.worst_margin) else " " * 11
    words_of = {"holds": words[0], "fails": words[1], "nothing checked": "NOTHING", "undecided": "undecided"}
    verdict = f"{words_of[result.outcome]:>7}"
    return f"{verdict} {result.checked:>{12 - len(verdict)}} {margin} "
