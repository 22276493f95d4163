"""Next-token curves: what is left of the single bump of theorem 3.3."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

import ufm
from sim.bridge.split import Split
from sim.checks.validation.findings import Finding, Run, about_of, by_pair
from sim.measure.curves import KINDS_OF_CURVE, counts_of_kinds, shapes


@jax.jit
def _swept(split: Split, v: Array, alphas: Array) -> Array:
    """Log-probabilities of the next token, ``[n, K, V]``."""
    contexts = jnp.arange(split.tokens.shape[0])
    return ufm.sweep(split, contexts, v, alphas, lambda logits, _: jax.nn.log_softmax(logits))


def next_tokens(run: Run) -> tuple[xr.Dataset, list[Finding]]:
    """Theorem 3.3 on real curves: how many of the likeliest tokens have one bump, and where."""
    findings, parts = [], []
    with jax.enable_x64(False):
        for name, layer in run.pairs():
            v = run.v(name, layer)
            scale = float(np.median(np.linalg.norm(run.ends(layer), axis=-1))) / float(np.linalg.norm(v))
            # Dense where little steering matters, and not too coarse at the ends.
            ends = np.arcsinh(run.size.reach)
            alphas = scale * np.sinh(np.linspace(-ends, ends, run.size.strengths))
            probabilities = np.exp(
                np.asarray(_swept(run.openings.at(layer), jnp.asarray(v), jnp.asarray(alphas, jnp.float32)))
            )
            data, shares = _shapes(run, probabilities, alphas, scale)
            parts.append(data)
            findings += [
                Finding("theorem-3.3.bump", about_of(name, layer), f"share of tokens with {kind}", float(share))
                for kind, share in zip(KINDS_OF_CURVE, shares, strict=True)
            ]
            findings.append(
                Finding(
                    "theorem-3.3.bump",
                    about_of(name, layer),
                    "share that another count has with half the strengths",
                    float(data["unsettled"]),
                )
            )
    return by_pair(run, parts), findings


def _shapes(run: Run, probabilities: Float[np.ndarray, "n K V"], alphas: np.ndarray, scale: float):
    """Counts of kinds of curves, where the single bumps are, and the curves of the likeliest tokens of one context."""
    counts, places, unsettled = np.zeros(3), [], 0
    for rows in probabilities:
        ends = [np.argsort(-rows[end])[: run.size.likeliest] for end in (0, -1)]
        kept = rows[:, np.union1d(*ends)].T
        curves = shapes(kept)
        counts += counts_of_kinds(curves.bumps)
        unsettled += int(np.sum(shapes(kept[:, ::2]).bumps != curves.bumps))
        places += (alphas[curves.place[curves.single]] / scale).tolist()
    first = probabilities[0]
    zero, top = int(np.argmin(np.abs(alphas))), np.argsort(-first[-1])[:8]
    shares = counts / counts.sum()
    quartiles = np.quantile(places, [0.25, 0.5, 0.75]) if places else np.full(3, np.nan)
    data = xr.Dataset(
        {
            "increase": (("strength", "rank"), first[:, top] - first[zero, top]),
            "word": ("rank", np.asarray([run.words(int(z)) for z in top])),
            "strengths": ("strength", alphas),
            "count": ("kind", counts),
            "peak": ("quartile", quartiles),
            "scale": scale,
            "unsettled": unsettled / counts.sum(),
        },
        coords={"kind": list(KINDS_OF_CURVE), "quartile": [0.25, 0.5, 0.75]},
    )
    return data, shares
