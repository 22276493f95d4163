"""N21: texts of many steps. What one step gains is passed on and adds up, and so does its cost."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from theory import chains, examples
from theory._compilation import compiled_quickly
from theory.claims import GRID, exact_split, slope
from theory.instance import Instance, Measured, make_instance
from theory.random_instances import FAMILIES
from theory.statement import TABLES, Claim, Curve, Domain, Hypothesis, Statement
from theory.statements.hypotheses import chosen
from ufm import contrastive, from_table, steer, uniform

_STEPS = 12
"""How many tokens are written where the steps are followed one by one."""


def next_context(instance: Instance) -> Int[Array, " V"]:
    """The context that each token leads to: the first of its concept from its own place on, in a circle."""
    m, v = instance.log_p.shape
    of_token = jnp.argmax(instance.members, axis=0)
    behind = (jnp.arange(m) - jnp.arange(v)[:, None]) % m
    return jnp.argmin(jnp.where(instance.concept == of_token[:, None], behind, m), axis=1)


def chain(instance: Instance, log_p: Float[Array, "m V"]) -> Float[Array, "V V"]:
    """The Markov chain on tokens that a table writes."""
    return log_p[next_context(instance)]


def _measured(seed: int = 0) -> list[Measured]:
    """Trained models of corpora in which each token is a context, for the noises of the figures."""
    cases = {}
    for epsilon in (0.3, 0.1, 0.02):
        corpus = uniform(epsilon=epsilon, length=None, contexts_per_concept=3)
        instance = make_instance(corpus, *contrastive(corpus, target=0, opposite=1), target=0)
        cases[f"epsilon = {epsilon}"] = examples.Case(corpus, instance)
    rows = np.random.default_rng(0).dirichlet(np.full(9, 0.7), size=9) + 1e-3
    free = from_table(rows / rows.sum(axis=1, keepdims=True), corpus.concepts, np.repeat(np.arange(3), 3))
    cases["any table"] = examples.Case(free, make_instance(free, [0, 1], [3, 5], target=0))
    return [examples.measure(cases[name], trained.model) for name, trained in examples.train(cases, jax.random.key(seed))]


CHAINS: Domain = replace(TABLES, name="chains", families=FAMILIES, measured=_measured)
"""Next-token tables that write texts: each token leads to a context of its concept."""


def _mixes(instance: Instance):
    q = jnp.exp(chain(instance, instance.log_p))
    return jnp.sum(jnp.min(q, axis=0)) - 1e-3


_MIXES = Hypothesis(
    "what comes next is not all but certain to depend on the last token: next-token distributions have at least 0.001 of "
    "probability in common. Any positive number will do; rounding grows with its inverse",
    _mixes,
)


def _lumps(instance: Instance):
    on, off = chains.two_shares(chain(instance, instance.log_p), instance.in_target)
    return 1e-9 - jnp.maximum(on[1] - on[0], off[1] - off[0])


_LUMPS = Hypothesis(
    "the probability that the next token is of the target has one value after tokens of the target and one after others",
    _lumps,
)


def _share_curves(instance: Instance, alpha, start) -> Float[Array, " T"]:
    """Shares after each step, in closed form."""
    log_q = chains.steered(chain(instance, instance.log_p), instance.log_odds, alpha)
    return chains.shares(log_q, instance.in_target, start, _STEPS)


def _model_curves(instance: Instance, alpha, start) -> Float[Array, " T"]:
    """The curves, through a split model of gap 0."""
    model, contexts, v = exact_split(instance)
    log_q = jax.nn.log_softmax(steer(model, contexts, v, alpha))
    return chains.shares(chain(instance, log_q), instance.in_target, start, _STEPS)


_STEP = 1e-4
"""For differences of fourth order, in units of 1 / R and of how fast the chain mixes."""


def _difference(curves, step):
    """A derivative at 0, with an error of fourth order in the step."""
    near, far = curves(step) - curves(-step), curves(2 * step) - curves(-2 * step)
    return (8 * near - far) / (12 * step)


def _responds(tex: str, error_of) -> Claim:
    """The claim that shares respond to the strength as a closed form says.

    Args:
        tex: the claim.
        error_of: from the instance and a function that gives the response for a start, the largest error in units of R.
    """

    def instances(instance):
        step = _STEP / instance.range

        def measured(start):
            return _difference(lambda alpha: _share_curves(instance, alpha, start), step)

        return 1e-8 - error_of(instance, measured)

    def autodiff(instance):
        def measured(start):
            return slope(lambda alpha: _model_curves(instance, alpha, start), jnp.zeros(()))

        return 1e-9 - error_of(instance, measured)

    @compiled_quickly
    def on_model(instance, model, v):
        """The chain that the trained model writes itself."""

        def curves(alpha, start):
            log_q = jax.nn.log_softmax(steer(model, jnp.arange(instance.log_p.shape[0]), v, alpha))
            return chains.shares(chain(instance, log_q), instance.in_target, start, _STEPS)

        def measured(start):
            return _difference(lambda alpha: curves(alpha, start), _STEP / instance.range)

        return 1e-6 - error_of(instance, measured)

    def sweep(swept: Measured):
        return float(on_model(swept.instance, swept.model, swept.v))

    reading = "1e-8 less the largest error of the response of a share of tokens, in units of R"
    return Claim(tex, instances, autodiff, sweep, reading=reading)


def _of_any_chain(instance: Instance, measured) -> Float[Array, ""]:
    log_q, m = chain(instance, instance.log_p), instance.log_odds
    first = jnp.zeros(m.shape).at[0].set(1.0)
    by_step = jnp.abs(measured(first) - chains.response(log_q, m, instance.in_target, first, _STEPS))
    # From the long run's start, what is missing after t steps is passed on by the chain: the rest of the series.
    nu, q = chains.stationary(log_q), jnp.exp(log_q)
    rest = jnp.linalg.matrix_power(q, _STEPS) @ jnp.linalg.solve(
        jnp.eye(m.size) - q + nu, instance.in_target.astype(m.dtype)
    )
    covariance = jnp.einsum("z,zy,zy,y->", nu, q, m - (q @ m)[:, None], rest)
    total = chains.long_run_response(log_q, m, instance.in_target)
    long_run = jnp.abs(measured(nu)[-1] + covariance - total) / (1 + jnp.abs(total) / instance.range)
    return jnp.maximum(jnp.max(by_step), long_run) / instance.range


def _eigenvalue(instance: Instance) -> Float[Array, ""]:
    """lambda = a - b."""
    on, off = chains.two_shares(chain(instance, instance.log_p), instance.in_target)
    return jnp.mean(on) - jnp.mean(off)


def _amplified(instance: Instance, measured) -> Float[Array, ""]:
    """The error, from a stationary start, of the first step's response times the sum of powers of lambda."""
    nu, m = chains.stationary(chain(instance, instance.log_p)), instance.log_odds
    first = chains.response(chain(instance, instance.log_p), m, instance.in_target, nu, 1)[0]
    claimed = first * chains.amplification(_eigenvalue(instance), jnp.arange(1, _STEPS + 1))
    return jnp.max(jnp.abs(measured(nu) - claimed)) / instance.range


