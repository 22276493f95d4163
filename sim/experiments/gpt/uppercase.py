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
from sim.directions.extraction import make_vector
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
"""The ranges of figure A.4: strengths from 0 to S's 50, and up to a few lengths of the hidden state, where curves turn."""


@dataclass(frozen=True)
class AnalysisSize:
    """How much is computed.

    Attributes:
        length: tokens of a context.
        contrasted: contexts of each case, from the training text, for the vectors and the log-odds.
        steered: contexts in lower case, of text held out.
        shown: of these in figure A.4.
        largest: strength of figure A.4.
        near: largest strength of the detail of figure A.4, in lengths of the hidden state.
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
    """The result of an analysis.

    Attributes:
        data: labelled, one group for each question.
        numbers: the settings, and numbers that summarise the data.
    """

    data: xr.DataTree
    numbers: dict[str, Any]


class _Prepared(NamedTuple):
    """A model, its contexts, and what does not depend on where it is steered."""

    lm: LanguageModel
    size: AnalysisSize
    cases: Int[np.ndarray, " V"]
    steered: list[list[int]]
    log_p: Float[np.ndarray, "n V"]
    log_odds: Float[np.ndarray, " V"]
    vectors: dict[str, Float[np.ndarray, "L d"]]


def analyse(trained: Finished, *, size: AnalysisSize | None = None, seed: int = 0) -> Analysis:
    """Compare the theory with a trained GPT, in float32.

    Args:
        trained: with text in lower and in upper case.
        size: how much is computed.
        seed: of the choice of contexts, and of the text that the model writes.

    Raises:
        ValueError: too few contexts in one of the cases; contexts too long for the model.
    """
    size, lm = size or AnalysisSize(), trained.model
    longest = lm.config.max_seq_len
    require(2 * size.length <= longest, "length", f"at most {longest // 2}, half of what the model reads", size.length)
    with jax.enable_x64(False):
        run = _prepare(trained, size, seed)
        texts = cross_entropy.texts(lm, trained.held_out, trained.training, size.rows, size.length, seed)
        parts, numbers, slopes = [], [], []
        for layer in range(lm.config.num_layers):
            slopes.append(cross_entropy.random_slopes(lm, texts, layer, seed=seed))
            for vector in VECTORS:
                data, result = _steer(run, texts, layer, vector)
                parts.append(data)
                numbers.append({"layer": layer, "vector": vector, **result})
        length = trained.settings.length
        beside = {
            name: fidelity(lm, tokens, length, draws=size.draws, seed=seed).as_json()
            for name, tokens in (("training", trained.training), ("held out", trained.held_out))
        }
    groups = {name: _joined(run, [part[name] for part in parts]) for name in parts[0]}
    groups["log-odds"] = xr.Dataset({"log_odds": ("token", run.log_odds), "case": ("token", run.cases)})
    kept = {key: ("text", [row[key] for row in beside.values()]) for key in beside["training"]}
    groups["fidelity"] = xr.Dataset(kept, coords={"text": list(beside)})
    about = {"model": lm.name, "fingerprint": lm.fingerprint, "training": asdict(trained.settings), "size": asdict(size)}
    numbers_of_all = {"log_odds": _sides(run), "fidelity": beside, "steering": numbers, "random_slopes": slopes}
    return Analysis(xr.DataTree.from_dict(groups), {**numbers_of_all, "settings": output.settings(seed, **about)})


def as_table(analysis: Analysis) -> str:
    """The numbers as a few lines for the terminal."""
    lines = []
    for text, row in analysis.numbers["fidelity"].items():
        perfect = f"{row['last_token']:.3f}, of a perfect model {row['perfect']:.3f}"
        lines.append(f"text {text}: loss {row['loss']:.3f} nats; KL given the last token {perfect}")
        lines.append(f"  goes on in the same case with {row['same_case_model']:.3f}, the text with {row['same_case']:.3f}")
    for layer, by_text in enumerate(analysis.numbers["random_slopes"]):
        rows = (f"{text} {row['slope']:.3f} (error {row['error']:.3f})" for text, row in by_text.items())
        lines.append(f"slope of CE along random directions after block {layer}, where KL is alpha^2: {', '.join(rows)}")
    columns = ("R^2 at 0", "scale", *(f"{name} at 1" for name in SHOWN), "tau", "slope of CE")
    lines.append(f"{'':<26}" + "".join(f"{column:>13}" for column in columns))
    for row in analysis.numbers["steering"]:
        tilt, cost = row["tilt"], row["cross_entropy"]["held out"]
        values = [tilt["r_squared"], tilt["scale"], *(tilt["explained_at_one_length"][name] for name in SHOWN)]
        values += [row["peaks"]["measured"]["kendall"], cost["slope"]]
        shown = "".join(f"{'' if value is None else format(value, '.3f'):>13}" for value in values)
        place = f"block {row['layer']}, {row['vector']}"
        lines.append(f"{place:<26}{shown}")
    return "\n".join(lines)


def _prepare(trained: Finished, size: AnalysisSize, seed: int) -> _Prepared:
    lm, rng = trained.model, np.random.default_rng(seed)
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    cases, end = case_of_tokens(tokenizer), tokenizer.eos
    assert end is not None

    def chosen(tokens: np.ndarray, case: int, count: int, where: str) -> list[list[int]]:
        rows = contexts(tokens, cases, end, size.length)[case]
        wanted = f"at least {count} contexts of {size.length} tokens in {CASES[case]} case {where}"
        require(len(rows) >= count, "text", wanted, len(rows))
        return [rows[k] for k in rng.permutation(len(rows))[:count]]

    positive, negative = (chosen(trained.training, case, size.contrasted, "to train on") for case in (UPPER, LOWER))
    steered = chosen(trained.held_out, LOWER, size.steered, "held out")
    whole = np.asarray(last_log_p(_split_at(lm, [*positive, *negative, *steered], lm.config.num_layers - 1)))
    log_p = np.split(whole, [size.contrasted, 2 * size.contrasted])
    mean, last = (make_vector(lm, positive, negative, tokens=tokens).directions for tokens in ("all", "last"))
    vectors = {"all positions": mean, "last position": last}
    return _Prepared(lm, size, cases, steered, log_p[2], log_p[0].mean(axis=0) - log_p[1].mean(axis=0), vectors)


def _split_at(lm: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> Split:
    """The model split after a layer. After the last block the layer is a constant of the program, which is then small."""
    split = lm.split(rows, layer)
    return split.statically() if layer == lm.config.num_layers - 1 else split


def _sides(run: _Prepared) -> dict[str, float]:
    """How many tokens with letters have log-odds of their case's sign (S, lemma B.4), and how far the cases are apart."""
    means = [float(run.log_odds[run.cases == case].mean()) for case in range(len(CASES))]
    right = np.concatenate([run.log_odds[run.cases == UPPER] > 0, run.log_odds[run.cases == LOWER] < 0])
    return {"right_sign": float(right.mean()), **dict(zip(CASES, means, strict=True)), "range": float(np.ptp(run.log_odds))}


