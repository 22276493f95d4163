"""The form of a statement: a margin, positive where the statement holds and negative where it fails.

From the one form come all the ways to check it (`theory.routes`). A statement comes with its hypotheses, themselves
margins, and with a *false twin*: a plausible wrong version that every route must reject, which is how the routes are
tested. An instance on which a statement claims nothing has margin +inf, and is never counted as a success.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from theory.instance import Instance, Measured

Margin = Callable[[Instance], Float[Array, ""]]

compiled_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` for programs that run once or a few times, on small instances: compilation is most of what checking costs."""


class Claim(NamedTuple):
    """What is claimed, with one margin for each route that can check it.

    Attributes:
        tex: the claim, in TeX.
        instances: the margin from closed forms; this is *the* margin of the statement.
        autodiff: the margin from derivatives that JAX takes through a model with gap 0, instead of the closed forms'.
        sweep: the margin read off the measured sweep of a trained model.

    Margins of inequalities include an allowance for rounding, so that a statement holds exactly where its margin is
    positive; margins of equalities are a tolerance less the error.
    """

    tex: str
    instances: Margin
    autodiff: Margin
    sweep: Callable[[Measured], float]


@dataclass(frozen=True)
class Statement:
    """A numbered statement.

    Attributes:
        id: such as "theorem-3.3.bump".
        title: a few words.
        source: paper and number.
        claim: what it says, and its margins.
        twin: a plausible wrong version.
        needs: the hypotheses in words, by name.
        hypotheses: margins of the hypotheses, by the same names; all must be positive for the statement to apply.
        remarks: what a reader should know beyond the claim.
    """

    id: str
    title: str
    source: str
    claim: Claim
    twin: Claim
    needs: Mapping[str, str]
    hypotheses: Mapping[str, Margin]
    remarks: str = field(default="")

    def __post_init__(self):
        if set(self.needs) != set(self.hypotheses):
            raise ValueError(f"{self.id}: every hypothesis needs words and a margin under one name")


def find(statement_id: str, registry: Mapping[str, Statement]) -> Statement:
    """The statement of that id.

    Raises:
        ValueError: an unknown id; the message lists the near matches.
    """
    if statement_id in registry:
        return registry[statement_id]
    near = difflib.get_close_matches(statement_id, registry, n=3, cutoff=0.4) or sorted(registry)
    raise ValueError(f"statement: expected a known id such as {', '.join(near)}, got {statement_id!r}")
