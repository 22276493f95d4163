"""Lemmas B.2 to B.5 of S: what steering does to logits and probabilities, the signs of the log-odds, the derivative."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import (
    GRID,
    TOKENS,
    closed_form_curves,
    exact_split,
    largest_error,
    least,
    model_curves,
    on_sweep,
    slope,
)
from theory.instance import Instance, Measured
from theory.statement import Claim, Statement
from theory.statements.hypotheses import chosen
from ufm import logits, steer, sweep
from ufm.model import UFM

_PROOF = "proofs/lemmas-B"


def _scale(instance: Instance):
    return 1 + jnp.max(jnp.abs(instance.log_p))


# --- B.2: logits -----------------------------------------------------------------------------------------------------


def by_concepts(instance: Instance):
    """The contrast with every concept of N counted once, wrongly: right where N has as many contexts of each, ``[m]``."""
    negative = instance.contrast < 0
    same = instance.concept == instance.concept[:, None]
    alike = jnp.sum(same & negative, axis=-1)
    shares = jnp.where(negative, 1 / jnp.maximum(alike, 1), 0)
    return jnp.where(negative, -shares / jnp.sum(shares), instance.contrast)


BY_CONCEPTS_TEX = (
    r"\frac{1}{n} \sum_{k = 1}^{n} \frac{1}{|N_k|} \sum_{i \in N_k} %s,\quad N_1, \dots, N_n\ \text{the concepts of}\ N"
)
"""The mean over N with every concept counted once, of what is put in."""


def _logits_move_by(tex: str, identities, contrast_of) -> Claim:
    """The claim that steered logits are the unsteered ones plus alpha times their sum with the weights of a contrast."""

    def error(instance, model, contexts, v, alphas):
        unsteered = model.decode(model.embed(contexts))
        steered = jax.vmap(lambda alpha: steer(model, contexts, v, alpha))(alphas)
        predicted = unsteered + alphas[:, None, None] * (contrast_of(instance) @ unsteered)
        return largest_error(steered, predicted) / (_scale(instance) * (1 + jnp.max(jnp.abs(alphas))))

    def instances(instance):
        model, contexts, v = exact_split(instance)
        return 1e-12 - error(instance, model, contexts, v, jnp.asarray(GRID))

    def autodiff(instance):
        model, contexts, v = exact_split(instance)
        unsteered = model.decode(model.embed(contexts))
        slopes = slope(lambda alpha: steer(model, contexts, v, alpha), jnp.ones(()))
        return 1e-12 - largest_error(slopes, contrast_of(instance) @ unsteered) / _scale(instance)

    @compiled_quickly
    def largest(model, instance, v, alphas):
        unsteered = logits(model)
        steered = sweep(model, jnp.arange(unsteered.shape[0]), v, alphas, lambda row, _: row)
        return largest_error(steered, unsteered[:, None] + alphas[:, None] * (contrast_of(instance) @ unsteered))

    def measured(swept: Measured):
        assert isinstance(swept.model, UFM)
        return 1e-10 - float(largest(swept.model, swept.instance, swept.v, jnp.asarray(swept.alphas[::50])))

    reading = "1e-12 less the largest error of a steered logit, relative to the size of the logits and to 1 + |α|"
    return Claim(tex, instances, autodiff, measured, identities=identities, reading=reading)


_B2 = _logits_move_by(
    r"f_\alpha(c_j) = \ell_j + \alpha \left(\frac{1}{|P|}\sum_{i \in P} \ell_i - \frac{1}{|N|}\sum_{i \in N} \ell_i\right),"
    r"\quad \ell_j = W h_j",
    symbolic.IDENTITIES["lemma-B.2"],
    lambda instance: instance.contrast,
)
_B2_TWIN = _logits_move_by(
    r"f_\alpha(c_j) = \ell_j + \alpha \Big(\frac{1}{|P|}\sum_{i \in P} \ell_i - " + BY_CONCEPTS_TEX % r"\ell_i\Big)",
    symbolic.TWINS["lemma-B.2"],
    by_concepts,
)

# --- B.3: tilting ----------------------------------------------------------------------------------------------------


def _tilts_by(tex: str, identities, log_odds) -> Claim:
    """The claim that steered probabilities are the unsteered ones tilted by `log_odds` of the instance."""

    def predicted(instance, alphas):
        m = log_odds(instance)
        return jax.vmap(lambda row: jax.vmap(lambda alpha: tilting.log_probabilities(row, m, alpha))(alphas))(instance.log_p)

    def instances(instance):
        alphas = jnp.asarray(GRID) / instance.range
        curves = jnp.moveaxis(jax.vmap(model_curves(instance, TOKENS))(alphas), 0, 1)
        return 1e-10 - largest_error(jnp.exp(curves), jnp.exp(predicted(instance, alphas)))

    def autodiff(instance):
        """The slope at 0 of the model's log-probabilities tells M up to a constant."""
        slopes = slope(model_curves(instance, TOKENS), jnp.zeros(()))
        m = log_odds(instance)
        return 1e-10 - largest_error(slopes - slopes[:, :1], jnp.broadcast_to(m - m[0], slopes.shape)) / _scale(instance)

    sweep = on_sweep(
        lambda instance, alphas, measured: 1e-9 - largest_error(jnp.exp(measured), jnp.exp(predicted(instance, alphas)))
    )
    reading = "1e-10 less the largest difference between a steered probability and its tilt"
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