def _joined(run: _Prepared, parts: list[xr.Dataset]) -> xr.Dataset:
    """Datasets of every layer and vector as one."""
    count = len(VECTORS)
    rows = [xr.concat(parts[k : k + count], "vector", join="outer") for k in range(0, len(parts), count)]
    layers = list(range(run.lm.config.num_layers))
    return xr.concat(rows, "layer", join="outer").assign_coords(layer=layers, vector=list(VECTORS))


# --- a layer and a vector ----------------------------------------------------------------------------------------------


def _steer(run: _Prepared, texts: dict[str, Text], layer: int, vector: str) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """The data by group, and the numbers, of steering after one layer with one vector."""
    size, v = run.size, run.vectors[vector][layer]
    split = _split_at(run.lm, run.steered, layer)
    v, states = jnp.asarray(v), np.asarray(end_states(split))
    unit = float(np.median(np.linalg.norm(states, axis=-1)) / np.linalg.norm(v))
    # Dense where little steering matters, and not too coarse at the ends.
    half = np.sinh(np.linspace(0, np.arcsinh(size.reach), size.strengths // 2 + 1))
    relative = np.concatenate([-half[:0:-1], half])
    alphas = unit * relative
    shrinkage = np.asarray(_shrinkage(split, v, jnp.asarray(alphas, jnp.float32)))
    swept = {
        "measured": np.asarray(_swept(split, v, jnp.asarray(alphas, jnp.float32))),
        "theory": _tilts(run, alphas, np.ones_like(shrinkage)),
        "normed": _tilts(run, alphas, shrinkage),
    }
    results = [
        _tilting(run, split, v, relative, unit, shrinkage),
        _concepts(run, swept, relative),
        _peaks(run, swept, relative),
        cross_entropy.cross_entropy(run.lm, texts, run.log_odds, run.vectors[vector][layer], layer, size.steps),
    ]
    data = dict(zip(("tilts", "concepts", "peaks", "cross-entropy"), (dataset for dataset, _ in results), strict=True))
    data["next-tokens"] = _next_tokens(run, split, v, unit)
    return data, {"unit": unit, **{key: value for _, numbers in results for key, value in numbers.items()}}


@jax.jit
def _swept(split: Split, v: Array, alphas: Array) -> Array:
    """Log-probabilities of the next token, ``[n, K, V]``."""
    everyone = jnp.arange(split.tokens.shape[0])
    return ufm.sweep(split, everyone, v, alphas, lambda logits, _: jax.nn.log_softmax(logits))


@jax.jit
def _shrinkage(split: Split, v: Array, alphas: Array) -> Array:
    """D: the size of what the last norm is given without steering over that with steering, ``[n, K]``."""
    a, states, steering = split.decoder.config, split.embed(jnp.arange(split.n_contexts)), Steering(Add(v))

    def size(x: Array) -> Array:
        x = x - jnp.mean(x, axis=-1, keepdims=True) if a.norm == "layer" else x
        return jnp.sqrt(jnp.mean(x * x, axis=-1) + a.eps)

    def norm_input(state: State, alpha: Array) -> Array:
        return size(split.before_norm(state, steering, alpha))

    chunk = at_once(split, one_of(states, 0))
    return size(split.before_norm(states))[:, None] / pairs(
        norm_input, split.n_contexts, alphas, chunk, partial(one_of, states)
    )


def _tilts(run: _Prepared, alphas: np.ndarray, shrinkage: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n K V"]:
    """The log-probabilities ``(p e^{alpha M})^D`` of every context and strength."""
    arrays = (jnp.asarray(values, jnp.float32) for values in (run.log_p, run.log_odds, alphas, shrinkage))
    return np.asarray(_tilted(*arrays))


@jax.jit
def _tilted(log_p: Array, log_odds: Array, alphas: Array, shrinkage: Array) -> Array:
    def row(p: Array, alpha: Array, d: Array) -> Array:
        return jax.nn.log_softmax(d * (p + tilting.tilt(log_odds, alpha)))

    return jax.vmap(jax.vmap(row, (None, 0, 0)), (0, None, 0))(log_p, alphas, shrinkage)


def _tilting(
    run: _Prepared, split: Split, v: Array, relative: np.ndarray, unit: float, shrinkage: Float[np.ndarray, "n K"]
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Lemma B.3: how much of what steering does is a tilt."""
    everyone = np.arange(run.size.steered)
    slopes = tilt.slopes(split, everyone, v, run.log_odds)
    distances = tilt.distances(split, everyone, v, run.log_odds, unit * relative, slopes.scale, shrinkage=shrinkage)
    shares = distances.explained
    data = xr.Dataset(
        {
            "kl": (("tilt", "relative"), distances.kl.mean(axis=1)),
            "explained": (("tilt", "relative"), shares),
            "closest": ("relative", distances.closest.mean(axis=0)),
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


def _concepts(run: _Prepared, swept: curves.Curves, relative: np.ndarray) -> tuple[xr.Dataset, dict[str, Any]]:
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


def _peaks(run: _Prepared, swept: curves.Curves, relative: np.ndarray) -> tuple[xr.Dataset, dict[str, Any]]:
    """Theorem 3.3: how many tokens have one bump, and whether peaks are in the order of the log-odds."""
    peaks = curves.peaks(swept, relative, run.size.likeliest)
    numbers = {
        kind: {
            **curves.shares(peaks.bumps[kind]),
            "kendall": curves.order(peaks, run.log_odds, kind),
            **curves.alike(peaks, kind),
        }
        for kind in swept
    }
    return curves.as_dataset(peaks, run.log_odds), {"peaks": numbers}


def _next_tokens(run: _Prepared, split: Split, v: Array, unit: float) -> xr.Dataset:
    """S, figure A.4: increases of the tokens that are likeliest at the largest strength, by range and context."""
    size, tokenizer = run.size, run.lm.tokenizer
    assert tokenizer is not None
    parts: list[xr.Dataset] = []
    for largest in (size.largest, size.near * unit):
        alphas = np.linspace(0, largest, size.strengths)
        strengths = jnp.asarray(alphas, jnp.float32)
        measured = np.exp(np.asarray(_swept(split, v, strengths)))
        predicted = np.exp(_tilts(run, alphas, np.asarray(_shrinkage(split, v, strengths))))
        top = np.argsort(-measured[: size.shown, -1], axis=-1)[:, :8]
        measured, predicted = (np.take_along_axis(p[: size.shown], top[:, None, :], axis=-1) for p in (measured, predicted))
        parts.append(
            xr.Dataset(
                {
                    "increase": (("context", "strength", "rank"), measured - measured[:, :1]),
                    "predicted": (("context", "strength", "rank"), predicted - predicted[:, :1]),
                    "alpha": ("strength", alphas),
                    "word": (("context", "rank"), [[tokenizer.decode([z]) for z in row] for row in top.tolist()]),
                }
            )
        )
    texts = [tokenizer.decode(row) for row in run.steered[: size.shown]]
    return xr.concat(parts, "range").assign_coords(range=list(RANGES)).assign(text=("context", texts), unit=unit)
