"""N22: of three tokens steered before a norm none has more than two bumps, with a bias or without. A workbench for more."""

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from theory import arc
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, slope
from theory.norms import WIDTH, MeasuredNorm, NormInstance, assemble, kinds
from theory.statement import Claim, Domain, Margin, Statement
from theory.statements.n7_norm import NOT_PARALLEL, size_of
from ufm import NormalisedUFM, contrastive, difference_of_means, fit, from_table, init_normalised
from ufm import contrast as contrast_of
from ufm._check import require

_ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 130)[1:-1]


def alternation(slopes: Float[Array, "K V"], bumps: int) -> Float[Array, " V"]:
    """How clearly curves with these slopes have so many bumps, ``[V]``: positive if they do on this grid.

    It is the largest s for which there are 2 `bumps` points in order at which the slope is above s and below -s in turn.
    Continuous in the slopes, so that an attack can follow its gradient.
    """
    best = jnp.full(slopes.shape, jnp.inf)
    for _ in range(bumps):
        for sign in (1, -1):
            best = jax.lax.cummax(jnp.minimum(best, sign * slopes), axis=0)
    return best[-1]


def at_most(bumps: int) -> Margin:
    """The margin of the claim that no token has more bumps than that on the arc, of a `NormInstance` of any vocabulary.

    Raises:
        ValueError: a negative number of bumps.
    """
    require(bumps >= 0, "bumps", "a number of at least 0", bumps)

    def margin(instance):
        path, (size, condition) = instance.arc, size_of(instance)
        slopes = jax.vmap(lambda theta: arc.slopes(path, theta))(jnp.asarray(_ANGLES)) / (size * condition)
        return ROUNDING - jnp.max(alternation(slopes, bumps + 1))

    return margin


def _sample(tokens: int, key: jax.Array, families: Sequence[str] = ()) -> tuple[tuple[()], NormInstance]:
    """A sample of `theory.norms.sample`; in half of them, all tokens are nearly on a line across v, on both sides of one.

    Those are where a token is beaten by one neighbour, then by another, and then by the first again.
    """
    del families
    d = WIDTH
    lengths = [5, tokens * d, d, d, d, d, tokens]
    u = jax.random.uniform(key, (sum(lengths),), minval=jnp.finfo(float).tiny)
    levels, *normal = jnp.split(u, np.cumsum(lengths)[:-1])
    of_w, of_gamma, of_bias, of_h, of_v, of_line = map(ndtri, normal)
    gamma, v, scale = 1 + 0.3 * of_gamma, of_v, 10 ** (-1 + 1.7 * levels[1])
    across = of_h - (of_h @ v) / (v @ v) * v
    line = across / (jnp.linalg.norm(across) * gamma)
    along_line = jnp.where(jnp.arange(tokens) == 1, 0.5, 3 * of_line)[:, None] * line
    apart = of_w.reshape(tokens, d)
    near_line = along_line + 10 ** (-3 * levels[3]) * apart
    return (), NormInstance(
        W=scale * jnp.where(levels[4] < 0.5, near_line, apart).at[0].set(0.0),
        gamma=gamma,
        bias=jnp.where(levels[2] < 0.5, 0.0, 0.3 * of_bias),
        h=10 ** (-2 + 2 * levels[0]) * across + 2 * (levels[2] - 0.5) * v,
        v=v,
    )


def two_bumps() -> NormInstance:
    """Three tokens, of which the first has two bumps: its log-odds against both others is cos(theta) times 1 and -4."""
    h, v = jnp.asarray([1.0, 0.0, -1.0]), jnp.asarray([1.0, -2.0, 1.0])
    W = jnp.asarray([0.0, 1.0, -4.0])[:, None] * h / jnp.sqrt(6.0)
    return NormInstance(W, jnp.ones(3), jnp.zeros(3), h, v)


