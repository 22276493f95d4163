"""The theory on a real language model: what it says of the last block, of strong steering and of cross-entropy, measured.

Where a statement is exact on a language model (behind its last norm: N7, N8; in the limit: S, proposition 4.1; to second
order: N9), the finding is an error and a tolerance. Where it is about the unconstrained features model (S, theorem 3.3),
the finding is how much of it is left.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float
from tqdm import tqdm

import ufm
from sim.bridge.decoder import softcapped
from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel, Prompts
from sim.bridge.split import Split, end_states
from sim.bridge.unembedding import Readout, readout
from sim.checks.concept_texts import BEGINNINGS, CONCEPTS, OPENINGS, Concept
from sim.directions.extraction import make_vector
from sim.measure.curves import KINDS_OF_CURVE, counts_of_kinds, shapes
from sim.measure.losses import Text, loss_increases, loss_moments
from sim.output import settings
from theory import arc
from ufm import Add, Steering
from ufm._batches import map_in_batches
from ufm._check import require
from ufm.steerable import one_of


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        strengths: of a next-token sweep.
        reach: the largest of them, in lengths of the hidden state.
        angles: of a sweep after the last block.
        far: strengths on each side on which the plateau is approached.
        written: tokens that the model writes after each beginning.
        steps: strengths of a cross-entropy sweep on each side of 0.
        likeliest: tokens at each end of a sweep whose curves are looked at.
    """

    strengths: int = 161
    reach: float = 8.0
    angles: int = 121
    far: int = 11
    written: int = 24
    steps: int = 2
    likeliest: int = 100


SMOKE = Size(strengths=33, angles=31, far=8, written=8, steps=2, likeliest=10)
"""Little of everything."""


class Material(NamedTuple):
    """The texts that a model is tried on.

    Attributes:
        concepts: to steer towards.
        openings: contexts whose next token is looked at.
        beginnings: what the model goes on from by itself.
        foreign: text that it has not written, as one string or as tokens.
    """

    concepts: Sequence[Concept]
    openings: Prompts
    beginnings: Prompts
    foreign: Any


def material() -> Material:
    """English texts: the project's concepts and contexts, and Python's own manual as foreign text."""
    from pydoc_data.topics import topics

    return Material(CONCEPTS, OPENINGS, BEGINNINGS, "\n".join(topics[name] for name in ("assignment", "class", "with")))


@dataclass(frozen=True)
class Finding:
    """What one comparison found.

    Attributes:
        statement: its id.
        about: the concept and the layer.
        what: what was compared.
        value: an error; or, where there is nothing to compare with, what was measured.
        tolerance: the largest error with which the statement holds; None for what is only reported.
    """

    statement: str
    about: str
    what: str
    value: float
    tolerance: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; True for what is only reported."""
        return self.tolerance is None or self.value <= self.tolerance


@dataclass(frozen=True)
class Validation:
    """What was found on a model.

    Attributes:
        model: its name.
        findings: comparison by comparison.
        data: labelled, one group for each figure.
        numbers: settings and whatever else the page shows.
    """

    model: str
    findings: tuple[Finding, ...]
    data: xr.DataTree
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every comparison that has a tolerance is within it."""
        return all(finding.holds for finding in self.findings)

    @property
    def summary(self) -> str:
        """How many comparisons that have a tolerance are within it, in words."""
        judged = [finding for finding in self.findings if finding.tolerance is not None]
        return f"{sum(finding.holds for finding in judged)} of {len(judged)} comparisons hold"

    def as_json(self) -> dict[str, Any]:
        """Everything but the data of the figures."""
        findings = [asdict(finding) | {"holds": finding.holds} for finding in self.findings]
        return {"model": self.model, "holds": self.holds, "findings": findings, "settings": self.numbers}


def as_table(validation: Validation) -> str:
    """The findings as a table for the terminal."""
    lines = [f"{'statement':<18}{'where':<22}{'what':<72}{'value':>11}{'at most':>10}"]
    for finding in validation.findings:
        most = "" if finding.tolerance is None else f"{finding.tolerance:.0e}"
        verdict = "" if finding.tolerance is None else ("holds" if finding.holds else "FAILS")
        place = f"{finding.statement:<18}{finding.about:<22}{finding.what:<72}"
        lines.append(f"{place}{finding.value:>11.2e}{most:>10}  {verdict}".rstrip())
    return "\n".join([*lines, f"{validation.summary} on {validation.model}"])


