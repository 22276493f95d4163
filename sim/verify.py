"""The verification run: statements by routes, with a verdict for each, as data and as JSON."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from sim.output import package_version
from sim.toy import Trained
from theory import REGISTRY, Evidence, Measured, Statement, find, gallery, routes
from ufm._check import require

INSTANCES = 1_000
"""Random instances per statement, unless told otherwise."""

AUTODIFF_SHARE = 20
"""The autodiff route takes one in so many of them: it checks formulas, not corner cases."""


@dataclass(frozen=True)
class Verdict:
    """A statement and what each route found."""

    statement: Statement
    evidence: tuple[Evidence, ...]

    @property
    def holds(self) -> bool:
        """Whether every route checked something and found it to hold."""
        return len(self.evidence) > 0 and all(one.holds for one in self.evidence)


def train_gallery(seed: int = 0, names: Sequence[str] | None = None) -> dict[str, Trained]:
    """The instances of `theory.gallery` (or those named) with trained models, in float64."""
    with jax.enable_x64(True):
        instances = gallery.gallery()
        chosen = {name: instances[name] for name in (names or instances)}
        fits = tqdm(
            gallery.train(chosen, jax.random.key(seed)), total=len(chosen), desc="train", unit="corpus", disable=None
        )
        return {name: Trained(chosen[name], fit) for name, fit in fits}


def verify(
    ids: Sequence[str] | None = None,
    *,
    seed: int = 0,
    instances: int = INSTANCES,
    trained: Callable[[], dict[str, Trained]] | None = None,
    workers: int = 2,
) -> list[Verdict]:
    """Check statements by every route, in float64.

    Args:
        ids: statements to check; all if left out.
        seed: of the random instances and of the initial parameters of trained models.
        instances: random instances per statement.
        trained: gives the models of the sweep route, if they are wanted elsewhere too; called in a worker. By default
            `train_gallery` with the seed.
        workers: routes checked at the same time. Most of the time goes into compilation, which runs in parallel.

    Raises:
        ValueError: an unknown id, fewer instances than shapes of corpora.
    """
    chosen = [find(name, REGISTRY) for name in ids] if ids else list(REGISTRY.values())
    require(workers >= 1, "workers", "at least one", workers)
    with jax.enable_x64(True), ThreadPoolExecutor(workers) as pool:
        swept = pool.submit(_sweep_gallery, trained or partial(train_gallery, seed))
        population = routes.populate(jax.random.key(seed), instances)
        gentle = routes.sample(population, max(1, instances // AUTODIFF_SHARE))
        tasks: list[tuple[str, Callable[[Statement], Evidence]]] = [
            ("autodiff", lambda statement: routes.autodiff(statement, gentle)),
            ("instances", lambda statement: routes.instances(statement, population)),
            ("sweep", lambda statement: routes.sweep(statement, swept.result())),
        ]
        # Sweeps wait for the training, so they are queued last.
        futures = {
            (statement.id, route): pool.submit(_in_float64, task, statement) for route, task in tasks for statement in chosen
        }
        with tqdm(total=len(futures), desc="verify", unit="route", disable=None) as bar:
            for future in futures.values():
                future.add_done_callback(lambda _: bar.update())
            return [
                Verdict(statement, tuple(futures[statement.id, route].result() for route in routes.ROUTES))
                for statement in chosen
            ]


def _sweep_gallery(trained: Callable[[], dict[str, Trained]]) -> list[Measured]:
    with jax.enable_x64(True):
        return [gallery.measure(one.instance, one.model) for one in trained().values()]


def _in_float64(task: Callable[[Statement], Evidence], statement: Statement) -> Evidence:
    # The setting belongs to a thread, so each worker enters it.
    with jax.enable_x64(True):
        return task(statement)


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
                "routes": [
                    {
                        "route": one.route,
                        "holds": one.holds,
                        "instances": one.instances,
                        "worst_margin": one.worst_margin if np.isfinite(one.worst_margin) else None,
                        "seconds": round(one.seconds, 3),
                    }
                    for one in verdict.evidence
                ],
            }
            for verdict in verdicts
        ],
    }


def as_table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table for the terminal: instances checked and the worst margin, route by route."""
    lines = [f"{'statement':<24}" + "".join(f"{route:^27}" for route in routes.ROUTES)]
    for verdict in verdicts:
        cells = [
            f"{'holds' if one.holds else 'FAILS':>6} {one.instances:>6} {one.worst_margin:>+11.2e} "
            for one in verdict.evidence
        ]
        lines.append(f"{verdict.statement.id:<24}" + " ".join(cells))
    lines.append("cells: verdict, instances checked, worst margin (positive where the statement holds)")
    return "\n".join(lines)
