"""N6: preference and utility in the unconstrained features model, where the two papers meet.

For two single-token answers, preference log-odds compare the two, utility log-odds their sum to all other tokens
(arXiv:2602.02343). In this model preference never saturates; what makes it saturate is normalisation (N7).
"""

import jax
import jax.numpy as jnp
import numpy as np

from theory import symbolic
from theory.claims import GRID, TOKENS, exact_split, largest_error, model_curves, on_sweep, slope
from theory.instance import Instance
from theory.statement import Claim, Statement
from theory.statements.hypotheses import chosen
from theory.statements.lemmas_b import BY_CONCEPTS_TEX, by_concepts
from theory.statements.theorem_3_6 import reparametrised_tanh
from ufm import steer

_PROOF = "proofs/N6"


def _differences(values):
    """The differences of every two tokens, ``[..., V, V]``, from values ``[..., V]``."""
    return values[..., :, None] - values[..., None, :]


def _preference_follows(tex: str, identities, log_odds) -> Claim:
    """The claim that the log-odds of one token over another are affine in the strength, with the slope M(z) - M(z').

    Args:
        tex: the claim.
        identities: the same, symbolic.
        log_odds: of an instance, what M is said to be, ``[V]``.
    """

    def expected(instance, alpha):
        return _differences(instance.log_p) + alpha * _differences(log_odds(instance))

    def size(instance):
        return 1 + jnp.max(jnp.abs(instance.log_p)) + 64 * jnp.max(jnp.abs(instance.log_odds)) / instance.range

    def instances(instance):
        """Through the split of a model of gap 0: the difference of two logits."""
        model, contexts, v = exact_split(instance)

        def error(alpha):
            return largest_error(_differences(steer(model, contexts, v, alpha)), expected(instance, alpha))

        return 1e-12 - jnp.max(jax.vmap(error)(jnp.asarray(GRID) / instance.range)) / size(instance)

    def autodiff(instance):
        curves = model_curves(instance, TOKENS)

        def errors(alpha):
            slopes, curvatures = (slope(f, alpha) for f in (curves, lambda a: slope(curves, a)))
            error = largest_error(_differences(slopes), _differences(log_odds(instance))) / instance.range
            return jnp.maximum(error, jnp.max(jnp.abs(_differences(curvatures))) / instance.range**2)

        return 1e-9 - jnp.max(jax.vmap(errors)(jnp.asarray(GRID[::3]) / instance.range)) / size(instance)

    def on_grid(instance, alphas, measured):
        strided = slice(None, None, 60)
        expect = jnp.moveaxis(jax.vmap(lambda alpha: expected(instance, alpha))(alphas[strided]), 0, 1)
        return 1e-8 - largest_error(_differences(measured[:, strided]), expect)

    reading = "1e-12 less the largest error of a predicted preference, relative to its size"
    return Claim(tex, instances, autodiff, on_sweep(on_grid), identities=identities, reading=reading)


_AFFINE = _preference_follows(
    r"\log\frac{\sigma_{z_p}(f_\alpha)}{\sigma_{z_n}(f_\alpha)} = \log\frac{p_j(z_p)}{p_j(z_n)} + "
    r"\alpha \left(M(z_p) - M(z_n)\right)\quad \text{for all}\ \alpha",
    symbolic.IDENTITIES["N6.preference"],
    lambda instance: instance.log_odds,
)
_BY_CONCEPTS = _preference_follows(
    r"\log\frac{\sigma_{z_p}(f_\alpha)}{\sigma_{z_n}(f_\alpha)} = \log\frac{p_j(z_p)}{p_j(z_n)} + "
    r"\alpha \left(M'(z_p) - M'(z_n)\right),\quad M'(z) = \frac{1}{|P|} \sum_{i \in P} \log p_i(z) - "
    + BY_CONCEPTS_TEX
    % r"\log p_i(z)",
    symbolic.TWINS["N6.preference"],
    lambda instance: by_concepts(instance) @ instance.log_p,
)


def answers(instance: Instance):
    """Two answers as an event ``[1, V]``: the likeliest target token in the first context, and the likeliest other one."""
    log_p, target = instance.log_p[0], instance.in_target
    good, bad = jnp.argmax(jnp.where(target, log_p, -jnp.inf)), jnp.argmax(jnp.where(target, -jnp.inf, log_p))
    tokens = np.arange(log_p.size)
    return ((tokens == good) | (tokens == bad))[None]


_UTILITY_TEX = r"\operatorname{logit}(\sigma_{z_p} + \sigma_{z_n}) = r_j + \nu_j(\alpha),\quad \nu_j(\alpha) = "

STATEMENTS = (
    Statement(
        id="N6.preference",
        title="Preference is affine for ever",
        source="N6",
        claim=_AFFINE,
        twin=_BY_CONCEPTS,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="Steering a real model makes preference saturate. The reason is not in this model but in the norm before "
        "the unembedding, as N7 shows.",
        proof=_PROOF,
    ),
    Statement(
        id="N6.utility",
        title="Utility obeys the concept's equation",
        source="N6",
        claim=reparametrised_tanh(
            _UTILITY_TEX + r"\int_0^\alpha (\mu_C - \mu_{C^\complement})(t)\, dt,"
            r"\quad C = \{z_p, z_n\}",
            answers,
            symbolic.IDENTITIES["N6.utility"],
        ),
        twin=reparametrised_tanh(
            _UTILITY_TEX + r"\int_0^\alpha (\mu'_C - \mu'_{C^\complement})(t)\, dt,\quad C = \{z_p, z_n\},"
            r"\quad \mu'\ \text{of}\ M'(z) = \frac{1}{|P|} \sum_{i \in P} \log p_i(z) - " + BY_CONCEPTS_TEX % r"\log p_i(z)",
            answers,
            symbolic.TWINS["N6.utility"],
            contrast=by_concepts,
        ),
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="Theorem 3.6 for the concept of the two answers. Where neither has an extreme log-odds utility falls at "
        "both ends.",
        proof=_PROOF,
    ),
)