_B3 = _tilts_by(
    r"\sigma_z(f_\alpha(c_j)) = \frac{p_j(z)\, e^{\alpha M(z)}}{\sum_{z'} p_j(z')\, e^{\alpha M(z')}}",
    symbolic.IDENTITIES["lemma-B.3"],
    lambda instance: instance.log_odds,
)
_B3_TWIN = _tilts_by(
    r"\sigma_z(f_\alpha(c_j)) = \frac{p_j(z)\, e^{\alpha M'(z)}}{\sum_{z'} p_j(z')\, e^{\alpha M'(z')}},"
    r"\quad M'(z) = \frac{1}{|P|} \sum_{i \in P} \log p_i(z) - " + BY_CONCEPTS_TEX % r"\log p_i(z)",
    symbolic.TWINS["lemma-B.3"],
    lambda instance: by_concepts(instance) @ instance.log_p,
)

# --- B.4: signs ------------------------------------------------------------------------------------------------------


def _log_odds_of(instance: Instance, by_share: bool):
    """The formula of lemma B.4 from the table: log a_z, log b_z as means over the contexts that show them."""
    own = instance.inside.astype(instance.log_p.dtype)
    # No context of P and N shows the a of a concept that has none.
    log_a = jnp.sum(own * instance.log_p, axis=0) / jnp.maximum(jnp.sum(own, axis=0), 1)
    log_b = jnp.sum((1 - own) * instance.log_p, axis=0) / jnp.sum(1 - own, axis=0)
    share = jnp.sum(jnp.where(instance.contrast < 0, -instance.contrast, 0)[:, None] * own, axis=0) if by_share else 1.0
    return jnp.where(instance.in_target, log_a - log_b, -share * (log_a - log_b))


def _signs_and_values(tex: str, identities, by_share: bool) -> Claim:
    def instances(instance):
        error = largest_error(instance.log_odds, _log_odds_of(instance, by_share)) / _scale(instance)
        positive = least(instance.log_odds, instance.in_target)
        negative = least(-instance.log_odds, ~instance.in_target)
        return jnp.minimum(1e-12 - error, jnp.minimum(positive, negative + 1e-12 * _scale(instance)))

    def autodiff(instance):
        """The slope at 0 of the logits of the model, centred, against the formula, centred."""
        model, contexts, v = exact_split(instance)
        slopes = slope(lambda alpha: steer(model, contexts, v, alpha), jnp.zeros(()))[0]
        m = _log_odds_of(instance, by_share)
        return 1e-12 - largest_error(slopes - slopes[0], m - m[0]) / _scale(instance)

    @compiled_quickly
    def error(instance, alphas, measured):
        rates = (measured[:, -1] - measured[:, 0]) / (alphas[-1] - alphas[0])
        m = _log_odds_of(instance, by_share)
        return largest_error(rates - rates[:, :1], jnp.broadcast_to(m - m[0], rates.shape))

    def sweep(swept):
        return 1e-9 - float(error(swept.instance, jnp.asarray(swept.alphas), jnp.asarray(swept.log_probabilities)))

    reading = (
        "the least M of a target token, the least −M of any other, or 1e-12 less the relative error of the closed "
        "form of M, whichever is least"
    )
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


_B4 = _signs_and_values(
    r"z \in T \iff M(z) > 0;\quad M(z) = \log\frac{a_z}{b_z}\ (z \in T),"
    r"\quad M(z) = -\frac{q_z}{q} \log\frac{a_z}{b_z}\ (z \notin T)",
    symbolic.IDENTITIES["lemma-B.4"],
    by_share=True,
)
_B4_TWIN = _signs_and_values(
    r"M(z) = \log\frac{a_z}{b_z}\ (z \in T),\quad M(z) = -\log\frac{a_z}{b_z}\ (z \notin T)",
    symbolic.TWINS["lemma-B.4"],
    by_share=False,
)