def _from_every_start(instance: Instance, measured) -> Float[Array, ""]:
    """The wrong start: after the text's first token, whatever it is, in place of a typical one."""
    first, m = jnp.zeros(instance.log_odds.shape).at[0].set(1.0), instance.log_odds
    response = chains.response(chain(instance, instance.log_p), m, instance.in_target, first, 1)[0]
    claimed = response * chains.amplification(_eigenvalue(instance), jnp.arange(1, _STEPS + 1))
    return jnp.max(jnp.abs(measured(first) - claimed)) / instance.range


_ANY = _responds(
    r"\left.\tfrac{d}{d\alpha} F_T^{(t)}\right|_0 = \sum_{k < t} \mathbb{E}\left[\operatorname{Cov}(Q^k 1_T, M)\right]"
    r"\ \text{at token}\ t - k - 1,\ \text{in the long run}\ \textstyle\sum_z \nu_z \operatorname{Cov}_z(Z 1_T, M),\ "
    r"Z = (I - Q + 1 \nu)^{-1}",
    _of_any_chain,
)
_ANY_TWIN = _responds(
    r"\left.\tfrac{d}{d\alpha} F_T^{(t)}\right|_0 = \sum_{k < t} \lambda^k \left.\tfrac{d}{d\alpha} F_T^{(1)}\right|_0,"
    r"\quad \lambda = Q(T \mid T) - Q(T \mid T^\complement)\ \text{on average, for every chain from its stationary start}",
    _amplified,
)
_LUMPED_TEX = (
    r"\left.\tfrac{d}{d\alpha} F_T^{(t)}\right|_0 = \frac{1 - \lambda^t}{1 - \lambda}"
    r"\left.\tfrac{d}{d\alpha} F_T^{(1)}\right|_0,\quad \lambda = Q(T \mid T) - Q(T \mid T^\complement)"
)
_LUMPED = _responds(_LUMPED_TEX + r",\ \text{from a stationary start}", _amplified)
_LUMPED_TWIN = _responds(_LUMPED_TEX + r",\ \text{from every start}", _from_every_start)

