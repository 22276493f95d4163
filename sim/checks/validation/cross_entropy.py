"""The effect of steering on the loss of text that a model wrote, and of text that it did not (N9, N13)."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Bool

from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel
from sim.checks.validation.findings import Finding, Run, about_of, by_pair
from sim.measure.losses import Increases, Moments, Text, loss_increases, loss_moments
from ufm._check import require


def curvatures(run: Run) -> tuple[xr.Dataset, list[Finding]]:
    """N9: the coefficient of alpha^2 in KL by one JVP, against a fine sweep; N13: Delta CE on own and foreign text.

    On text that the model drew, the slope of the loss at 0 is a sum of terms of mean 0, each given the ones before it, with
    variances that N9 knows: twice its coefficient. So the standard error of the linear term is known too. At other strengths
    the same holds of Delta CE less KL (N13), with variances that the sample tells.
    """
    texts = dict(zip(("own", "foreign"), _texts(run), strict=True))
    findings, parts = [], []
    for name, layer in run.pairs():
        about, v = about_of(name, layer), run.v(name, layer)
        with jax.enable_x64(False):
            moments = {kind: loss_moments(run.lm, text, v, layer) for kind, text in texts.items()}
            # Up to where the parabola is at half a nat.
            reach = np.sqrt(0.5 / moments["own"].curvature)
            alphas = reach * np.linspace(-1, 1, 2 * run.size.steps + 1)
            curves = {kind: loss_increases(run.lm, text, v, layer, alphas) for kind, text in texts.items()}
        with jax.enable_x64(True):
            # The row that is moved most: where a model is certain of what it wrote, there is nothing to compare.
            k = int(np.argmax(moments["own"].of_rows))
            row = Text(texts["own"].rows[k : k + 1], texts["own"].counted[k : k + 1])
            exact, fitted = _fine(run.lm.with_dtype(jnp.float64), row, v, layer)
        findings += [
            Finding("N9", about, "curvature by JVP against a fine sweep, relative error", abs(fitted / exact - 1), 1e-6),
            Finding("N9", about, "linear term of ΔCE on text it wrote, in standard errors", moments["own"].score, 4.0),
            Finding("N9", about, "linear term of ΔCE on foreign text, in the same errors", moments["foreign"].score),
            *_at_rest(about, moments, curves, alphas != 0),
        ]
        parts.append(
            xr.Dataset(
                {
                    "cross_entropy": (("text", "strength"), np.asarray([curve.loss for curve in curves.values()])),
                    "divergence": (("text", "strength"), np.asarray([curve.divergence for curve in curves.values()])),
                    "curvature": ("text", [moment.curvature for moment in moments.values()]),
                    "slope": ("text", [moment.slope for moment in moments.values()]),
                    "slope_error": ("text", [moment.error for moment in moments.values()]),
                    "strengths": ("strength", alphas),
                },
                coords={"text": list(texts)},
            )
        )
    return by_pair(run, parts), findings


def _at_rest(
    about: str, moments: dict[str, Moments], curves: dict[str, Increases], away: Bool[np.ndarray, " K"]
) -> list[Finding]:
    """N13: Delta CE beside KL at every strength but 0, the curvature of KL, and the slope of Delta CE on foreign text."""
    scores = {
        kind: float(np.max(np.abs(curve.loss - curve.divergence)[away] / curve.error[away]))
        for kind, curve in curves.items()
    }
    second = np.diff(curves["own"].divergence, 2)
    slope = moments["foreign"].slope / np.sqrt(moments["foreign"].curvature)
    return [
        Finding("N13.divergence", about, "ΔCE less KL on text it wrote, in standard errors", scores["own"], 4.0),
        Finding("N13.divergence", about, "ΔCE less KL on foreign text, in the same errors", scores["foreign"]),
        Finding("N13.divergence", about, "least second difference of KL, in the largest", second.min() / second.max()),
        Finding("N13.slope", about, "slope of ΔCE on foreign text, where KL is α² nats", slope),
    ]


def _texts(run: Run) -> tuple[Text, Text]:
    """Text that the model wrote, and text that it did not, as rows of one length."""
    lm, count = run.lm, run.size.written
    with jax.enable_x64(False):
        written = lm.generate(
            run.texts.beginnings, max_new_tokens=count, sampling=Sampling(temperature=1.0), seed=run.seed, stop=False
        )
        ids, mask = lm.contexts(run.texts.beginnings)
    rows = [[*row[mask].tolist(), *more] for row, mask, more in zip(ids, mask, written.tokens, strict=True)]
    length = max(len(row) for row in rows)
    tokens = run.texts.foreign
    if isinstance(tokens, str):
        tokens = lm.contexts([tokens[: 12 * length * len(rows)]])[0][0].tolist()
    others = [tokens[k * length : (k + 1) * length] for k in range(len(rows))]
    require(all(len(row) == length for row in others), "foreign", f"at least {length * len(rows)} tokens", len(tokens))
    starts = np.asarray([len(row) - count for row in rows])
    place = np.arange(length - 1)
    padding = np.asarray([length - len(row) for row in rows])
    # Position t predicts token t + 1.
    own = place[None, :] + 1 >= (starts + padding)[:, None]
    return Text(rows, own), Text(others, np.broadcast_to(place + 1 >= starts.min(), own.shape))


def _fine(lm: LanguageModel, text: Text, v: np.ndarray, layer: int) -> tuple[float, float]:
    """The curvature by JVP, and that of a polynomial through a fine sweep, in float64."""
    wide = v.astype(float)
    exact = loss_moments(lm, text, wide, layer).curvature
    # KL is a millionth of a nat at the ends, large enough for float64. Where a prediction is nearly certain, terms up to
    # alpha^4 leave an error of 1e-6 there; terms up to alpha^6 leave one of rounding, 1e-8.
    places = np.delete(np.linspace(-1, 1, 9), 4)
    alphas = np.sqrt(1e-6 / exact) * places
    divergence = loss_increases(lm, text, wide, layer, alphas).divergence
    return exact, float(np.polynomial.polynomial.polyfit(places, divergence / alphas**2, 6)[0])
