"""The sweep of a decoder behind a norm as labelled data: the law, the arc and the plateaus beside what the decoder gives."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from theory import arc, norms

_ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 601)[1:-1]
_MEASURED = np.tan(np.linspace(-1.45, 1.45, 30))
"""Strengths that are measured, in widths from the centre."""


def data(instance: norms.NormInstance) -> xr.Dataset:
    """A whole sweep of one hidden state (call it inside ``jax.enable_x64(True)``).

    Returns:
        By angle and token: "predicted" (logits of the arc, N8) and "probability"; by strength and token: "measured" (logits
        through the norm itself); by token: "towards" and "along", its unembedding in the plane of h and v, "plateau_low",
        "plateau_high" and "bumps". The strength of every angle is "alpha".
    """
    logit_arc = instance.arc
    alphas = float(logit_arc.centre) + float(logit_arc.width) * _MEASURED
    predicted = jax.vmap(lambda theta: arc.arc_logits(logit_arc, theta))(jnp.asarray(_ANGLES))
    size = float(jnp.max(jnp.hypot(logit_arc.A, logit_arc.B)))
    return xr.Dataset(
        {
            "predicted": (("theta", "token"), np.asarray(predicted)),
            "probability": (("theta", "token"), np.asarray(jax.nn.softmax(predicted))),
            "alpha": ("theta", np.asarray(arc.alpha_of_theta(logit_arc, jnp.asarray(_ANGLES)))),
            "measured": (("strength", "token"), np.asarray(jax.vmap(instance.decode)(jnp.asarray(alphas)))),
            "towards": ("token", np.asarray(logit_arc.A) / size),
            "along": ("token", np.asarray(logit_arc.B) / size),
            "plateau_low": ("token", np.asarray(arc.plateau(logit_arc, -1))),
            "plateau_high": ("token", np.asarray(arc.plateau(logit_arc, 1))),
            "bumps": ("token", np.asarray(arc.bumps(logit_arc))),
        },
        coords={"theta": _ANGLES, "strength": alphas},
        attrs={"centre": float(logit_arc.centre), "width": float(logit_arc.width)},
    )