# --- the cost --------------------------------------------------------------------------------------------------------

_SHORT = 3
"""Tokens of the texts that are listed one by one."""

_TILTS = GRID[np.abs(GRID) <= 8]


def _listed(log_q: Float[Array, "V V"]) -> Float[Array, "V n"]:
    """The log-probability of every text of `_SHORT` tokens after each token."""
    first = log_q[:, :, None] + log_q[None]
    return (first[..., None] + log_q[None, None]).reshape(log_q.shape[0], -1)


def _costs(log_q: Float[Array, "V V"], m: Float[Array, " V"], alpha) -> Float[Array, " V"]:
    """KL of whole texts in closed form, after each token."""
    starts = jnp.eye(m.size)
    return jax.vmap(lambda start: chains.sequence_divergence(log_q, m, alpha, start, _SHORT))(starts)


def _total(log_q: Float[Array, "V V"], after: Float[Array, "V V"]) -> Float[Array, " V"]:
    """KL of whole texts from one chain to another as the sum over the steps, after each token."""
    q = jnp.exp(log_q)
    step = jnp.sum(q * (log_q - after), axis=1)
    return sum(jnp.linalg.matrix_power(q, k) @ step for k in range(_SHORT))


def _curvature(instance: Instance, alpha) -> Float[Array, " m"]:
    """The second derivative of the cost by the strength: variances, each carried along the steps before it."""
    m, p, reached = instance.log_odds, instance.p, next_context(instance)
    tilted = p * jnp.exp(alpha * (m - jnp.max(m)))
    tilted = tilted / jnp.sum(tilted, axis=1, keepdims=True)
    variance = jnp.sum(tilted * (m - (tilted @ m)[:, None]) ** 2, axis=1)
    total, passed = jnp.zeros_like(variance), variance
    for _ in range(_SHORT):
        total, passed = total + passed, p @ passed[reached]
    return total


def _even(instance: Instance) -> Float[Array, " m"]:
    """The strengths at which the likeliest tokens of the largest and of the least M are even, in each context."""
    m, log_p = instance.log_odds, instance.log_p
    return (log_p[:, jnp.argmin(m)] - log_p[:, jnp.argmax(m)]) / instance.range


