"""N14: any direction in the span of the hidden states: what it tilts by, and its length and angles under weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import span, symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, TOKENS, exact_split, largest_error, model_curves, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Hypothesis, Statement
from theory.statements.hypotheses import chosen
from theory.statements.n3_sweet_spot import all_move_right, finite_spot
from theory.trained import IMPERFECT, Imperfect, MeasuredImperfect, cross_entropy
from theory.weightings import WEIGHTINGS
from ufm import UFM, steer
from ufm.directions import contrast_of_rows

_PROOF = "proofs/N14"


def _scale(log_p) -> Float[Array, ""]:
    return 1 + jnp.max(jnp.abs(log_p))


# --- tilting ---------------------------------------------------------------------------------------------------------

_STRENGTHS = np.array([-4.0, -1.0, -0.25, 0.25, 1.0, 4.0])


def _tilts_by(tex: str, log_odds) -> Claim:
    """The claim that steering by ``H w`` tilts the model's own probabilities by `log_odds`, a function of them and w."""

    def predicted(instance, alphas):
        m = log_odds(instance.log_q, instance.combination)
        return jax.vmap(lambda row: jax.vmap(lambda alpha: tilting.log_probabilities(row, m, alpha))(alphas))(instance.log_q)

    def steered(instance, alpha):
        contexts = jnp.arange(instance.log_q.shape[0])
        v = instance.H @ instance.combination
        return jax.nn.log_softmax(steer(instance.network, contexts, v, alpha))

    def instances(instance):
        alphas = jnp.asarray(_STRENGTHS)
        curves = jnp.moveaxis(jax.vmap(lambda alpha: steered(instance, alpha))(alphas), 0, 1)
        return 1e-11 - largest_error(jnp.exp(curves), jnp.exp(predicted(instance, alphas)))

    def autodiff(instance):
        """The slope at 0 of the model's log-probabilities tells M up to a constant."""
        slopes = slope(lambda alpha: steered(instance, alpha), jnp.zeros(()))
        m = log_odds(instance.log_q, instance.combination)
        return 1e-11 - largest_error(slopes - slopes[:, :1], jnp.broadcast_to(m - m[0], slopes.shape)) / _scale(m)

    @compiled_quickly
    def error(instance, alphas, measured):
        return largest_error(jnp.exp(measured), jnp.exp(predicted(instance, alphas)))

    def sweep(swept: MeasuredImperfect):
        return 1e-9 - float(error(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.combined)))

    reading = "1e-11 less the largest difference between a steered probability and the predicted one"
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def _of_centred(log_q, weights):
    """The combination with weights around their mean: as if what all contexts share had no say."""
    return contrast_of_rows(log_q, weights - jnp.mean(weights))


# --- values ----------------------------------------------------------------------------------------------------------


def _log_odds_of(instance: Instance, *, offset: bool):
    """``Omega_{g(z)} log(a_z / b_z)``, and the sum of the weights times ``log b_z``."""
    log_a, log_b = span.levels(instance)
    # A concept may be listed twice, with the same total.
    total = span.concept_weights(instance)[jnp.argmax(instance.members, axis=0)]
    return total * (log_a - log_b) + (jnp.sum(instance.contrast) * log_b if offset else 0)


def _values(tex: str, identities, *, offset: bool) -> Claim:
    def instances(instance):
        scale = _scale(instance.log_p) * (1 + jnp.sum(jnp.abs(instance.contrast)))
        return 1e-10 - largest_error(instance.log_odds, _log_odds_of(instance, offset=offset)) / scale

    def autodiff(instance):
        """The slope at 0 of the logits of a model of gap 0, centred, against the formula, centred."""
        model, contexts, v = exact_split(instance)
        slopes = slope(lambda alpha: steer(model, contexts, v, alpha), jnp.zeros(()))[0]
        m = _log_odds_of(instance, offset=offset)
        scale = _scale(instance.log_p) * (1 + jnp.sum(jnp.abs(instance.contrast)))
        return 1e-10 - largest_error(slopes - slopes[0], m - m[0]) / scale

    @compiled_quickly
    def error(instance, alphas, measured):
        rates = (measured[:, -1] - measured[:, 0]) / (alphas[-1] - alphas[0])
        m = _log_odds_of(instance, offset=offset)
        return largest_error(rates - rates[:, :1], jnp.broadcast_to(m - m[0], rates.shape))

    def sweep(swept: Measured):
        return 1e-9 - float(error(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.log_probabilities)))

    reading = "1e-10 less the largest error of M, relative to the size of the logarithms and of the contrast"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


# --- order -----------------------------------------------------------------------------------------------------------


