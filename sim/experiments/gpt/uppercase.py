"""The case of letters as a concept: how much of the toy model's theory is left in a small GPT (S, figure A.4).

The GPT is one that `sim.experiments.gpt.training` made on text in lower and in upper case. It is steered from lower to upper
case after every block, along the difference of means of all positions' states (as S steers language models) and along that
of the last positions' (as in the unconstrained features model, where a context has one state). The log-odds are those of
the next token at the end of the same contexts, so that the theory has nothing to fit.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

import ufm
from sim import output
from sim.bridge.model import LanguageModel
from sim.bridge.split import Split, end_states, last_log_p
from sim.experiments.gpt import cross_entropy
from sim.experiments.gpt.assumption_2 import fidelity
from sim.experiments.gpt.letter_case import CASES, LOWER, UPPER, case_of_tokens, contexts
from sim.experiments.gpt.training import Finished
from sim.measure import curves, tilt
from sim.measure.losses import Text
from theory import tilting
from ufm import Add, State, Steering
from ufm._check import require
from ufm.steerable import at_once, one_of, pairs

VECTORS = ("all positions", "last position")
"""Whose states the difference of means is of."""

SHOWN = ("theory", "closest", "normed")
"""Tilts in the table."""

RANGES = ("S", "near")
"""Of figure A.4: strengths from 0 to S's 50, and up to a few lengths of the hidden state, where curves turn."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        length: tokens of a context.
        contrasted: contexts of each case, from the training text, for the vectors and the log-odds.
        steered: contexts in lower case, of text held out.
        shown: of these in figure A.4.
        largest: strength of figure A.4.
        near: the same in its closer look, in lengths of the hidden state.
        reach: of all other sweeps, in lengths of the hidden state.
        strengths: of a sweep, odd so that 0 is one.
        likeliest: tokens at each end of a sweep whose curves are looked at.
        rows: sequences of each text for the cross-entropy.
        steps: strengths of its sweep on each side of 0.
        draws: texts drawn to see what a perfect model would show.
    """

    length: int = 32
    contrasted: int = 256
    steered: int = 48
    shown: int = 3
    largest: float = 50.0
    near: float = 2.5
    reach: float = 8.0
    strengths: int = 161
    likeliest: int = 100
    rows: int = 128
    steps: int = 6
    draws: int = 4

    def __post_init__(self) -> None:
        for name in ("length", "contrasted", "steered", "shown", "likeliest", "rows", "steps"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.shown <= self.steered, "shown", f"at most the {self.steered} steered", self.shown)
        require(self.strengths % 2 == 1 and self.strengths >= 5, "strengths", "an odd number, at least 5", self.strengths)
        for name in ("largest", "near", "reach"):
            require(getattr(self, name) > 0, name, "more than 0", getattr(self, name))


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        data: labelled, one group for each question.
        numbers: the settings, and what the data come to.
    """

    data: xr.DataTree
    numbers: dict[str, Any]


class _Run(NamedTuple):
    """A model, its contexts, and what does not depend on where it is steered."""

    lm: LanguageModel
    size: Size
    cases: Int[np.ndarray, " V"]
    steered: list[list[int]]
    log_p: Float[np.ndarray, "n V"]
    m: Float[np.ndarray, " V"]
    vectors: dict[str, Float[np.ndarray, "L d"]]


def analyse(trained: Finished, *, size: Size | None = None, seed: int = 0) -> Analysis:
    """Lay the theory beside a trained GPT, in float32.

    Args:
        trained: with text in lower and in upper case.
        size: how much is computed.
        seed: of the choice of contexts, and of the text that the model writes.

    Raises:
        ValueError: too few contexts in one of the cases; contexts too long for the model.
    """
    size, lm = size or Size(), trained.model
    longest = lm.config.max_seq_len
    require(2 * size.length <= longest, "length", f"at most {longest // 2}, half of what the model reads", size.length)
    with jax.enable_x64(False):
        run = _prepare(trained, size, seed)
        texts = cross_entropy.texts(lm, trained.held_out, trained.training, size.rows, size.length, seed)
        parts, numbers = [], []
        for layer in range(lm.config.num_layers):
            for vector in VECTORS:
                data, found = _steer(run, texts, layer, vector)
                parts.append(data)
                numbers.append({"layer": layer, "vector": vector, **found})
        length = trained.settings.length
        beside = {
            name: fidelity(lm, tokens, length, draws=size.draws, seed=seed).as_json()
            for name, tokens in (("training", trained.training), ("held out", trained.held_out))
        }
    groups = {name: _joined(run, [part[name] for part in parts]) for name in parts[0]}
    groups["log-odds"] = xr.Dataset({"log_odds": ("token", run.m), "case": ("token", run.cases)})
    kept = {key: ("text", [one[key] for one in beside.values()]) for key in beside["training"]}
    groups["fidelity"] = xr.Dataset(kept, coords={"text": list(beside)})
    about = {"model": lm.name, "fingerprint": lm.fingerprint, "training": asdict(trained.settings), "size": asdict(size)}
    numbers_of_all = {"log_odds": _sides(run), "fidelity": beside, "steering": numbers}
    return Analysis(xr.DataTree.from_dict(groups), {**numbers_of_all, "settings": output.settings(seed, **about)})


