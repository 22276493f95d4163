"""Texts of many steps: how much more a concept gains in what a model writes than in one prediction (N21).

The same random numbers write a text under strengths of both signs, and unsteered. The share of a set of tokens in the
prediction of step t responds to steering in two ways: in the prediction itself, with the text before it held, and through
what was written before. For a Markov chain N21 says by how much the whole exceeds the first part. On a language model the
factor is measured, and stands beside that of a chain of two states, in the set and outside, with the model's shares. The
set is the tokens that steering lifts after the openings: of others, the first part may be so small that there is no factor.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int

from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel
from sim.bridge.split import Split
from sim.checks.validation.findings import Finding, Run, about_of
from theory import chains
from ufm import Add, Steering
from ufm.distributions import variance
from ufm.measures import slopes
from ufm.steerable import in_batches

NATS = 0.1
"""The cost of the strengths after the openings, by the curvature, in nats."""

LIFT = 1.0
"""The least lift of the log-probability of a token of the set by steering: the mean over openings of its slope, in
standard deviations of the prediction."""


@dataclass(frozen=True)
class Responses:
    """The effect of steering on the share of a set of tokens at each step of texts, ``[n, t]`` each.

    Attributes:
        whole: its difference between the positive and the negative strength, each on the text that it writes.
        held: the same on the text that the unsteered model writes.
        share: on that text, between the two.
        inside: whether the token before is of the set.
    """

    whole: Float[np.ndarray, "n t"]
    held: Float[np.ndarray, "n t"]
    share: Float[np.ndarray, "n t"]
    inside: Bool[np.ndarray, "n t"]

    @property
    def amplification(self) -> tuple[float, float]:
        """The whole response over the held one, in the later half of the steps, and its standard error over texts."""
        later = slice(self.whole.shape[1] // 2, None)
        whole, held = self.whole[:, later].sum(axis=1), self.held[:, later].sum(axis=1)
        ratio = whole.sum() / held.sum()
        return float(ratio), float(np.sqrt(np.sum((whole - ratio * held) ** 2)) / np.abs(held.sum()))

    @property
    def eigenvalue(self) -> float:
        """lambda of the chain of two states: the share after tokens of the set less that after others; NaN without both."""
        if not self.inside.any() or self.inside.all():
            return float("nan")
        return float(self.share[self.inside].mean() - self.share[~self.inside].mean())


def sequences(run: Run) -> tuple[xr.Dataset, list[Finding]]:
    """N21 at the middle layer, for every concept."""
    findings, curves, layer = [], [], run.layers[(len(run.layers) - 1) // 2]
    with jax.enable_x64(False):
        for name in run.names:
            v = jnp.asarray(run.v(name, layer), jnp.float32)
            curvature, lift = (np.asarray(values) for values in _at_zero(run.openings.at(layer), Steering(Add(v))))
            alpha, members, steering = float(np.sqrt(NATS / curvature)), lift > LIFT, Steering({layer: Add(v)})
            got = responses(
                run.lm, run.texts.beginnings * run.size.copies, steering, alpha, members, run.size.written, run.seed
            )
            (ratio, error), about, eigenvalue = got.amplification, about_of(name, layer), got.eigenvalue
            findings += [
                Finding("N21.response", about, "first step: whole response less held", _first(got), 1e-4),
                Finding("N21.amplification", about, "whole response over held, later half of the text", ratio),
                Finding("N21.amplification", about, "standard error of that", error),
            ]
            if np.isfinite(eigenvalue):
                factor = float(chains.amplification(eigenvalue, jnp.inf))
                findings.append(Finding("N21.amplification", about, "1/(1-λ) of a chain of two states", factor))
            curves.append([got.whole.mean(axis=0), got.held.mean(axis=0), got.share.mean(axis=0)])
    kinds = ["whole", "held", "share"]
    return xr.Dataset(
        {"response": (("concept", "kind", "step"), curves)}, coords={"concept": run.names, "kind": kinds}
    ), findings


@jax.jit
def _at_zero(split: Split, steering: Steering) -> tuple[Array, Array]:
    """The curvature of KL, and the slope of every log-probability in standard deviations, ``[V]``: means over contexts."""
    logits, derivative = slopes(split, split.embed(jnp.arange(split.n_contexts)), steering)
    ahead = derivative - jnp.sum(jax.nn.softmax(logits) * derivative, axis=-1, keepdims=True)
    spread = variance(logits, derivative)
    return jnp.mean(spread) / 2, jnp.mean(ahead / jnp.sqrt(spread)[:, None], axis=0)


def _first(got: Responses) -> float:
    """At the first step nothing was written before: the two responses are the same, in units of the held one."""
    return float(np.max(np.abs(got.whole - got.held)[:, 0]) / np.max(np.abs(got.held[:, 0])))


def responses(
    lm: LanguageModel,
    beginnings: tuple,
    steering: Steering,
    alpha: float,
    members: Bool[np.ndarray, " V"],
    steps: int,
    seed: int,
) -> Responses:
    """Responses of the share of a set of tokens in texts of so many steps (`Responses`).

    Args:
        lm: the model.
        beginnings: what the texts go on from; one that is there several times is continued so many times.
        steering: what steers, with its layer.
        alpha: the strength, which is taken with both signs.
        members: the set.
        steps: tokens written.
        seed: of the random numbers.
    """
    ids, mask = lm.contexts(beginnings)
    prompts = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]

    def written(strength: float) -> Int[np.ndarray, "n t"]:
        sampling = Sampling(temperature=1.0)
        texts = lm.generate(
            prompts, max_new_tokens=steps, sampling=sampling, seed=seed, steering=steering, alpha=strength, stop=False
        )
        return np.asarray(texts.tokens)

    def shares(tokens: Int[np.ndarray, "n t"], strength: float) -> Float[np.ndarray, "n t"]:
        rows = [[*prompt, *row.tolist()] for prompt, row in zip(prompts, tokens, strict=True)]
        split, parts = lm.split(rows, last_only=False).resolve(steering)
        return np.asarray(
            _shares(split, parts, jnp.asarray(strength, jnp.float32), jnp.asarray(members), steps=steps), float
        )

    own = written(0.0)
    whole = [shares(written(sign * alpha), sign * alpha) for sign in (-1, 1)]
    held = [shares(own, sign * alpha) for sign in (-1, 1)]
    before = np.column_stack([[prompt[-1] for prompt in prompts], own[:, :-1]])
    return Responses(whole[1] - whole[0], held[1] - held[0], (held[0] + held[1]) / 2, members[before])


@partial(jax.jit, static_argnames="steps")
def _shares(split: Split, steering: Steering, alpha: Array, members: Array, *, steps: int) -> Float[Array, "n t"]:
    """The share of the members in the predictions of the last tokens of every text, steered."""

    def of(j):
        stream = split.before_norm(split.embed(j), steering, alpha)[-steps - 1 : -1]
        return jnp.sum(jnp.where(members, jax.nn.softmax(split.decoder.logits(stream)), 0), axis=-1)

    return in_batches(split, of, jnp.arange(split.n_contexts))