# --- B.5: derivative -------------------------------------------------------------------------------------------------


def _differentiates_to(tex: str, identities, log_odds) -> Claim:
    """The claim that ``sigma_z (m(z) - E_alpha[m])`` is the derivative: over each panel it adds up to the increase.

    Args:
        tex: the claim.
        identities: the same, symbolic.
        log_odds: of an instance, what m is said to be, ``[V]``.
    """
    points, weights = np.polynomial.legendre.leggauss(12)
    edges = np.linspace(-8, 8, 9)
    shares = (points + 1) / 2

    def derivative(instance, alpha):
        m = log_odds(instance)

        def context(log_p):
            q = jnp.exp(tilting.log_probabilities(log_p, instance.log_odds, alpha))
            return q * (m - jnp.dot(q, m))

        return jax.vmap(context)(instance.log_p)

    def panel_sums(instance, grid):
        width = jnp.diff(grid)
        at = grid[:-1, None] + width[:, None] * shares
        values = jax.vmap(jax.vmap(lambda alpha: derivative(instance, alpha)))(at)
        return jnp.einsum("kn,knjz->jkz", width[:, None] * weights / 2, values)

    def instances(instance):
        grid = jnp.asarray(edges) / instance.range
        curves = jnp.exp(closed_form_curves(instance, TOKENS, grid))
        return 1e-10 - largest_error(jnp.diff(curves, axis=1), panel_sums(instance, grid))

    def autodiff(instance):
        curves = model_curves(instance, TOKENS)

        def error(alpha):
            slopes = slope(lambda a: jnp.exp(curves(a)), alpha)
            return largest_error(slopes, derivative(instance, alpha)) / instance.range

        return 1e-10 - jnp.max(jax.vmap(error)(jnp.asarray(GRID) / instance.range))

    def on_grid(instance, alphas, measured):
        middle = alphas.shape[0] // 2
        strided = slice(middle - 50, middle + 51, 5)
        return 1e-9 - largest_error(jnp.diff(jnp.exp(measured[:, strided]), axis=1), panel_sums(instance, alphas[strided]))

    reading = (
        "1e-10 less the largest difference between the rise of a probability over a panel of strengths and the "
        "integral of its derivative"
    )
    return Claim(tex, instances, autodiff, on_sweep(on_grid), identities=identities, reading=reading)


_B5 = _differentiates_to(
    r"\frac{d}{d\alpha} \sigma_z(f_\alpha(c_j)) = \sigma_z(f_\alpha(c_j)) \left(M(z) - \mathbb{E}_\alpha[M]\right)",
    symbolic.IDENTITIES["lemma-B.5"],
    lambda instance: instance.log_odds,
)
_B5_TWIN = _differentiates_to(
    r"\frac{d}{d\alpha} \sigma_z(f_\alpha(c_j)) = \sigma_z(f_\alpha(c_j)) \left(M'(z) - \mathbb{E}_\alpha[M']\right),"
    r"\quad M'(z) = \frac{1}{|P|} \sum_{i \in P} \log p_i(z) - " + BY_CONCEPTS_TEX % r"\log p_i(z)",
    symbolic.TWINS["lemma-B.5"],
    lambda instance: by_concepts(instance) @ instance.log_p,
)

STATEMENTS = (
    Statement(
        id="lemma-B.2",
        title="Steering moves logits along a line",
        source="S, lemma B.2",
        claim=_B2,
        twin=_B2_TWIN,
        hypotheses=chosen("positive"),
        remarks="True of any W and H, trained or not. Contexts of N count alike, and not concepts, as the twin has it.",
        proof=_PROOF,
    ),
    Statement(
        id="lemma-B.3",
        title="Steering is tilting",
        source="S, lemma B.3",
        claim=_B3,
        twin=_B3_TWIN,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="A constant added to the logits of a context drops out of the softmax, and out of M up to a constant.",
        proof=_PROOF,
    ),
    Statement(
        id="lemma-B.4",
        title="Log-odds are positive on the target only",
        source="S, lemma B.4",
        claim=_B4,
        twin=_B4_TWIN,
        hypotheses=chosen("A2", "positive", "A1"),
        remarks="q_z of the q negatives share z's concept. Tokens of concepts without negatives have log-odds 0. Where only "
        "b exists, the signs remain and the values are means of log a_{i,z} over P or N.",
        proof=_PROOF,
    ),
    Statement(
        id="lemma-B.5",
        title="The derivative of a steered probability",
        source="S, lemma B.5",
        claim=_B5,
        twin=_B5_TWIN,
        hypotheses=chosen("A2", "not-constant", "positive"),
        proof=_PROOF,
    ),
)
