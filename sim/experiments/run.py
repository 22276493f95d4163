"""The stages of the experiments by name, one by one or together."""

from collections.abc import Callable, Sequence

from sim.experiments.concept import concept
from sim.experiments.cross_entropy import blocks, cross_entropy
from sim.experiments.experiment import Experiment
from sim.experiments.mmlu import mmlu
from sim.experiments.next_token import next_token
from sim.experiments.prompts import prompts
from sim.experiments.vectors import log_odds, vectors
from ufm._check import require

STAGES: dict[str, tuple[Callable[[Experiment], None], tuple[str, ...]]] = {
    "prompts": (prompts, ()),
    "vectors": (vectors, ("prompts",)),
    "log-odds": (log_odds, ("prompts",)),
    "next-token": (next_token, ("vectors", "log-odds")),
    "concept": (concept, ("vectors", "log-odds")),
    "blocks": (blocks, ()),
    "cross-entropy": (cross_entropy, ("vectors", "blocks")),
    "mmlu": (mmlu, ("vectors",)),
}
"""Every stage, and those that it needs."""


def run(e: Experiment, stages: Sequence[str] | None = None) -> None:
    """Do stages, and before them those that they need; what is done already is not done again.

    Args:
        e: the run.
        stages: names; all if left out.

    Raises:
        ValueError: an unknown stage.
    """
    chosen = list(STAGES) if stages is None else list(stages)
    unknown = [name for name in chosen if name not in STAGES]
    require(not unknown, "stage", f"one of {', '.join(STAGES)}", ", ".join(unknown))
    done: set[str] = set()

    def do(name: str) -> None:
        if name not in done:
            stage, needs = STAGES[name]
            for need in needs:
                do(need)
            stage(e)
            done.add(name)

    for name in chosen:
        do(name)
