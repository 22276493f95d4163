"""N10: how far steered probabilities can be off if training was not perfect."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from theory._compilation import compiled_quickly
from theory.claims import GRID, ROUNDING, closed_form_curves, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen
from ufm import UFM, difference_of_means, sweep

_SIZES = np.array([1e-3, 0.3])
"""How imperfect the models are: sizes of the noise in their log-probabilities, nats."""


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """Fixed signs; instances are random enough."""
    return np.random.default_rng(10).choice([-1.0, 1.0], size=shape)


def imperfect(instance: Instance, size) -> Instance:
    """The instance whose log-probabilities a model with noise of that size has learned instead."""
    return replace(
        instance, log_p=jax.nn.log_softmax(instance.log_p + size * _noise(instance.log_p.shape)), known_peaks=None
    )


def error_bound(eta, size):
    """How far the probability of an event is off at most, with log-probabilities off by eta, at strengths of this size."""
    return jnp.tanh(eta * (1 + 2 * size) / 2)


def mirrored(instance: Instance, size) -> Instance:
    """Where the bound is attained, after P at positive strengths and elsewhere at negative ones.

    The design of the instance with another table: the target has log-odds -size after P and size elsewhere, evenly shared
    by its tokens, and so have the others. A model that has learned the table of -size is wrong by size everywhere.
    """
    target, after_p = instance.in_target, (instance.contrast > 0)[:, None]
    log_odds = size * jnp.where(target, 1.0, -1.0) * jnp.where(after_p, -1.0, 1.0)
    count = jnp.where(target, jnp.sum(target), jnp.sum(~target))
    return replace(instance, log_p=jax.nn.log_sigmoid(log_odds) - jnp.log(count), known_peaks=None)


def _seldom(instance: Instance, margin):
    """The margin of the mirrored table with one random instance in six, those of the third concept; else nothing."""
    return jnp.where(instance.target == 2, margin, jnp.inf)


def _spoiling(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    """The event nearest to even odds after every context, ``[V]``, and errors that move it, ``[m, V]``.

    They have one size. After P they favour the event, after N they do not, and after others they do.
    """
    p, contrast = np.asarray(instance.p), np.asarray(instance.contrast)
    subsets = np.array(list(product([False, True], repeat=p.shape[1])))
    event = subsets[np.argmin(np.max(np.abs(p @ subsets.T - 0.5), axis=0))]
    return event, np.where(contrast < 0, -1.0, 1.0)[:, None] * np.where(event, 1.0, -1.0)


def _spoiled(swept: Measured) -> tuple[Measured, np.ndarray]:
    """A trained model whose hidden states are moved so that the errors of P and N add up on an event, and the event."""
    assert isinstance(swept.model, UFM)
    event, noise = _spoiling(swept.instance)
    shift = 1e-3 * np.linalg.pinv(np.asarray(swept.model.W)) @ noise.T
    model = UFM(W=swept.model.W, H=swept.model.H + shift)
    contexts = jnp.arange(swept.instance.log_p.shape[0])
    v = difference_of_means(model, contexts, swept.instance.contrast)
    alphas = swept.alphas[::5]
    curves = sweep(model, contexts, v, jnp.asarray(alphas), lambda logits, _: jax.nn.log_softmax(logits))
    return replace(swept, alphas=alphas, log_probabilities=np.asarray(curves)), event


def _events(instance: Instance):
    """Single tokens and concepts, ``[V + G, V]``."""
    return jnp.concatenate([jnp.eye(instance.log_p.shape[1], dtype=bool), instance.members])


def _shares(instance: Instance, alphas, events=_events):
    """The probabilities of the events at each strength, ``[m, K, E]``."""
    return jax.nn.sigmoid(closed_form_curves(instance, events, alphas))


def _target(instance: Instance):
    return instance.in_target[None]


def _within(tex: str, bound) -> Claim:
    """The claim that the probability of no event is further off than `bound` of eta and |alpha|."""

    def slack_of(instance, other, alphas, events):
        eta = jnp.max(jnp.abs(other.log_p - instance.log_p))
        error = jnp.max(jnp.abs(_shares(other, alphas, events) - _shares(instance, alphas, events)), axis=(0, 2))
        return jnp.min(bound(eta, jnp.abs(alphas)) - error)

    def instances(instance):
        alphas = jnp.asarray(GRID) / instance.range

        def slack(size):
            # Strengths at which the mirrored table is not yet settled.
            at, to = mirrored(instance, size), mirrored(instance, -size)
            extreme = slack_of(at, to, jnp.asarray(GRID) / size, _target)
            return jnp.minimum(slack_of(instance, imperfect(instance, size), alphas, _events), _seldom(instance, extreme))

        return jnp.min(jax.vmap(slack)(jnp.asarray(_SIZES))) + ROUNDING

    def autodiff(instance):
        """To first order in the noise: the derivative of every probability against the bound's."""
        alphas, zero = jnp.asarray(GRID) / instance.range, jnp.zeros(())

        def slack(at, to, events):
            def off(size):
                return _shares(to(size), alphas, events) - _shares(at(size), alphas, events)

            change = jnp.max(jnp.abs(slope(off, zero)), axis=(0, 2))
            eta = jnp.max(jnp.abs(slope(lambda size: to(size).log_p - at(size).log_p, zero)))
            allowed = jax.vmap(lambda alpha: slope(lambda size: bound(size * eta, alpha), zero))(jnp.abs(alphas))
            return jnp.min((allowed - change) / (1 + jnp.abs(alphas)))

        of_noise = slack(lambda size: instance, lambda size: imperfect(instance, size), _events)
        extreme = slack(lambda size: mirrored(instance, size), lambda size: mirrored(instance, -size), _target)
        return jnp.minimum(of_noise, _seldom(instance, extreme)) + 1e-9

    @compiled_quickly
    def slack_on_grid(instance, alphas, perturbed, unsteered, event):
        eta = jnp.max(jnp.abs(unsteered - instance.log_p))
        expected = closed_form_curves(instance, lambda instance: event[None], alphas)[..., 0]
        return jnp.min(bound(eta, jnp.abs(alphas)) - jnp.abs(jax.nn.sigmoid(perturbed) - jax.nn.sigmoid(expected)))

    def on_sweep(swept: Measured):
        spoiled, event = _spoiled(swept)
        unsteered, curves = spoiled.log_probabilities[:, spoiled.zero], spoiled.event_log_odds(event)
        return float(slack_on_grid(swept.instance, spoiled.alphas, curves, unsteered, event)) + 1e-9

    reading = "the least slack of the bound on the error of a token's or concept's probability, with 1e-11 for rounding"
    return Claim(tex, instances, autodiff, on_sweep, (Curve(_at_strength(bound), (-32.0, 32.0)),), reading=reading)


