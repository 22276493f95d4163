"""A counterexample as a person reads it: the table with its concepts, the claim in numbers, and where it fails."""

import dataclasses
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sim.figures.counterexample import failing, shown_numbers
from theory import Claim, rationals
from theory._compilation import compiled_quickly
from theory.claims import TOKENS, closed_form_curves
from theory.instance import Instance
from theory.rationals import RationalInstance
from theory.statement import Curve, Margin
from ufm._check import typed


def describe(
    exact: RationalInstance, name: str, margin: Margin, value: float, *, claim: Claim | None = None, shown: int = 3
) -> xr.Dataset:
    """The data of a counterexample's figure and text: its distinct rows, and the curves of some of them.

    Contexts that agree in everything are one. The curves are of the contexts whose rows move the margin most, that is, whose
    part of its gradient is largest.

    Args:
        exact: the table.
        name: of the conjecture.
        margin: what it breaks.
        value: what the margin comes to there.
        claim: of the statement, whose inequalities over strengths are evaluated. A function of a file has none: its margin
            is one number for the whole table, of which nothing else is known.
        shown: how many contexts have curves, at most.

    Returns:
        probability, fraction, weighs (how much the margin moves with the entry, from 0 to 1) ``(context, token)``, log_odds,
        in_target, concept_of_token ``(token)``, role, concept, weight, shown ``(context)``, curve
        ``(context, alpha, token)``, fails ``(alpha)``: where an inequality of the claim fails. alpha is in units of 1/R
        (of 1 where M is constant). Attributes: "name", "margin", "target"; "reading", what the margin is, if that is known;
        "unmarked", why no strength is marked, empty where some are.
    """
    instance = rationals.to_floats(exact)
    moves = bool(instance.range > 0)
    unit = float(instance.range) if moves else 1.0
    contexts = _alike(exact)
    first = [group[0] for group in contexts]
    weighs = _weighs(instance, margin, contexts)
    telling = sorted(range(len(contexts)), key=lambda k: -weighs[k].sum())[:shown]
    alphas, curve, fails = _curves(instance, claim, first, unit)
    kept = np.abs(alphas) <= _width(alphas, curve[telling], fails)
    return xr.Dataset(
        {
            "probability": (("context", "token"), np.asarray(instance.p)[first]),
            "fraction": (("context", "token"), [[str(x) for x in exact.p[j]] for j in first]),
            "weighs": (("context", "token"), weighs / max(weighs.max(), 1e-300)),
            "log_odds": ("token", np.asarray(instance.log_odds)),
            "in_target": ("token", np.asarray(instance.in_target)),
            "concept_of_token": ("token", np.argmax(np.array(exact.members), axis=0)),
            "role": ("context", [_role(exact.contrast[j]) for j in first]),
            "concept": ("context", [exact.concept[j] for j in first]),
            "weight": ("context", [str(sum((exact.weights[j] for j in group), Fraction(0))) for group in contexts]),
            "shown": ("context", np.isin(np.arange(len(first)), telling)),
            "curve": (("context", "alpha", "token"), curve[:, kept]),
            "fails": ("alpha", fails[kept]),
        },
        coords={
            "context": [", ".join(map(str, group)) for group in contexts],
            "alpha": ("alpha", alphas[kept], {"units": "1/R" if moves else "1"}),
        },
        attrs={
            "name": name,
            "margin": value,
            "target": exact.target,
            "reading": claim.reading if claim else "",
            "unmarked": "" if fails.any() else _unmarked(claim, alphas),
        },
    )


def _weighs(instance: Instance, margin: Margin, contexts: list[list[int]]) -> np.ndarray:
    """How much a margin moves with the entries of a table, summed over contexts that are alike, ``[context, token]``."""
    slopes = compiled_quickly(jax.grad(lambda log_p: margin(dataclasses.replace(instance, log_p=log_p))))(instance.log_p)
    gradient = np.abs(np.nan_to_num(np.asarray(slopes), posinf=0, neginf=0))
    return np.stack([gradient[group].sum(axis=0) for group in contexts])