def as_table(found: Analysis) -> str:
    """The numbers as a few lines for the terminal."""
    lines = []
    for text, one in found.numbers["fidelity"].items():
        perfect = f"{one['last_token']:.3f}, of a perfect model {one['perfect']:.3f}"
        lines.append(f"text {text}: loss {one['loss']:.3f} nats; KL given the last token {perfect}")
        lines.append(f"  goes on in the same case with {one['same_case_model']:.3f}, the text with {one['same_case']:.3f}")
    columns = ("R^2 at 0", "scale", *(f"{name} at 1" for name in SHOWN), "tau", "slope of CE")
    lines.append(f"{'':<26}" + "".join(f"{column:>13}" for column in columns))
    for one in found.numbers["steering"]:
        tilt, cost = one["tilt"], one["cross_entropy"]["held out"]
        values = [tilt["r_squared"], tilt["scale"], *(tilt["explained_at_one_length"][name] for name in SHOWN)]
        values += [one["peaks"]["measured"]["kendall"], cost["slope"]]
        shown = "".join(f"{'' if value is None else format(value, '.3f'):>13}" for value in values)
        place = f"block {one['layer']}, {one['vector']}"
        lines.append(f"{place:<26}{shown}")
    return "\n".join(lines)


def _prepare(trained: Finished, size: Size, seed: int) -> _Run:
    lm, rng = trained.model, np.random.default_rng(seed)
    words = lm.tokenizer
    assert words is not None
    cases, end = case_of_tokens(words), words.eos
    assert end is not None

    def some(tokens: np.ndarray, case: int, count: int, where: str) -> list[list[int]]:
        rows = contexts(tokens, cases, end, size.length)[case]
        wanted = f"at least {count} contexts of {size.length} tokens in {CASES[case]} case {where}"
        require(len(rows) >= count, "text", wanted, len(rows))
        return [rows[k] for k in rng.permutation(len(rows))[:count]]

    positive, negative = (some(trained.training, case, size.contrasted, "to train on") for case in (UPPER, LOWER))
    steered = some(trained.held_out, LOWER, size.steered, "held out")
    whole = np.asarray(last_log_p(_cut(lm, [*positive, *negative, *steered], lm.config.num_layers - 1)))
    log_p = np.split(whole, [size.contrasted, 2 * size.contrasted])
    last = [np.asarray(lm.states(rows)[0])[:, :, -1].mean(axis=1) for rows in (positive, negative)]
    vectors = {"all positions": lm.difference_of_means(positive, negative), "last position": last[0] - last[1]}
    return _Run(lm, size, cases, steered, log_p[2], log_p[0].mean(axis=0) - log_p[1].mean(axis=0), vectors)