def _at_strength(bound, size: float = 0.1):
    """The slack of `bound` for every event of an imperfect table, and for the mirrored one, as a curve of the strength."""

    def slack(instance, alpha):
        other = imperfect(instance, size)
        error = _shares(other, alpha[None])[:, 0] - _shares(instance, alpha[None])[:, 0]
        eta = jnp.max(jnp.abs(other.log_p - instance.log_p))
        allowed = bound(eta, jnp.abs(alpha))
        # The mirrored table attains the bound, which is certified there up to a tenth.
        at, to = mirrored(instance, size), mirrored(instance, -size)
        most = 1.1 * bound(size, jnp.abs(alpha))
        extreme = (_shares(to, alpha[None], _target) - _shares(at, alpha[None], _target)).ravel()
        return jnp.concatenate([(allowed - error).ravel(), (allowed + error).ravel(), most - extreme, most + extreme])

    return slack


STATEMENTS = (
    Statement(
        id="N10",
        title="Imperfect training moves the curves little",
        source="N10",
        claim=_within(
            r"\max_{j,z} \left|\log \sigma_z(f(c_j)) - \log p_j(z)\right| \le \eta \implies "
            r"\left|\hat F(\alpha) - F(\alpha)\right| \le \tanh\frac{\eta\,(1 + 2|\alpha|)}{2}\ \text{for every event}\ F",
            lambda eta, size: error_bound(eta, size),
        ),
        twin=_within(
            r"\left|\hat F(\alpha) - F(\alpha)\right| \le \tanh\frac{\eta\,(1 + |\alpha|)}{2}\ \text{for every event}\ F",
            lambda eta, size: jnp.tanh(eta * (1 + size) / 2),
        ),
        hypotheses=chosen("not-constant", "positive"),
        remarks="The log-odds of every event move by at most 2 eta (1 + 2 |alpha|), alpha counted in units of the steering "
        "vector: the error of M enters twice, by P and by N. No assumption on the corpus, and none on the optimiser.",
        proof="proofs/N10",
    ),
)