def _costs_little(tex: str, bound) -> Claim:
    """The claim that KL of whole texts is the sum over the steps, and within a bound.

    Args:
        tex: the claim.
        bound: of the instance and a strength, nats.
    """

    def instances(instance):
        log_q, m = chain(instance, instance.log_p), instance.log_odds
        texts = _listed(log_q)

        def slack(alpha):
            after = _listed(chains.steered(log_q, m, alpha))
            forward = jnp.sum(jnp.exp(texts) * (texts - after), axis=1)
            backward = jnp.sum(jnp.exp(after) * (after - texts), axis=1)
            allowed = bound(instance, alpha)
            error = jnp.max(jnp.abs(forward - _costs(log_q, m, alpha))) / (1 + jnp.max(jnp.abs(texts)))
            return jnp.minimum(allowed - jnp.maximum(jnp.max(forward), jnp.max(backward)), 1e-12 - error)

        return jnp.min(jax.vmap(slack)(jnp.asarray(_TILTS) / instance.range)) + 1e-11

    def autodiff(instance):
        """The second derivative of the cost through the model against that of the bound, where the cost bends most."""
        model, contexts, v = exact_split(instance)
        log_q, zero = chain(instance, instance.log_p), jnp.zeros(())
        allowed = slope(lambda b: slope(lambda a: bound(instance, a), b), zero)

        def bent(alpha):
            def costs(a):
                return _total(log_q, chain(instance, jax.nn.log_softmax(steer(model, contexts, v, a))))

            return slope(lambda b: slope(costs, b), alpha)

        strengths = jnp.concatenate([jnp.zeros(1), _even(instance)])
        return jnp.min(allowed - jax.vmap(bent)(strengths)) / instance.range**2 + 1e-9

    @compiled_quickly
    def on_grid(instance, alphas, curves):
        start = chain(instance, curves[:, alphas.size // 2])

        def slack(alpha, rows):
            return bound(instance, alpha) - jnp.max(_total(start, chain(instance, rows)))

        return jnp.min(jax.vmap(slack, in_axes=(0, 1))(alphas, curves)) + 1e-9

    def sweep(swept: Measured):
        near = np.abs(swept.alphas) * float(swept.instance.range) <= 8
        return float(on_grid(swept.instance, jnp.asarray(swept.alphas[near]), jnp.asarray(swept.log_probabilities[:, near])))

    def bend(instance, alpha):
        """The second derivative of the bound less that of the cost: both are 0 at 0, with their slopes."""
        return 2 * bound(instance, 1.0) - _curvature(instance, alpha)

    reading = (
        "the least slack, in nats, of the bound on what a text costs, either way round and with 1e-11 for rounding,"
        " or 1e-12 less the relative error of the sum over its tokens, whichever is less"
    )
    return Claim(tex, instances, autodiff, sweep, (Curve(bend, (-8.0, 8.0)),), reading=reading)


_KL_TEX = r"\operatorname{KL}(p \| p_\alpha) = \sum_t \mathbb{E} \operatorname{KL}_t \le "
_COST = _costs_little(
    r"\text{for texts of}\ t\ \text{tokens}\ " + _KL_TEX + r"\tfrac{t}{8} R^2 \alpha^2,\ \text{and so is}\ "
    r"\operatorname{KL}(p_\alpha \| p)",
    lambda instance, alpha: chains.sequence_bound(instance.range, alpha, _SHORT),
)
_COST_TWIN = _costs_little(
    r"\text{for texts of}\ t\ \text{tokens}\ " + _KL_TEX + r"\tfrac{1}{8} R^2 \alpha^2 \textstyle\sum_{k < t} \lambda^{2 k}",
    lambda instance, alpha: (
        chains.sequence_bound(instance.range, alpha, 1) * chains.amplification(_eigenvalue(instance) ** 2, _SHORT)
    ),
)

_TABLE = chosen("A2", "not-constant", "positive")
STATEMENTS = (
    Statement(
        id="N21.response",
        title="Over many steps the response of a concept's share adds up",
        source="N21",
        claim=_ANY,
        twin=_ANY_TWIN,
        hypotheses={**_TABLE, "mixes": _MIXES},
        remarks="The next context is the token just written. No structure of the corpus is needed: Q is the unsteered chain "
        "on tokens, nu its stationary distribution, T any set of tokens.",
        domain=CHAINS,
        proof="proofs/N21",
        figure="texts",
    ),
    Statement(
        id="N21.amplification",
        title="A persistent concept is amplified by 1/(1 - lambda)",
        source="N21",
        claim=_LUMPED,
        twin=_LUMPED_TWIN,
        hypotheses={**_TABLE, "mixes": _MIXES, "lumps": _LUMPS},
        remarks="lambda is an eigenvalue of the chain, the second one if no other set of tokens persists longer. In the "
        "uniform family 1/(1 - lambda) = (G - 1)/(G epsilon): 2.22, 6.67, 33.3 for G = 3 and epsilon = 0.3, 0.1, 0.02.",
        domain=CHAINS,
        proof="proofs/N21",
        figure="texts",
    ),
    Statement(
        id="N21.cost",
        title="The cost of a text is at most its length times that of a step",
        source="N21",
        claim=_COST,
        twin=_COST_TWIN,
        hypotheses=_TABLE,
        remarks="From every start. Neither a Markov chain nor one M for all contexts is needed: R is the largest range.",
        domain=CHAINS,
        proof="proofs/N21",
    ),
)