def _cut(lm: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> Split:
    """The split; a constant of the program after the last block, where there is little to compile."""
    cut = lm.split(rows, layer)
    return cut.statically() if layer == lm.config.num_layers - 1 else cut


def _sides(run: _Run) -> dict[str, float]:
    """How many tokens with letters have log-odds of their case's sign (S, lemma B.4), and how far the cases are apart."""
    means = [float(run.m[run.cases == case].mean()) for case in range(len(CASES))]
    right = np.concatenate([run.m[run.cases == UPPER] > 0, run.m[run.cases == LOWER] < 0])
    return {"right_sign": float(right.mean()), **dict(zip(CASES, means, strict=True)), "range": float(np.ptp(run.m))}


def _joined(run: _Run, parts: list[xr.Dataset]) -> xr.Dataset:
    """Datasets of every layer and vector as one."""
    count = len(VECTORS)
    rows = [xr.concat(parts[k : k + count], "vector", join="outer") for k in range(0, len(parts), count)]
    layers = list(range(run.lm.config.num_layers))
    return xr.concat(rows, "layer", join="outer").assign_coords(layer=layers, vector=list(VECTORS))


# --- a layer and a vector ----------------------------------------------------------------------------------------------


def _steer(run: _Run, texts: dict[str, Text], layer: int, vector: str) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """Everything about one place to steer and one vector: data by group, and numbers."""
    size, v = run.size, run.vectors[vector][layer]
    cut = _cut(run.lm, run.steered, layer)
    v, states = jnp.asarray(v), np.asarray(end_states(cut))
    unit = float(np.median(np.linalg.norm(states, axis=-1)) / np.linalg.norm(v))
    # Dense where little steering matters, and not too coarse at the ends.
    half = np.sinh(np.linspace(0, np.arcsinh(size.reach), size.strengths // 2 + 1))
    relative = np.concatenate([-half[:0:-1], half])
    alphas = unit * relative
    shrinkage = np.asarray(_shrinkage(cut, v, jnp.asarray(alphas, jnp.float32)))
    swept = {
        "measured": np.asarray(_swept(cut, v, jnp.asarray(alphas, jnp.float32))),
        "theory": _tilts(run, alphas, np.ones_like(shrinkage)),
        "normed": _tilts(run, alphas, shrinkage),
    }
    found = [
        _tilting(run, cut, v, relative, unit, shrinkage),
        _concepts(run, swept, relative),
        _peaks(run, swept, relative),
        cross_entropy.cross_entropy(run.lm, texts, run.m, run.vectors[vector][layer], layer, size.steps),
    ]
    data = dict(zip(("tilts", "concepts", "peaks", "cross-entropy"), (one for one, _ in found), strict=True))
    data["next-tokens"] = _next_tokens(run, cut, v, unit)
    return data, {"unit": unit, **{key: value for _, numbers in found for key, value in numbers.items()}}


@jax.jit
def _swept(cut: Split, v: Array, alphas: Array) -> Array:
    """Log-probabilities of the next token, ``[n, K, V]``."""
    everyone = jnp.arange(cut.tokens.shape[0])
    return ufm.sweep(cut, everyone, v, alphas, lambda logits, _: jax.nn.log_softmax(logits))


@jax.jit
def _shrinkage(cut: Split, v: Array, alphas: Array) -> Array:
    """D: the size of what the last norm is given without steering over that with steering, ``[n, K]``."""
    a, states, steering = cut.decoder.config, cut.embed(jnp.arange(cut.n_contexts)), Steering(Add(v))

    def size(x: Array) -> Array:
        x = x - jnp.mean(x, axis=-1, keepdims=True) if a.norm == "layer" else x
        return jnp.sqrt(jnp.mean(x * x, axis=-1) + a.eps)

    def one(state: State, alpha: Array) -> Array:
        return size(cut.before_norm(state, steering, alpha))

    chunk = at_once(cut, one_of(states, 0))
    return size(cut.before_norm(states))[:, None] / pairs(one, cut.n_contexts, alphas, chunk, partial(one_of, states))


def _tilts(run: _Run, alphas: np.ndarray, shrinkage: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n K V"]:
    """The log-probabilities ``(p e^{alpha M})^D`` of every context and strength."""
    given = (jnp.asarray(values, jnp.float32) for values in (run.log_p, run.m, alphas, shrinkage))
    return np.asarray(_tilted(*given))


@jax.jit
def _tilted(log_p: Array, m: Array, alphas: Array, shrinkage: Array) -> Array:
    def one(p: Array, alpha: Array, d: Array) -> Array:
        return jax.nn.log_softmax(d * (p + tilting.tilt(m, alpha)))

    return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, 0))(log_p, alphas, shrinkage)


def _tilting(
    run: _Run, cut: Split, v: Array, relative: np.ndarray, unit: float, shrinkage: Float[np.ndarray, "n K"]
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Lemma B.3: how much of what steering does is a tilt."""
    everyone = np.arange(run.size.steered)
    slopes = tilt.slopes(cut, everyone, v, run.m)
    found = tilt.distances(cut, everyone, v, run.m, unit * relative, slopes.scale, shrinkage=shrinkage)
    shares = found.explained
    data = xr.Dataset(
        {
            "kl": (("tilt", "relative"), found.kl.mean(axis=1)),
            "explained": (("tilt", "relative"), shares),
            "closest": ("relative", found.closest.mean(axis=0)),
            "shrinkage": ("relative", shrinkage.mean(axis=0)),
            "unit": unit,
        },
        coords={"tilt": list(tilt.TILTS), "relative": relative},
    )
    at_one = {name: float(np.interp(1.0, relative, row)) for name, row in zip(tilt.TILTS, shares, strict=True)}
    numbers = {
        "scale": slopes.scale,
        "r_squared": slopes.r_squared(),
        "r_squared_of_theory": slopes.r_squared(1.0),
        "correlation": float(np.mean(slopes.correlations)),
        "explained_at_one_length": at_one,
        "explained_at_least": {name: float(np.nanmin(row)) for name, row in zip(tilt.TILTS, shares, strict=True)},
        "reach": {name: tilt.reach(relative, row) for name, row in zip(tilt.TILTS, shares, strict=True)},
    }
    return data, {"tilt": numbers}


def _concepts(run: _Run, swept: curves.Curves, relative: np.ndarray) -> tuple[xr.Dataset, dict[str, Any]]:
    """Theorem 3.6: the probability of each case, and the sigmoid nearest to that of upper case."""
    each = {kind: curves.of_concepts(values, run.cases, len(CASES)) for kind, values in swept.items()}
    mean = {kind: values.mean(axis=0) for kind, values in each.items()}
    upper, measured = each["measured"][..., UPPER], mean["measured"][:, UPPER]
    fitted = curves.sigmoid(relative, measured)
    data = xr.Dataset(
        {
            "probability": (("kind", "relative", "case"), np.stack(list(mean.values()))),
            "sigmoid": ("relative", fitted(relative)),
        },
        coords={"kind": list(mean), "relative": relative, "case": list(CASES)},
    )
    numbers = {
        "sigmoid": fitted._asdict(),
        "largest_fall": float(np.max(np.maximum.accumulate(upper, axis=1) - upper)),
        **{f"r_squared_of_{kind}": curves.r_squared(measured, mean[kind][:, UPPER]) for kind in ("theory", "normed")},
    }
    return data, {"concept": numbers}


def _peaks(run: _Run, swept: curves.Curves, relative: np.ndarray) -> tuple[xr.Dataset, dict[str, Any]]:
    """Theorem 3.3: how many tokens have one bump, and whether peaks are in the order of the log-odds."""
    found = curves.peaks(swept, relative, run.size.likeliest)
    numbers = {
        kind: {
            **curves.shares(found.bumps[kind]),
            "kendall": curves.order(found, run.m, kind),
            **curves.alike(found, kind),
        }
        for kind in swept
    }
    return curves.as_dataset(found, run.m), {"peaks": numbers}


def _next_tokens(run: _Run, cut: Split, v: Array, unit: float) -> xr.Dataset:
    """S, figure A.4: increases of the tokens that are likeliest at the largest strength, by range and context."""
    size, words = run.size, run.lm.tokenizer
    assert words is not None
    parts: list[xr.Dataset] = []
    for largest in (size.largest, size.near * unit):
        alphas = np.linspace(0, largest, size.strengths)
        given = jnp.asarray(alphas, jnp.float32)
        measured = np.exp(np.asarray(_swept(cut, v, given)))
        predicted = np.exp(_tilts(run, alphas, np.asarray(_shrinkage(cut, v, given))))
        top = np.argsort(-measured[: size.shown, -1], axis=-1)[:, :8]
        measured, predicted = (np.take_along_axis(p[: size.shown], top[:, None, :], axis=-1) for p in (measured, predicted))
        parts.append(
            xr.Dataset(
                {
                    "increase": (("context", "strength", "rank"), measured - measured[:, :1]),
                    "predicted": (("context", "strength", "rank"), predicted - predicted[:, :1]),
                    "alpha": ("strength", alphas),
                    "word": (("context", "rank"), [[words.decode([z]) for z in row] for row in top.tolist()]),
                }
            )
        )
    texts = [words.decode(row) for row in run.steered[: size.shown]]
    return xr.concat(parts, "range").assign_coords(range=list(RANGES)).assign(text=("context", texts), unit=unit)
