"""Behind the last norm, where the theory is exact: the law and the arc (N7, N8)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from sim.bridge.decoder import softcapped
from sim.bridge.readout import Readout, readout
from sim.bridge.split import Split
from sim.checks.validation.findings import Finding, Run, Size, about_of
from theory import arc


def last_block(run: Run) -> tuple[xr.Dataset, list[Finding]]:
    """N7 and N8 after the last block: the law and the arc beside the model's own norm and unembedding, in float64."""
    layer, findings, parts = run.lm.config.num_layers - 1, [], []
    states = run.ends(layer, np.float64)
    with jax.enable_x64(True):
        out, wide = readout(run.lm), run.lm.with_dtype(jnp.float64)
        split = wide.split(run.texts.openings, layer)
        for name in run.names:
            v = jnp.asarray(run.v(name, layer), float)
            sweep = {
                key: np.asarray(value) for key, value in _behind_norm(split, out, jnp.asarray(states), v, run.size).items()
            }
            worst = {key: float(value.max()) for key, value in sweep.items() if value.ndim == 1}
            about = about_of(name, layer)
            findings += [
                Finding("N7", about, "logits of the law, relative to their size", worst["law"], 1e-10),
                Finding("N7", about, "without eps: beyond the bound on what eps changes", worst["bare"], 1e-10),
                Finding("N7", about, "what eps changes at most, in logits", worst["eps"]),
                Finding("N8.arc", about, "logits of the arc, relative to their size", worst["arc"], 1e-10),
                Finding("N8.plateau", about, "distance to the plateau beyond rate and remainder", worst["plateau"], 1e-10),
                Finding("N8.bumps", about, "most bumps of a token on the arc", float(sweep["bumps"].max())),
            ]
            parts.append(_shown(run, sweep, out, states[0], v))
    return xr.concat(parts, "concept", join="override").assign_coords(concept=run.names), findings


@partial(jax.jit, static_argnames="size")
def _behind_norm(split: Split, out: Readout, states: Array, v: Array, size: Size) -> dict[str, Array]:
    """Errors over a sweep of every hidden state, ``[n]``, the largest; its logits, ``[n, K, V]``; bumps, ``[n, V]``."""
    theta = jnp.linspace(-1.5, 1.5, size.angles)
    paper = jnp.linspace(-200.0, 200.0, 81)

    def of_state(h):
        logit_arc = out.arc(h, v)
        law = arc.law(out.W, out.gamma, out.bias, h, v, kind=out.kind, eps=out.eps)
        bare = arc.law(out.W, out.gamma, out.bias, h, v, kind=out.kind)
        of_eps = arc.eps_bound(out.W, out.gamma, h, v, out.eps, kind=out.kind)
        rate, scale = arc.plateau_rate(logit_arc), 1 + jnp.max(jnp.hypot(logit_arc.A, logit_arc.B))

        def at(alpha):
            logits = split.decoder.logits(h + alpha * v)

            def off(closed):
                return jnp.abs(logits - softcapped(closed, out.softcap)) / scale

            end = jnp.where(alpha > 0, arc.plateau(logit_arc, 1), arc.plateau(logit_arc, -1))
            bound = (jnp.abs(rate.coefficient) + rate.remainder / jnp.abs(alpha)) / jnp.abs(alpha) / scale
            errors = {
                "law": jnp.max(off(arc.law_logits(law, alpha))),
                "arc": jnp.max(off(arc.logits_at(logit_arc, alpha))),
                "bare": jnp.max(off(arc.law_logits(bare, alpha)) - of_eps / scale),
                "plateau": jnp.where(jnp.abs(alpha) > rate.beyond, jnp.max(off(end) - bound), -jnp.inf),
            }
            return errors, logits

        # The paper's strengths as well, and some that are far out.
        far = 1e3 * rate.beyond * jnp.asarray([-1.0, 1.0])
        errors, logits = jax.lax.map(at, jnp.concatenate([arc.alpha_of_theta(logit_arc, theta), paper, far]), batch_size=16)
        worst = {key: jnp.max(value) for key, value in errors.items()}
        return worst | {"eps": jnp.max(of_eps), "logits": logits[: size.angles], "bumps": arc.bumps(logit_arc, points=1024)}

    return jax.lax.map(of_state, states)


def _shown(run: Run, sweep: dict[str, np.ndarray], out: Readout, h: np.ndarray, v: Array) -> xr.Dataset:
    """The sweep of the first hidden state as data: the logits of a few tokens, and the bumps of all."""
    logits, theta = sweep["logits"][0], np.linspace(-1.5, 1.5, run.size.angles)
    tokens = _distinct(logits)
    logit_arc = jax.tree.map(lambda leaf: leaf[tokens] if leaf.ndim else leaf, out.arc(jnp.asarray(h), v))
    fine = np.linspace(-1.5, 1.5, 401)
    return xr.Dataset(
        {
            "predicted": (("theta", "slot"), np.asarray(jax.vmap(partial(arc.arc_logits, logit_arc))(jnp.asarray(fine)))),
            "alpha": ("theta", np.asarray(arc.alpha_of_theta(logit_arc, jnp.asarray(fine)))),
            "measured": (("strength", "slot"), logits[:, tokens]),
            "strengths": ("strength", np.asarray(arc.alpha_of_theta(logit_arc, jnp.asarray(theta)))),
            "plateau_low": ("slot", np.asarray(arc.plateau(logit_arc, -1))),
            "plateau_high": ("slot", np.asarray(arc.plateau(logit_arc, 1))),
            "id": ("slot", tokens),
            "word": ("slot", np.asarray([run.words(int(z)) for z in tokens])),
            "bumps": ("token", sweep["bumps"][0]),
            "centre": float(logit_arc.centre),
            "width": float(logit_arc.width),
        },
        coords={"theta": fine},
    )


def _distinct(logits: Float[np.ndarray, "K V"], count: int = 6) -> np.ndarray:
    """A few tokens to show: the likeliest at as many angles, from one end to the other, or the next likeliest."""
    chosen: list[int] = []
    for row in logits[np.linspace(0, len(logits) - 1, count).round().astype(int)]:
        order = np.argsort(-row)[: count + 1]
        chosen.append(next(int(z) for z in order if int(z) not in chosen))
    return np.asarray(chosen)
