"""Proposition B.1 of S: where the probability of a token ends as the strength goes to infinity."""

import jax
import jax.numpy as jnp

from theory import tilting
from theory.claims import TOKENS, limiting
from theory.instance import Instance
from theory.statement import Statement
from theory.statements.hypotheses import chosen


def _everywhere(instance: Instance):
    return jnp.ones(instance.log_p.shape, bool)


def _limit(instance: Instance, sign: int):
    m = instance.log_odds
    return jax.vmap(lambda log_p: tilting.limit(log_p, m, sign) - jnp.exp(log_p))(instance.log_p)


def _even_limit(instance: Instance, sign: int):
    highest, lowest, _ = tilting.extremes(instance.log_odds)
    extreme = highest if sign > 0 else lowest
    return extreme / jnp.sum(extreme) - jnp.exp(instance.log_p)


STATEMENTS = (
    Statement(
        id="proposition-B.1",
        title="Steering far leaves the extreme tokens",
        source="S, proposition B.1",
        claim=limiting(
            r"\lim_{\alpha \to +\infty} \Delta p(z \mid c_j, \alpha) = \mathbf{1}_{z \in \overline{M}}\,"
            r"\frac{p_j(z)}{\sum_{z' \in \overline{M}} p_j(z')} - p_j(z),"
            r"\quad \text{with}\ \underline{M}\ \text{in place of}\ \overline{M}\ \text{as}\ \alpha \to -\infty",
            TOKENS,
            _limit,
            _everywhere,
        ),
        twin=limiting(
            r"\lim_{\alpha \to \pm\infty} \Delta p(z \mid c_j, \alpha) = "
            r"\mathbf{1}_{z \in \overline{M}} / |\overline{M}| - p_j(z)\quad (\underline{M}\ \text{at}\ -\infty)",
            TOKENS,
            _even_limit,
            _everywhere,
        ),
        hypotheses=chosen("A2", "not-constant", "positive", "resolved"),
        remarks="Tied extreme tokens share the mass in proportion to their unsteered probabilities, not evenly.",
        proof="proofs/proposition-B.1",
        figure="next-token-curves",
    ),
)
