"""Hypotheses that several statements share, in words and as margins."""

from collections.abc import Mapping

import jax.numpy as jnp

from theory.instance import Instance, says_nothing
from theory.statement import Margin
from ufm import assumption_1

WORDS = {
    "A2": "assumption 2: the model has gap 0 (closed forms, or a model trained until rounding)",
    "not-constant": "M is not constant; if it is, steering does nothing and the theorem says nothing",
    "separated": "assumption 1 in the form the proof uses: every token is likelier after its own concept's contexts "
    "(a > b), and b does not depend on the context. The first factor, a, may depend on it.",
    "positive": "all next-token probabilities are positive",
}


def needs(*names: str) -> dict[str, str]:
    """The chosen hypotheses in words."""
    return {name: WORDS[name] for name in names}


def margins(*names: str) -> Mapping[str, Margin]:
    """The chosen hypotheses as margins."""
    return {name: _MARGINS[name] for name in names}


def _gap_is_zero(one: Instance):
    # Closed forms and `ufm.exact` satisfy it by construction; the sweep route trains until it does.
    return jnp.ones(())


def _not_constant(one: Instance):
    return jnp.where(says_nothing(one), -1.0, 1.0)


def _separated(one: Instance):
    margins = assumption_1(one.corpus)
    return jnp.minimum(margins.separation, margins.outside + 1e-12)


def _positive(one: Instance):
    return jnp.min(jnp.exp(one.corpus.log_rows))


_MARGINS: dict[str, Margin] = {
    "A2": _gap_is_zero,
    "not-constant": _not_constant,
    "separated": _separated,
    "positive": _positive,
}