def _curves(
    instance: Instance, claim: Claim | None, contexts: list[int], unit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strengths in units of ``1 / unit``, the probabilities of some contexts at them, and whether the claim fails there."""
    alphas = np.linspace(-64, 64, 2049)
    curve = np.exp(np.asarray(closed_form_curves(instance, TOKENS, jnp.asarray(alphas) / unit)))[contexts]
    return alphas, curve, _fails(instance, claim, alphas, unit)


@typed
def as_text(data: xr.Dataset) -> str:
    """The table for the terminal, and below it what the conjecture claims, with the number that breaks it."""
    tokens = range(data.sizes["token"])
    concepts = data["concept_of_token"].values
    lines = [["", "", *(f"token {z}" for z in tokens)], ["", "weight", *(f"concept {concepts[z]}" for z in tokens)]]
    for k, cells in enumerate(shown_numbers(data)):
        context = data.isel(context=k)
        role = context["role"].item()
        names = ", ".join(f"c{j}" for j in context["context"].item().split(", "))
        words = f"{names}, concept {context['concept'].item()}{f', in {role}' if role else ''}"
        lines.append([words, context["weight"].item(), *cells])
    lines.append(["log-odds M", "", *(f"{m:+.3f}" for m in data["log_odds"].values)])
    name, value = data.attrs["name"], data.attrs["margin"]
    claims = [f"The target is concept {data.attrs['target']}. {name} requires a margin above 0; here it is {value:+.6g}."]
    if _rounded(data):
        claims.append("Long decimals are rounded; the file of the counterexample has the fractions.")
    if data.attrs["reading"]:
        claims.append(f"The margin is {data.attrs['reading']}.")
    if data.attrs["unmarked"]:
        claims.append(data.attrs["unmarked"])
    if data["fails"].any():
        unit = " / R" if data["alpha"].attrs["units"] == "1/R" else ""
        start, *_, end = data["alpha"].values
        ranges = "; ".join(_range(low, high, start, end, unit) for low, high in failing(data))
        claims.append(f"Its inequality fails at strengths {ranges}.")
    return "\n".join([*_aligned(lines), "", *claims])


def _rounded(data: xr.Dataset) -> bool:
    """Whether an entry of the table is shown as another number than it is."""
    cells = [cell for row in shown_numbers(data) for cell in row]
    return any(
        cell.startswith("1-") or Fraction(cell) != Fraction(text)
        for cell, text in zip(cells, data["fraction"].values.flat, strict=True)
    )


def _aligned(lines: list[list[str]]) -> list[str]:
    """Columns of one width each: the first from the left, the others from the right."""
    first, *others = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))]
        ).rstrip()
        for line in lines
    ]


def _range(low: float, high: float, start: float, end: float, unit: str) -> str:
    """A range of strengths in words; one that reaches an end of what is shown may go on."""
    if high == end:
        return "of every size" if low == start else f"from {low:+g}{unit} up"
    return f"up to {high:+g}{unit}" if low == start else f"from {low:+g} to {high:+g}{unit}"


def _alike(exact: RationalInstance) -> list[list[int]]:
    """Contexts that agree in everything but their weight, together."""
    groups: dict[Any, list[int]] = {}
    for j, which in enumerate(zip(exact.p, exact.contrast, exact.concept, strict=True)):
        groups.setdefault(which, []).append(j)
    return list(groups.values())


def _fails(instance: Instance, claim: Claim | None, alphas: np.ndarray, unit: float) -> np.ndarray:
    """At which strengths an inequality of the claim is clearly wrong; nowhere for a claim without inequalities."""
    fails = np.zeros(len(alphas), dtype=bool)
    for curve in _inequalities(claim, alphas):

        def least(alpha: jax.Array, function: Any = curve.function) -> jax.Array:
            return jnp.min(jnp.asarray(function(instance, alpha)))

        values = np.asarray(compiled_quickly(jax.vmap(least))(jnp.asarray(alphas) / unit))
        fails |= (values < -1e-9) & (alphas >= curve.interval[0]) & (alphas <= curve.interval[1])
    return fails


def _inequalities(claim: Claim | None, alphas: np.ndarray) -> list[Curve]:
    """The inequalities of a claim that are about more strengths than those next to 0."""
    return [curve for curve in claim.curves if np.ptp(curve.interval) > alphas[1] - alphas[0]] if claim else []


def _unmarked(claim: Claim | None, alphas: np.ndarray) -> str:
    """Why no strength is marked, in a sentence."""
    if _inequalities(claim, alphas):
        return "No strength is marked: where the claim has an inequality for single strengths, it holds."
    return "No strength is marked: the margin is one number for the whole table."


def _width(alphas: np.ndarray, curve: np.ndarray, fails: np.ndarray) -> float:
    """How far from 0 the curves are shown: until they settle, and the claim is seen to fail."""
    ends = (curve[:, :1], curve[:, -1:])
    for width in (8.0, 16.0, 32.0):
        inside = curve[:, np.abs(alphas) <= width]
        settled = all(np.abs(inside[:, [k]] - end).max() < 0.03 for k, end in zip((0, -1), ends, strict=True))
        if settled and (not fails.any() or fails[np.abs(alphas) <= width].any()):
            return width
    return 64.0


def _role(contrast: Fraction) -> str:
    return "P" if contrast > 0 else "N" if contrast < 0 else ""
