"""N24: in a log-linear family, where concepts may overlap, a steered context is another context of the family."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import symbolic
from theory._compilation import compiled_quickly
from theory.claims import largest_error, slope
from theory.loglinear import LOG_LINEAR, LogLinear, MeasuredLogLinear
from theory.statement import Claim, Statement
from ufm import difference_of_means, steer
from ufm.model import representing

_STRENGTHS = np.array([-3.0, -1.0, -0.25, 0.25, 1.0, 3.0])


def virtual(instance: LogLinear, alpha, *, with_base: bool = True):
    """log p at the coordinates that steering leads to, ``lambda_j + alpha sum_i w_i lambda_i``, ``[m, V]`` nats.

    The base is multiplied by ``1 + alpha sum_i w_i``: by 1 for weights that sum to 0.
    """
    share = 1 + alpha * jnp.sum(instance.combination) if with_base else 1.0
    return instance.log_p(instance.coordinates + alpha * instance.shift, share)


def _leads_to(tex: str, identities, *, with_base: bool) -> Claim:
    """The claim that steered log-probabilities are those of a virtual context."""

    def steered(instance):
        log_p = instance.log_p(instance.coordinates)
        model, contexts = representing(log_p), jnp.arange(log_p.shape[0])
        v = difference_of_means(model, contexts, instance.combination)
        return lambda alpha: jax.nn.log_softmax(steer(model, contexts, v, alpha))

    def scale(instance):
        return 1 + jnp.max(jnp.abs(instance.log_p(instance.coordinates))) * (1 + jnp.sum(jnp.abs(instance.combination)))

    def instances(instance):
        at = steered(instance)

        def error(alpha):
            return largest_error(at(alpha), virtual(instance, alpha, with_base=with_base))

        return 1e-11 - jnp.max(jax.vmap(error)(jnp.asarray(_STRENGTHS))) / scale(instance)

    def autodiff(instance):
        """The slope of a log-probability: what its features gain, ``phi . sum_i w_i lambda_i``, less the mean of that."""
        at, features, total = steered(instance), instance.features, jnp.sum(instance.combination)

        def error(alpha):
            gains = instance.shift @ features + (total * instance.base if with_base else 0.0)
            q = jnp.exp(virtual(instance, alpha, with_base=with_base))
            return largest_error(slope(at, alpha), gains - (q @ gains)[:, None])

        return 1e-10 - jnp.max(jax.vmap(error)(jnp.asarray([0.0, *_STRENGTHS]))) / scale(instance)

    @compiled_quickly
    def largest(instance, alphas, measured):
        expected = jax.vmap(lambda alpha: virtual(instance, alpha, with_base=with_base), out_axes=1)(alphas)
        return largest_error(jnp.exp(measured), jnp.exp(expected))

    def sweep(swept: MeasuredLogLinear):
        return 1e-9 - float(largest(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.log_probabilities)))

    reading = "1e-11 less the largest error of a log-probability, relative to the size of the logarithms"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


_TEX = (
    r"\log p(z \mid \lambda) = b(z) + \sum_k \lambda_k \varphi_k(z) - A(\lambda) \implies "
    r"\sigma(f_\alpha(c_j)) = p\Big(\cdot \mid \lambda_j + \alpha \sum_i w_i \lambda_i\Big)"
)

STATEMENTS = (
    Statement(
        id="N24",
        title="Overlapping concepts: steering leads to a virtual context",
        source="N24",
        claim=_leads_to(
            _TEX + r",\ b\ \text{replaced by}\ \Big(1 + \alpha \sum_i w_i\Big) b", symbolic.IDENTITIES["N24"], with_base=True
        ),
        twin=_leads_to(_TEX + r"\ \text{for any weights}", symbolic.TWINS["N24"], with_base=False),
        hypotheses={},
        domain=LOG_LINEAR,
        remarks="For a difference of means the weights sum to 0, and the coordinates move by alpha times the mean over P "
        "less that over N. A gap of 0 is meant. No other families are closed under steering; mixtures of concepts are not.",
        proof="proofs/N24",
    ),
)