def favours_the_target(instance: Instance):
    """``Omega_T > 0 >= Omega_k`` for every other concept k."""
    return (span.concept_weights(instance)[instance.target] > 1e-9) & (jnp.max(span.weights_of_others(instance)) <= 1e-12)


def _favours_it_most(instance: Instance):
    """``Omega_T > Omega_k``, which is not enough."""
    return span.concept_weights(instance)[instance.target] > jnp.max(span.weights_of_others(instance)) + 1e-9


def _ordered(tex: str, condition) -> Claim:
    """The claim that under a condition on the weights, tokens off the target peak first, with a sweet spot in between."""
    spot = all_move_right(tex, finite_spot, exists=True)

    def claimed(instance, value):
        return jnp.where(condition(instance), value, jnp.inf)

    def instances(instance):
        return claimed(instance, spot.instances(instance))

    def autodiff(instance):
        """At every strength the log-probability of every target token has the larger slope."""
        curves, target = model_curves(instance, TOKENS), instance.in_target

        def lead(t):
            slopes = slope(curves, t / instance.range) / instance.range
            first, last = jnp.where(target, slopes, jnp.inf), jnp.where(target, -jnp.inf, slopes)
            return jnp.min(jnp.min(first, axis=-1) - jnp.max(last, axis=-1))

        leads = jax.vmap(lead)(jnp.asarray([-8.0, -1.0, 0.0, 1.0, 8.0]))
        return claimed(instance, jnp.min(leads)) + ROUNDING

    @compiled_quickly
    def margin(instance, alphas, measured):
        """The strengths of the grid at which measured curves are highest."""
        tops = alphas[jnp.argmax(measured, axis=1)]
        last = jnp.max(jnp.where(instance.in_target, -jnp.inf, tops), axis=-1)
        first = jnp.min(jnp.where(instance.in_target, tops, jnp.inf), axis=-1)
        return claimed(instance, jnp.min(first - last)) + alphas[1] - alphas[0]

    def sweep(swept: Measured):
        return float(margin(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.log_probabilities)))

    reading = (
        "the least slope of a log-probability inside the sweet spot, in the claimed direction and in units of R, or"
        " the width of the spot in units of 1/R, whichever is less, with 1e-11 for rounding"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


# --- lengths ---------------------------------------------------------------------------------------------------------


def _gradients(instance: Imperfect) -> UFM:
    """The gradient of the cross-entropy by W and H, by JAX."""

    def loss(model):
        return cross_entropy(instance, jax.nn.log_softmax(model.decode(model.H.T)))

    return jax.grad(loss)(instance.network)


def _at_rest(instance: Imperfect):
    """Positive where the loss with weight decay is stationary in all of W and H, relative to what decay pulls with."""
    lost = (jnp.exp(instance.log_q) - jnp.exp(instance.log_p)).T * instance.weights
    of_w = lost @ instance.H.T + instance.decay[0] * instance.W
    of_h = instance.W.T @ lost + instance.decay[1] * instance.H
    pull = jnp.minimum(instance.decay[0], instance.decay[1]) * jnp.minimum(
        jnp.max(jnp.abs(instance.W)), jnp.max(jnp.abs(instance.H))
    )
    return 1e-6 * pull - jnp.maximum(jnp.max(jnp.abs(of_w)), jnp.max(jnp.abs(of_h)))


def share_of_decays(decay: Float[Array, " 2"]):
    """``sqrt(decay_W / decay_H)``: the more W is held down, the longer hidden states are."""
    return jnp.sqrt(decay[0] / decay[1])


def _inner_products_are(tex: str, share) -> Claim:
    """The claim that the inner products of hidden states are `share`, of the two decays, times the root of those of logits.

    In the form ``(H'H)^2 = share^2 L L'``: a matrix without negative eigenvalues has one root of that kind.
    """

    def error(instance, gram, log_q):
        centred = log_q - jnp.mean(log_q, axis=-1, keepdims=True)
        expected = share(instance.decay) ** 2 * centred @ centred.T
        return largest_error(gram @ gram, expected) / jnp.max(jnp.abs(expected))

    def instances(instance):
        # Random models are at rest to rounding of p, which weight decay divides by.
        slack = 1e-9 + 1e-13 / jnp.min(instance.decay)
        return slack - error(instance, instance.H.T @ instance.H, instance.log_q)

    def autodiff(instance):
        """The margin with H from its gradient, which is ``-decay_H H`` at rest."""
        gram = -instance.H.T @ _gradients(instance).H / instance.decay[1]
        slack = 1e-9 + 1e-13 / jnp.min(instance.decay)
        return slack - error(instance, (gram + gram.T) / 2, instance.log_q)

    @compiled_quickly
    def measured_error(instance, log_q):
        return error(instance, instance.H.T @ instance.H, log_q)

    def sweep(swept: MeasuredImperfect):
        unsteered = swept.log_probabilities[:, np.flatnonzero(swept.alphas == 0)[0]]
        return 1e-6 - float(measured_error(swept.instance, unsteered))

    reading = (
        "1e-9, and rounding that a small weight decay magnifies, less the largest error of the matrix of squared "
        "inner products, relative to its largest entry"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


ZERO_SUM = {
    "zero-sum": Hypothesis(
        "the weights sum to 0",
        lambda instance: 1e-12 * (1 + jnp.sum(jnp.abs(instance.contrast))) - jnp.abs(jnp.sum(instance.contrast)),
    )
}
_ORDER_TEX = (
    r"%s \implies \alpha_{j,z'} < \alpha_{j,z}\ (z \in T,\ z' \notin T),\ \text{and every token moves the right way between}"
)
_LENGTHS_TEX = r"H^\top H = %s (\hat L \hat L^\top)^{1/2},\quad \hat L_{jz} = \log q_j(z) - \tfrac1V \sum_{z'} \log q_j(z')"

STATEMENTS = (
    Statement(
        id="N14.tilting",
        title="Any combination of hidden states tilts by the same combination of logarithms",
        source="N14",
        claim=_tilts_by(
            r"v = \sum_j w_j h_j \implies \sigma_z(f_\alpha(c_j)) \propto q_j(z)\, e^{\alpha M_v(z)},\quad "
            r"M_v = \sum_j w_j \log q_j",
            lambda log_q, weights: contrast_of_rows(log_q, weights),
        ),
        twin=_tilts_by(
            r"M_v = \sum_j (w_j - \bar w) \log q_j,\quad \bar w\ \text{the mean of the weights}",
            _of_centred,
        ),
        hypotheses={},
        domain=IMPERFECT,
        remarks="No condition on the weights, the model or its training. With gap 0, q is p: then all that is said of the "
        "log-odds M without assumption 1 is true of M_v.",
        proof=_PROOF,
    ),
    Statement(
        id="N14.values",
        title="Under assumption 1 a direction is one number for each concept",
        source="N14",
        claim=_values(
            r"M_v(z) = \Omega_{g(z)} \log\frac{a_z}{b_z} + \Big(\sum_j w_j\Big) \log b_z,\quad "
            r"\Omega_k = \sum_{j \in k} w_j",
            symbolic.IDENTITIES["N14.values"],
            offset=True,
        ),
        twin=_values(
            r"M_v(z) = \Omega_{g(z)} \log\frac{a_z}{b_z}\quad \text{for any weights}",
            symbolic.TWINS["N14.values"],
            offset=False,
        ),
        hypotheses=chosen("positive", "A1"),
        domain=WEIGHTINGS,
        remarks="Lemma B.4 is the case of a difference of means: Omega is 1 on the target, -q_k/q on others.",
        proof=_PROOF,
    ),
    Statement(
        id="N14.order",
        title="Which directions steer to a concept",
        source="N14",
        claim=_ordered(
            _ORDER_TEX % r"\Omega_T > 0 \ge \Omega_k\ \text{for all}\ k \ne T", lambda instance: favours_the_target(instance)
        ),
        twin=_ordered(_ORDER_TEX % r"\Omega_T > \Omega_k\ \text{for all}\ k \ne T", _favours_it_most),
        hypotheses={**chosen("A2", "not-constant", "positive", "A1"), **ZERO_SUM},
        domain=WEIGHTINGS,
        remarks="The exact condition for one table is that M_v is larger on the target than off it; it holds on every table "
        "of assumption 1 if and only if the weights are like this.",
        proof=_PROOF,
    ),
    Statement(
        id="N14.lengths",
        title="Weight decay fixes lengths and angles",
        source="N14",
        claim=_inner_products_are(_LENGTHS_TEX % r"\sqrt{\lambda_W / \lambda_H}", lambda decay: share_of_decays(decay)),
        twin=_inner_products_are(_LENGTHS_TEX % "", lambda decay: jnp.ones(())),
        hypotheses={
            "at-rest": Hypothesis("training with weight decay of W and of H is at rest", _at_rest),
        },
        domain=IMPERFECT,
        remarks="An identity at every strength of the decay and every width, in the model's own probabilities; as the decay "
        "goes to 0 these become the corpus's. Lengths and cosines of steering vectors follow: |H w|^2 = w' H'H w.",
        proof=_PROOF,
    ),
)