def _measured(seed: int = 0) -> list[MeasuredNorm]:
    """Sweeps of a trained model of three tokens, and of the decoder of `two_bumps`."""
    rows = np.array([[0.8, 0.15, 0.05], [0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.05, 0.15, 0.8]])
    corpus = from_table(rows, [[0], [1], [2]], [0, 0, 1, 2])
    start = init_normalised(jax.random.key(seed), corpus, 4)
    model = fit(corpus, start=start, tolerance=1e-8, max_steps=2000).model
    assert isinstance(model, NormalisedUFM)
    weights = contrast_of(corpus.n_contexts, *contrastive(corpus, target=0, opposite=1))
    v = difference_of_means(model, jnp.arange(corpus.n_contexts), weights)
    trained = [NormInstance(model.W, model.gamma, jnp.zeros(4), model.H[:, j], v) for j in range(4)]
    return [_swept(instance) for instance in (*trained, two_bumps())]


def _swept(instance: NormInstance) -> MeasuredNorm:
    """A sweep even in the angle."""
    alphas = np.asarray(arc.alpha_of_theta(instance.arc, jnp.asarray(_ANGLES)))
    model = NormalisedUFM(instance.W, instance.h[:, None], instance.gamma)
    return MeasuredNorm(instance, alphas, np.asarray(model.decode(instance.h + alphas[:, None] * instance.v)))


@cache
def arcs_of(tokens: int) -> Domain:
    """Random decoders of so many tokens: where conjectures about bumps are attacked.

    Raises:
        ValueError: fewer than two tokens.
    """
    require(tokens >= 2, "tokens", "at least two", tokens)

    def sample(key: jax.Array, families: Sequence[str] = ()) -> tuple[tuple[()], NormInstance]:
        return _sample(tokens, key, families)

    return Domain(f"norms, {tokens} tokens", sample, assemble, measured=_measured, kind=NormInstance)


def _no_more_than(tex: str, bumps: int) -> Claim:
    """The claim that no token has more bumps than that."""
    margin = at_most(bumps)

    def instances(instance):
        return jnp.minimum(*[margin(other) for other in kinds(instance)])

    def autodiff(instance):
        """Slopes of log-odds by JAX, through the norm."""

        def worst(instance):
            path, (size, condition) = instance.arc, size_of(instance)

            def log_odds(theta):
                log_q = jax.nn.log_softmax(instance.decode(arc.alpha_of_theta(path, theta)))
                others = jnp.where(jnp.eye(log_q.size, dtype=bool), -jnp.inf, log_q)
                return log_q - jax.nn.logsumexp(others, axis=1)

            slopes = jax.vmap(lambda theta: slope(log_odds, theta))(jnp.asarray(_ANGLES)) / (size * condition**2)
            return 1e-9 - jnp.max(alternation(slopes, bumps + 1))

        return jnp.minimum(*[worst(other) for other in kinds(instance)])

    @compiled_quickly
    def on_grid(log_q):
        return -jnp.max(alternation(jnp.diff(log_q, axis=0), bumps + 1))

    def sweep(swept: MeasuredNorm):
        return float(on_grid(jnp.asarray(swept.log_probabilities))) + 1e-9

    reading = (
        "by what slope along the arc, relative to the size of the logits, every token stays clear of more bumps than that, "
        "with 1e-11 for rounding"
    )
    return Claim(tex, instances, autodiff, sweep, reading=reading)


_TEX = r"\text{among three tokens each has at most %s on}\ (-\pi/2, \pi/2)"

STATEMENTS = (
    Statement(
        id="N22",
        title="Three tokens: at most two bumps on the arc",
        source="N22",
        claim=_no_more_than(_TEX % r"two bumps", 2),
        twin=_no_more_than(_TEX % r"one bump", 1),
        hypotheses=NOT_PARALLEL,
        remarks="With a bias too. Two are attained. That V tokens have at most V - 1 is a conjecture.",
        domain=arcs_of(3),
        proof="proofs/N22",
        figure="arc",
    ),
)
