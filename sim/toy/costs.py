"""The cost of a share in the toy, the waste of directions, and strengths that keep to a budget (N15, N4, N18, N20).

Lines are of the corpus, in closed form; what is measured is of a trained model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from sim.measure import costs as predicted
from sim.toy.curves import Trained
from theory import budgets
from ufm import FreeFeatures, concept_increase, difference_of_means, divergence
from ufm._check import typed
from ufm.concepts import concept_log_probabilities
from ufm.directions import contrast, contrast_of_rows, contrastive
from ufm.distributions import kl


class _Direction(NamedTuple):
    """A way to steer towards the target: the vector in the model, and its log-odds in the corpus."""

    v: Float[Array, " d"]
    log_odds: Float[Array, " V"]


@typed
def run(trained: Trained) -> dict[str, xr.Dataset]:
    """The data of the figures, by name: of the first context of the third concept, and of one context of each of three.

    With two concepts it is that of the second.

    Args:
        trained: a case whose first concept is steered to, away from the second, and its model.
    """
    corpus = trained.corpus
    first = [int(contexts[0]) for g in range(corpus.concepts.count) if len(contexts := corpus.contexts_of(g))][:3]
    return {
        "share-costs": share_costs(trained, first[-1]),
        "efficiencies": efficiencies(trained, first),
        "safe-strengths": safe_strengths(trained, first[-1], np.geomspace(1e-3, 10, 13)),
    }


def directions(trained: Trained) -> dict[str, _Direction]:
    """Towards the first concept: away from the second, from all others if these are more, along the unembedding of a token.

    Args:
        trained: a case whose first concept is steered to, and its model.
    """
    corpus, model = trained.corpus, trained.model
    contexts, own = jnp.arange(corpus.n_contexts), corpus.contexts_of(0)
    others = np.setdiff1d(np.arange(corpus.n_contexts), own)
    names = trained.names
    weights = {f"{names.concepts[0]} - {names.concepts[1]}": contrast(corpus.n_contexts, *contrastive(corpus, 0, 1))}
    if corpus.concepts.count > 2:
        weights[f"{names.concepts[0]} - all others"] = contrast(corpus.n_contexts, own, others)
    result = {
        name: _Direction(difference_of_means(model, contexts, contrasted), contrast_of_rows(corpus.log_p, contrasted))
        for name, contrasted in weights.items()
    }
    # The unembedding of one token, less the mean of all: what promotes it and takes from all others.
    assert isinstance(model, FreeFeatures)
    W = jnp.asarray(model.W)
    centred, token = W - W.mean(axis=0), int(np.flatnonzero(corpus.concepts.of_token == 0)[0])
    return result | {f"token {names.tokens[token]} alone": _Direction(centred[token], centred @ centred[token])}


@typed
def share_costs(trained: Trained, context: int, strengths: int = 121, reach: float = 0.97) -> xr.Dataset:
    """KL against the share of the target as the strength grows, and the least that any intervention pays (N15).

    Args:
        trained: the case and its model.
        context: to steer after.
        strengths: of each direction.
        reach: the share up to which directions are followed.

    Returns:
        "share" and "cost" (predicted), "measured_share" and "measured_cost", by direction and strength, and "efficiency" by
        direction; "least", by the shares in "reached". Costs are in nats.
    """
    corpus, ways, rows = trained.corpus, directions(trained), {}
    log_p, members = jnp.asarray(corpus.log_p)[context], jnp.asarray(corpus.concepts.of_token == 0)
    before = float(_share(trained, log_p))
    for name, way in ways.items():
        alphas = _up_to(trained, log_p, way.log_odds, reach) * np.linspace(0, 1, strengths)
        log_q = predicted.tilted(log_p, way.log_odds, alphas)
        rows[name] = {
            "share": _share(trained, log_q),
            "cost": kl(log_p, log_q),
            "measured_share": before + _growth(trained, context, way.v, alphas),
            "measured_cost": divergence(trained.model, [context], way.v, alphas)[0],
        }
    reached = np.linspace(before, reach, 200)[1:]
    return xr.Dataset(
        {
            **{
                name: (("direction", "strength"), np.stack([np.asarray(row[name]) for row in rows.values()]))
                for name in ("share", "cost", "measured_share", "measured_cost")
            },
            "efficiency": (
                "direction",
                [float(budgets.efficiency(log_p, way.log_odds, members)) for way in ways.values()],
            ),
            "least": ("reached", np.asarray(budgets.cost_of_share(before, jnp.asarray(reached)))),
        },
        coords={"direction": list(ways), "strength": np.arange(strengths), "reached": reached},
        attrs={"context": context, "before": before, "gap": trained.fit.gap},
    )


@typed
def efficiencies(trained: Trained, contexts: Sequence[int]) -> xr.Dataset:
    """The part of a small cost that the share of the target needs, ``rho^2``, by direction and context (N15).

    Args:
        trained: the case and its model.
        contexts: to steer after.

    Returns:
        "predicted" from the corpus; "measured": ``kl / KL`` of the model at a strength of KL about 1e-6 nats.
    """
    corpus = trained.corpus
    members = jnp.asarray(corpus.concepts.of_token == 0)
    ways, rows = directions(trained), jnp.asarray(corpus.log_p)[jnp.asarray(contexts)]
    expected = [budgets.efficiency(rows, way.log_odds[None], members[None]) for way in ways.values()]
    measured = []
    for way in ways.values():
        spread = budgets.spread_of(rows, way.log_odds[None]).variance
        for j, row, variance in zip(contexts, rows, spread, strict=True):
            # Both signs: what is odd in the strength cancels.
            alphas = float(np.sqrt(2e-6 / variance)) * np.array([-1.0, 1.0])
            cost = divergence(trained.model, [j], way.v, alphas)[0]
            before = _share(trained, row)
            after = before + _growth(trained, j, way.v, alphas)
            measured.append(float(jnp.mean(budgets.binary_divergence(before, after) / cost)))
    shape = len(ways), len(contexts)
    return xr.Dataset(
        {
            "predicted": (("direction", "context"), np.stack([np.asarray(x) for x in expected])),
            "measured": (("direction", "context"), np.reshape(measured, shape)),
        },
        coords={
            "direction": list(ways),
            "context": [trained.names.concepts[int(corpus.concept[j])] for j in contexts],
        },
    )


@typed
def safe_strengths(trained: Trained, context: int, nats: np.ndarray) -> xr.Dataset:
    """The largest strength for a budget: by the bounds N4, N18 and N20, in closed form, and measured.

    Args:
        trained: the case and its model.
        context: to steer after.
        nats: budgets, ``[B]``.

    Returns:
        "N4", "N18", "N20", "exact" and "measured", by budget.
    """
    instance = trained.instance
    log_p, m = instance.log_p[context], instance.log_odds

    def of_model(alpha):
        return divergence(trained.model, [context], trained.v, [alpha])[0, 0]

    safe = predicted.safe_strengths(log_p, m, nats)
    measured = predicted.strengths_of_costs(of_model, nats, safe["N20"])
    return xr.Dataset(
        {name: ("budget", values) for name, values in (safe | {"measured": measured}).items()},
        coords={"budget": nats},
        attrs={"context": context, "gap": trained.fit.gap},
    )


def _share(trained: Trained, log_p: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """The probability of the target, the first concept."""
    return jnp.exp(concept_log_probabilities(log_p, trained.corpus.concepts)[..., 0])


def _growth(trained: Trained, context: int, v: Float[Array, " d"], alphas: np.ndarray) -> Float[Array, " K"]:
    """The increase of the target's share in the model: S's concept probability is the mean over a concept's tokens."""
    concepts = trained.corpus.concepts
    return concepts.sizes[0] * concept_increase(trained.model, [context], v, alphas, concepts)[0, :, 0]


def _up_to(trained: Trained, log_p: Float[Array, " V"], m: Float[Array, " V"], reach: float) -> float:
    """The strength at which the target's share reaches a level; that of the largest share if it does not."""
    alphas = np.linspace(0, 60, 6001)
    share = np.asarray(_share(trained, predicted.tilted(log_p, m, alphas)))
    above = np.flatnonzero(share >= reach)
    return float(alphas[above[0] if above.size else int(share.argmax())])