def validate(
    lm: LanguageModel,
    *,
    statements: Sequence[str] | None = None,
    seed: int = 0,
    size: Size | None = None,
    texts: Material | None = None,
    progress: bool | None = None,
) -> Validation:
    """Check the theory on a language model.

    Args:
        lm: the model, in float32.
        statements: some of `CHECKS`; all if left out.
        seed: of the text that the model writes.
        size: how much is computed.
        texts: concepts and contexts; for a model without a tokenizer, as tokens.
        progress: whether to show a bar.

    Raises:
        ValueError: an unknown statement; one that this module has no comparison for.
    """
    names = chosen(statements)
    run = _Run(lm, size or Size(), texts or material(), seed)
    findings: list[Finding] = []
    parts: dict[str, xr.Dataset] = {}
    with tqdm(
        total=len(names), desc="language model", unit="statement", disable=None if progress is None else not progress
    ) as bar:
        for name in names:
            bar.set_postfix_str(name)
            group, check = CHECKS[name]
            if group not in parts:
                data, comparisons = check(run)
                parts[group] = data
                findings += comparisons
            bar.update()
    kept = tuple(finding for finding in findings if finding.statement in names)
    about = {"model": lm.name, "fingerprint": lm.fingerprint, "layers": run.layers, "size": asdict(run.size)}
    return Validation(lm.name, kept, xr.DataTree.from_dict(parts), settings(seed, **about))


def chosen(statements: Sequence[str] | None) -> list[str]:
    """The statements named, or all that language models are checked on.

    Raises:
        ValueError: an unknown statement; one that this module has no comparison for.
    """
    unknown = [name for name in statements or () if name not in CHECKS]
    require(not unknown, "statement", f"one that language models are checked on ({', '.join(CHECKS)})", ", ".join(unknown))
    return list(statements or CHECKS)


class _Run:
    """A model with what several checks need of it."""

    def __init__(self, lm: LanguageModel, size: Size, texts: Material, seed: int) -> None:
        self.lm, self.size, self.texts, self.seed = lm, size, texts, seed
        count = lm.config.num_layers
        self.layers = sorted({count // 4, count // 2, count - 1})
        self.names = [concept.name for concept in texts.concepts]
        with jax.enable_x64(False):
            self.vectors = {
                concept.name: make_vector(lm, concept.positive, concept.negative, name=concept.name)
                for concept in texts.concepts
            }
            self.openings = lm.split(texts.openings, self.layers[0])

    def v(self, concept: str, layer: int) -> Float[np.ndarray, " d"]:
        """The steering vector of a concept after a layer."""
        return self.vectors[concept][layer]

    def pairs(self) -> Iterable[tuple[str, int]]:
        """Every concept with every layer."""
        return ((name, layer) for name in self.names for layer in self.layers)

    def ends(self, layer: int, dtype: Any = jnp.float32) -> Float[np.ndarray, "n d"]:
        """The stream of the openings after a layer, at the last position."""
        return np.asarray(end_states(self.openings.at(layer)), dtype)

    def words(self, token: int) -> str:
        """A token as a reader sees it."""
        words = self.lm.tokenizer
        return str(token) if words is None else words.decode([token])


def _about(concept: str, layer: int) -> str:
    return f"{concept}, block {layer}"


# --- behind the last norm: N7, N8 -------------------------------------------------------------------------------------


def last_block(run: _Run) -> tuple[xr.Dataset, list[Finding]]:
    """N7 and N8 after the last block: the law and the arc beside the model's own norm and unembedding, in float64."""
    layer, findings, parts = run.lm.config.num_layers - 1, [], []
    states = run.ends(layer, np.float64)
    with jax.enable_x64(True):
        out, wide = readout(run.lm), run.lm.with_dtype(jnp.float64)
        cut = wide.split(run.texts.openings, layer)
        for name in run.names:
            v = jnp.asarray(run.v(name, layer), float)
            sweep = {
                key: np.asarray(value) for key, value in _behind_norm(cut, out, jnp.asarray(states), v, run.size).items()
            }
            worst = {key: float(value.max()) for key, value in sweep.items() if value.ndim == 1}
            about = _about(name, layer)
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
def _behind_norm(cut: Split, out: Readout, states: Array, v: Array, size: Size) -> dict[str, Array]:
    """Errors over a sweep of every hidden state, ``[n]``, the largest; its logits, ``[n, K, V]``; bumps, ``[n, V]``."""
    theta = jnp.linspace(-1.5, 1.5, size.angles)
    paper = jnp.linspace(-200.0, 200.0, 81)

    def of_state(h):
        bends = out.arc(h, v)
        law = arc.law(out.W, out.gamma, out.bias, h, v, kind=out.kind, eps=out.eps)
        bare = arc.law(out.W, out.gamma, out.bias, h, v, kind=out.kind)
        of_eps = arc.eps_bound(out.W, out.gamma, h, v, out.eps, kind=out.kind)
        rate, scale = arc.plateau_rate(bends), 1 + jnp.max(jnp.hypot(bends.A, bends.B))

        def at(alpha):
            logits = cut.decoder.logits(h + alpha * v)

            def off(closed):
                return jnp.abs(logits - softcapped(closed, out.softcap)) / scale

            end = jnp.where(alpha > 0, arc.plateau(bends, 1), arc.plateau(bends, -1))
            bound = (jnp.abs(rate.coefficient) + rate.remainder / jnp.abs(alpha)) / jnp.abs(alpha) / scale
            errors = {
                "law": jnp.max(off(arc.law_logits(law, alpha))),
                "arc": jnp.max(off(arc.logits_at(bends, alpha))),
                "bare": jnp.max(off(arc.law_logits(bare, alpha)) - of_eps / scale),
                "plateau": jnp.where(jnp.abs(alpha) > rate.beyond, jnp.max(off(end) - bound), -jnp.inf),
            }
            return errors, logits

        # The paper's strengths as well, and some that are far out.
        far = 1e3 * rate.beyond * jnp.asarray([-1.0, 1.0])
        errors, logits = jax.lax.map(at, jnp.concatenate([arc.alpha_of_theta(bends, theta), paper, far]), batch_size=16)
        worst = {key: jnp.max(value) for key, value in errors.items()}
        return worst | {"eps": jnp.max(of_eps), "logits": logits[: size.angles], "bumps": arc.bumps(bends, points=1024)}

    return jax.lax.map(of_state, states)


def _shown(run: _Run, sweep: dict[str, np.ndarray], out: Readout, h: np.ndarray, v: Array) -> xr.Dataset:
    """The sweep of the first hidden state as data: the logits of a few tokens, and the bumps of all."""
    logits, theta = sweep["logits"][0], np.linspace(-1.5, 1.5, run.size.angles)
    tokens = _distinct(logits)
    bends = jax.tree.map(lambda leaf: leaf[tokens] if leaf.ndim else leaf, out.arc(jnp.asarray(h), v))
    fine = np.linspace(-1.5, 1.5, 401)
    return xr.Dataset(
        {
            "predicted": (("theta", "slot"), np.asarray(jax.vmap(partial(arc.arc_logits, bends))(jnp.asarray(fine)))),
            "alpha": ("theta", np.asarray(arc.alpha_of_theta(bends, jnp.asarray(fine)))),
            "measured": (("strength", "slot"), logits[:, tokens]),
            "strengths": ("strength", np.asarray(arc.alpha_of_theta(bends, jnp.asarray(theta)))),
            "plateau_low": ("slot", np.asarray(arc.plateau(bends, -1))),
            "plateau_high": ("slot", np.asarray(arc.plateau(bends, 1))),
            "id": ("slot", tokens),
            "word": ("slot", np.asarray([run.words(int(z)) for z in tokens])),
            "bumps": ("token", sweep["bumps"][0]),
            "centre": float(bends.centre),
            "width": float(bends.width),
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


# --- strong steering: proposition 4.1 --------------------------------------------------------------------------------


def plateaus(run: _Run) -> tuple[xr.Dataset, list[Finding]]:
    """Proposition 4.1 with its rate, in float64: at every layer, steering forgets the prompt like ``C / |alpha|`` (N11)."""
    findings, parts = [], []
    with jax.enable_x64(True):
        wide, out = run.lm.with_dtype(jnp.float64), readout(run.lm)
        cuts = {layer: wide.split(run.texts.openings, layer) for layer in run.layers}
        for name, layer in run.pairs():
            arrays = _approach(cuts[layer], out, jnp.asarray(run.v(name, layer), float), run.size.far)
            approach = {key: np.asarray(value) for key, value in arrays.items()}
            sizes, distance, leading = approach["sizes"], approach["distance"], approach["leading"]
            # The rate, where it is the leading term and not yet rounding; rounding of the sizes themselves decides nothing.
            decades = np.log10(sizes / sizes[0]).round(6)
            clean = (decades >= 4) & (decades <= 6)
            slopes = [np.polyfit(np.log(sizes[clean]), np.log(row[clean]), 1)[0] for row in distance]
            ratio = distance[:, clean] * sizes[clean] / leading[:, None]
            about = _about(name, layer)
            findings += [
                Finding(
                    "proposition-4.1",
                    about,
                    "distance to the limit beyond its bound, in logits",
                    approach["beyond"].max(),
                    1e-9,
                ),
                Finding("proposition-4.1", about, "exponent of the rate, less -1", np.abs(np.add(slopes, 1)).max(), 0.01),
                Finding(
                    "N11",
                    about,
                    "leading coefficient of the rate, relative error",
                    np.abs(ratio - 1).max(),
                    0.01,
                ),
            ]
            parts.append(
                xr.Dataset(
                    {
                        "distance": (("sign", "size"), distance),
                        "bound": (("sign", "size"), approach["bound"]),
                        "leading": ("sign", leading),
                        "strengths": ("size", sizes),
                    },
                    coords={"sign": [-1, 1]},
                )
            )
    return _by_pair(run, parts), findings


@partial(jax.jit, static_argnames="count")
def _approach(cut: Split, out: Readout, v: Array, count: int) -> dict[str, Array]:
    """How far the logits of all contexts are from their limit at large strengths of both signs, and what is said of it."""
    states, steering = cut.embed(jnp.arange(cut.n_contexts)), Steering(Add(v))
    own = states.stream[:, -1]
    sizes = jnp.max(jnp.linalg.norm(own, axis=-1)) / jnp.linalg.norm(v) * jnp.geomspace(1, 1e7, count)

    def of(sign, limit):
        def at(size):
            x = cut.before_norm(states, steering, sign * size)
            reach = jnp.max(jnp.linalg.norm(x - sign * size * v, axis=-1))
            bound = arc.limit_bound(out.W, out.gamma, v, size, reach, kind=out.kind, eps=out.eps)
            off = jnp.abs(cut.decoder.logits(x) - limit)
            return jnp.max(off), jnp.max(off - bound), jnp.max(bound)

        # What blocks add once the prompt is forgotten: they are given v alone, so large that their eps plays no part.
        huge = sign * 100 * sizes[-1]
        nothing = one_of(replace(states, stream=jnp.zeros_like(states.stream)), 0)
        added = cut.before_norm(nothing, steering, huge) - huge * v
        ones = jnp.ones(())
        leading = jax.jvp(lambda t: cut.decoder.logits(sign * v + t * (own + added)), (0 * ones,), (ones,))[1]
        return *map_in_batches(at, sizes, cut.together), jnp.max(jnp.abs(leading))

    both = [of(sign, out.limit(v, sign)) for sign in (-1, 1)]
    distance, beyond, bound, leading = (jnp.stack(parts) for parts in zip(*both, strict=True))
    return {"sizes": sizes, "distance": distance, "beyond": beyond, "bound": bound, "leading": leading}


# --- cross-entropy: N9 -----------------------------------------------------------------------------------------------


def curvatures(run: _Run) -> tuple[xr.Dataset, list[Finding]]:
    """N9: the coefficient of alpha^2 in KL by one JVP, against a fine sweep; and Delta CE on own and foreign text.

    On text that the model drew, the slope of the loss at 0 is a sum of terms of mean 0, each given the ones before it, with
    variances that N9 knows: twice its coefficient. So the standard error of the linear term is known too.
    """
    texts = dict(zip(("own", "foreign"), _texts(run), strict=True))
    findings, parts = [], []
    for name, layer in run.pairs():
        about, v = _about(name, layer), run.v(name, layer)
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
        ]
        parts.append(
            xr.Dataset(
                {
                    "cross_entropy": (("text", "strength"), np.asarray([curve[0] for curve in curves.values()])),
                    "divergence": (("text", "strength"), np.asarray([curve[1] for curve in curves.values()])),
                    "curvature": ("text", [moment.curvature for moment in moments.values()]),
                    "slope": ("text", [moment.slope for moment in moments.values()]),
                    "slope_error": ("text", [moment.error for moment in moments.values()]),
                    "strengths": ("strength", alphas),
                },
                coords={"text": list(texts)},
            )
        )
    return _by_pair(run, parts), findings


def _texts(run: _Run) -> tuple[Text, Text]:
    """Text that the model wrote, and text that it did not, as rows of one length."""
    lm, new = run.lm, run.size.written
    with jax.enable_x64(False):
        written = lm.generate(
            run.texts.beginnings, max_new_tokens=new, sampling=Sampling(temperature=1.0), seed=run.seed, stop=False
        )
        ids, seen = lm.contexts(run.texts.beginnings)
    rows = [[*row[mask].tolist(), *more] for row, mask, more in zip(ids, seen, written.tokens, strict=True)]
    length = max(len(row) for row in rows)
    tokens = run.texts.foreign
    if isinstance(tokens, str):
        tokens = lm.contexts([tokens[: 12 * length * len(rows)]])[0][0].tolist()
    others = [tokens[k * length : (k + 1) * length] for k in range(len(rows))]
    require(all(len(row) == length for row in others), "foreign", f"at least {length * len(rows)} tokens", len(tokens))
    starts = np.asarray([len(row) - new for row in rows])
    place = np.arange(length - 1)
    padding = np.asarray([length - len(row) for row in rows])
    # Position t predicts token t + 1.
    mine = place[None, :] + 1 >= (starts + padding)[:, None]
    return Text(rows, mine), Text(others, np.broadcast_to(place + 1 >= starts.min(), mine.shape))


def _fine(lm: LanguageModel, text: Text, v: np.ndarray, layer: int) -> tuple[float, float]:
    """The curvature by JVP, and that of a polynomial through a fine sweep, in float64."""
    wide = v.astype(float)
    exact = loss_moments(lm, text, wide, layer).curvature
    # KL is a millionth of a nat at the ends: small enough for few terms, large enough for float64.
    places = np.asarray([-1.0, -2 / 3, -1 / 3, 1 / 3, 2 / 3, 1.0])
    alphas = np.sqrt(1e-6 / exact) * places
    divergence = loss_increases(lm, text, wide, layer, alphas)[1]
    return exact, float(np.polynomial.polynomial.polyfit(places, divergence / alphas**2, 4)[0])


# --- next-token curves: theorem 3.3 ----------------------------------------------------------------------------------


@jax.jit
def _swept(cut: Split, v: Array, alphas: Array) -> Array:
    """Log-probabilities of the next token, ``[n, K, V]``."""
    contexts = jnp.arange(cut.tokens.shape[0])
    return ufm.sweep(cut, contexts, v, alphas, lambda logits, _: jax.nn.log_softmax(logits))


def next_tokens(run: _Run) -> tuple[xr.Dataset, list[Finding]]:
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
                Finding("theorem-3.3.bump", _about(name, layer), f"share of tokens with {kind}", float(share))
                for kind, share in zip(KINDS_OF_CURVE, shares, strict=True)
            ]
            findings.append(
                Finding(
                    "theorem-3.3.bump",
                    _about(name, layer),
                    "share that another count has with half the strengths",
                    float(data["unsettled"]),
                )
            )
    return _by_pair(run, parts), findings


def _shapes(run: _Run, probabilities: Float[np.ndarray, "n K V"], alphas: np.ndarray, scale: float):
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


def _by_pair(run: _Run, parts: list[xr.Dataset]) -> xr.Dataset:
    """Datasets of every concept and layer as one."""
    rows = [xr.concat(parts[k : k + len(run.layers)], "layer") for k in range(0, len(parts), len(run.layers))]
    return xr.concat(rows, "concept").assign_coords(concept=run.names, layer=run.layers)


Check = Callable[[_Run], tuple[xr.Dataset, list[Finding]]]

CHECKS: dict[str, tuple[str, Check]] = {
    "N7": ("last_block", last_block),
    "N8.arc": ("last_block", last_block),
    "N8.plateau": ("last_block", last_block),
    "N8.bumps": ("last_block", last_block),
    "proposition-4.1": ("plateaus", plateaus),
    "N11": ("plateaus", plateaus),
    "N9": ("curvatures", curvatures),
    "theorem-3.3.bump": ("next_tokens", next_tokens),
}
"""Statements that are checked on language models: the group of their data, and what computes it."""
