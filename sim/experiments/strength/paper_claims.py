"""The claims of S about real models, each as a number with an uncertainty and a verdict on the run at hand.

A claim is tested as it is said: "most tokens exhibit a bump" wants a share above one half. It holds or fails if the 95 %
interval of its number lies on one side of what is wanted (`sim.measure.intervals`), and is open otherwise. It is also open,
with the reason, where the data could not have shown the contrary: that there is no effect, where none of a size that matters
would have been seen; what is said of infinite strengths, where a curve still moves at the end of its sweep; what is said of
a sweep, where all of its strengths are weak. A claim that fails is reported as one that fails.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import stats

from sim.directions.opinions import NO_ANSWER, SHOWN
from sim.experiments.experiment import Experiment
from sim.experiments.settings import Variant
from sim.experiments.strength.concept import MISSING
from sim.measure import intervals
from sim.measure.curves import KINDS_OF_CURVE, Sigmoid, counts_of_kinds, sigmoid
from sim.measure.curves import shapes as shapes_of
from sim.measure.intervals import Estimate
from sim.output import finite_or_none

NOTICED = 0.5
"""Nats: a linear term of this size, at a strength that costs one nat, has to be visible before there is said to be none."""

SIGNIFICANT = 3.0
"""Standard errors from 0 at which a number differs from it."""

SETTLED = 0.1
"""How much of its limit a curve may still change by between half of the largest strength and that strength. As the distance
to the limit falls like 1 / alpha (proposition 4.1, N11), the change between the two is about what is left."""

WEAK = 0.25
"""Lengths of the hidden state: what a sweep does whose strengths all add less is not what strong steering does."""

LEFT = 0.25
"""How much a curve may still change between half of the largest strength and that strength, of the change that it has behind
it, even where that is little. Near 0 it is a half, or more."""

NEAR = 0.1
"""Nats: a strength that costs more is not near 0, so that a quadratic term need not be seen at it."""

ALIKE = 1e-6
"""Fits that differ by less are of the same values."""

MEASURES = ("answer", "lexicon", "ratio")
"""Whether a text shows a concept: the judge says so; a word of the lexicon is in it; it is likelier once announced."""


@dataclass(frozen=True)
class PaperClaim:
    """One claim, tested.

    Attributes:
        source: the theorem, figure or section that makes the claim.
        says: the claim in words.
        about: the concept, block and text that the claim is tested on.
        what: the name of the number that is compared.
        value, low, high: it and the ends of its 95 % interval; NaN where there is none.
        least, most: limits of the value; None for no limit. A claim without limits is only reported.
        basis: what the interval was made of, such as "2 contexts".
        blind: why the data could not have shown the contrary, if so: they are too few, or the measure behind the number has
            not been shown to separate texts that show the concept from others. The verdict is then "open".
        trial: whether it rests on a trial, which decides nothing. Its number is that of other runs, if less certain.
        group: the group of data that the claim rests on.
    """

    source: str
    says: str
    about: str
    what: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    least: float | None = None
    most: float | None = None
    basis: str = ""
    blind: str = ""
    trial: bool = False
    group: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def verdict(self) -> str:
        """ "holds", "fails", "open" or "reported"."""
        if self.least is None and self.most is None:
            return "reported"
        if self.blind or self.trial or not np.isfinite([self.value, self.low, self.high]).all():
            return "open"
        above, below = self.least is None or self.low >= self.least, self.most is None or self.high <= self.most
        out = (self.least is not None and self.high < self.least) or (self.most is not None and self.low > self.most)
        return "fails" if out else "holds" if above and below else "open"

    @property
    def reason(self) -> str:
        """Why the verdict is "open"; nothing for other verdicts."""
        if self.verdict != "open":
            return ""
        if not np.isfinite(self.value):
            return "there is no number"
        if self.blind or self.trial:
            return self.blind or "a trial decides nothing"
        return "the interval is too wide" if np.isfinite([self.low, self.high]).all() else "there is no interval"

    @property
    def wanted(self) -> str:
        """The limits of the value, in words."""
        ends = [f"at least {self.least:g}"] if self.least is not None else []
        ends += [f"at most {self.most:g}"] if self.most is not None else []
        return ", ".join(ends)

    def as_json(self) -> dict[str, Any]:
        """The claim as plain data, with None for NaN."""
        data = asdict(self) | {"verdict": self.verdict, "reason": self.reason}
        return {name: finite_or_none(value) for name, value in data.items()}


@dataclass(frozen=True)
class TestedClaims:
    """The claims of a run, and the data that they rest on.

    Attributes:
        claims: one by one.
        data: labelled data derived from the measurements, for figures.
    """

    claims: tuple[PaperClaim, ...]
    data: dict[str, xr.Dataset]


def claims(experiment: Experiment) -> TestedClaims:
    """Test the claims that the data of a run allow."""
    made: list[PaperClaim] = []
    data: dict[str, xr.Dataset] = {}
    for group, test in TESTS.items():
        if experiment.store.finished(group):
            for claim in test(experiment, data):
                made.append(replace(claim, group=group))
    return TestedClaims(tuple(made), data)


# --- next-token curves ------------------------------------------------------------------------------------------------


def _of_next_token(experiment: Experiment, data: dict[str, xr.Dataset]) -> Iterator[PaperClaim]:
    curves = experiment.store.data("next-token")
    data["shapes"] = shapes(curves)
    data["dominating"] = dominating(experiment, curves)
    yield from _of_bumps(experiment, curves, data["shapes"]["share"])
    for concept, layer in _pairs(curves):
        weak = _weak(experiment, curves["alpha"].values[0], concept, layer)
        yield from _of_order(experiment, data, concept, layer, weak)
        yield from _of_ends(curves.sel(concept=concept, layer=layer).isel(variant=0), _about(concept, layer), weak)
    yield from _of_resamples(experiment, curves)


def _weak(
    experiment: Experiment, alphas: Float[np.ndarray, " K"], concept: str, layer: int, variant: Variant | None = None
) -> str:
    """Why a sweep could not show what steering does, if its largest strength is weak; else nothing."""
    lengths = np.abs(alphas).max() * experiment.lengths_added(concept, layer, variant)
    if lengths >= WEAK:
        return ""
    return f"the largest strength adds {lengths:.2g} lengths of the hidden state, and less than {WEAK:g} decide nothing"


def _of_bumps(experiment: Experiment, curves: xr.Dataset, shares: xr.DataArray) -> Iterator[PaperClaim]:
    """How many of the likeliest tokens have one bump, under every variant."""
    main = str(curves["variant"].values[0])
    for steered, alphas in zip(experiment.settings.steered, curves["alpha"].values, strict=True):
        variant = steered.name
        if variant.startswith("resampled"):
            continue
        for concept, layer in _pairs(curves):
            share = shares.sel(variant=variant, concept=concept, layer=layer, kind=KINDS_OF_CURVE[0])
            if np.isnan(share).all():
                continue
            yield PaperClaim(
                "S, theorem 3.3",
                "most tokens show one bump",
                _about(concept, layer) + ("" if variant == main else f", {variant}"),
                "share of the likeliest tokens",
                *intervals.within(intervals.mean(share.values), 0, 1),
                least=0.5,
                basis=_contexts(share.values),
                blind=_weak(experiment, alphas, concept, layer, steered),
            )


def _of_order(
    experiment: Experiment, data: dict[str, xr.Dataset], concept: str, layer: int, weak: str
) -> Iterator[PaperClaim]:
    """Where bumps are, and which tokens dominate in the end, against the log-odds."""
    about, bumps = _about(concept, layer), data["shapes"]
    yield PaperClaim(
        "S, theorem 3.3",
        "bumps tend to come in the order of the log-odds",
        about,
        "Kendall's tau of single bumps and log-odds, among tokens of one end",
        *order(bumps, str(bumps["variant"].values[0]), concept, layer),
        least=0.0,
        basis=_contexts(bumps["peak"].sel(concept=concept, layer=layer).isel(variant=0).values),
        blind=weak,
    )
    percentiles = data["dominating"]["percentile"].sel(concept=concept, layer=layer)
    last = layer == experiment.lm.config.num_layers - 1
    yield PaperClaim(
        "S, section 5",
        f"tokens that dominate {'have' if last else 'need not have'} extreme log-odds",
        about,
        "mean percentile of their log-odds",
        *intervals.within(intervals.mean(percentiles), 0, 1),
        least=0.99 if last else None,
        most=None if last else 0.99,
        basis=_counted(percentiles.values, "token"),
        blind=weak,
    )


def _of_ends(sweeps: xr.Dataset, about: str, weak: str) -> Iterator[PaperClaim]:
    """How the logits of all tokens begin to move, and where they end."""
    yield PaperClaim(
        "S, lemma B.4",
        "logits begin to move along the log-odds",
        about,
        "correlation of their slopes at 0 with the log-odds",
        *intervals.within(intervals.mean(sweeps["agreement"]), -1, 1),
        basis=_contexts(sweeps["agreement"].values),
    )
    for k, side in enumerate(("low", "high")):
        apart = sweeps["apart"].isel(side=k)
        claim = PaperClaim(
            "S, proposition 4.1",
            "strong steering forgets the prompt",
            f"{about}, {side} end",
            "total variation to the limit",
            *intervals.within(intervals.mean(apart), 0, 1),
            most=0.1,
            basis=_contexts(apart.values),
            blind=weak,
        )
        yield _of_limit(claim, *(float(np.mean(changes)) for changes in _changes(sweeps, k)))


def _changes(sweeps: xr.Dataset, side: int) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Total variation on the tokens kept: from half of the strength at an end to it, and from 0 to it, by context."""
    alphas, p = sweeps["alpha"].values, np.exp(sweeps["log_p"].transpose("context", "strength", "slot").values.astype(float))
    end = (0, -1)[side]
    half = int(np.argmin(np.abs(alphas - alphas[end] / 2)))
    changes = []
    for row, tokens in zip(p, sweeps["token"].transpose("context", "slot").values, strict=True):
        _, slots = np.unique(tokens, return_index=True)
        changes.append([np.abs(row[end, slots] - row[start, slots]).sum() / 2 for start in (half, alphas.size // 2)])
    last, whole = np.transpose(changes)
    return last, whole


def _of_limit(claim: PaperClaim, last: float, whole: float) -> PaperClaim:
    """A claim about infinite strength: it does not fail where a curve still moves at the end of its sweep.

    Args:
        claim: about the limit of a curve.
        last, whole: how much it changes between half of the largest strength and that strength, and between 0 and that
            strength, of what its limit is.
    """
    moving = claim.verdict != "holds" and last > min(SETTLED, LEFT * whole)
    return replace(claim, blind=claim.blind or ("the curve still moves at the end of the sweep" if moving else ""))


def shapes(curves: xr.Dataset) -> xr.Dataset:
    """The shares of the likeliest tokens at either end with one bump, none or several; and where single bumps are.

    `share` by variant, concept, layer, context and kind; `peak`, the strength of the single bump of the token in a slot, in
    lengths of the hidden state, and its `log_odds`; NaN where there is no single bump or another slot has the same token.
    """
    dims = ("variant", "concept", "layer", "context")
    size = [curves.sizes[dim] for dim in dims]
    share = np.full((*size, 3), np.nan)
    peak = np.full((*size, curves.sizes["slot"]), np.nan)
    for place in np.ndindex(*size):
        sweep = curves.isel(dict(zip(dims, place, strict=True)))
        if sweep["token"].values[0] < 0:
            continue
        _, slots = np.unique(sweep["token"].values, return_index=True)
        bumps = shapes_of(np.exp(sweep["log_p"].values.astype(float))[:, slots].T)
        peak[(*place, slots[bumps.single])] = sweep["alpha"].values[bumps.place[bumps.single]] / float(sweep["scale"])
        share[place] = counts_of_kinds(bumps.bumps) / slots.size
    coords = {dim: curves[dim].values for dim in dims} | {"kind": list(KINDS_OF_CURVE)}
    return xr.Dataset(
        {
            "share": ((*dims, "kind"), share),
            "peak": ((*dims, "slot"), peak),
            "log_odds": ((*dims, "slot"), np.where(np.isnan(peak), np.nan, curves["log_odds"].values)),
        },
        coords,
    )


def order(data: xr.Dataset, variant: str, concept: str, layer: int) -> Estimate:
    """Kendall's tau of the places of single bumps and log-odds, over pairs of tokens of one context and one end of a sweep.

    Pairs across the ends would say nothing: a token is kept because it is likely at one of them, where log-odds have the
    sign of the strength. The interval is as wide as without any order, or as the contexts differ if that is more. Their
    tokens are much the same, so that more contexts do not narrow the former.
    """
    sweeps = data[["peak", "log_odds"]].sel(variant=variant, concept=concept, layer=layer).transpose("context", "slot")
    half, contexts = sweeps.sizes["slot"] // 2, []
    for peak, odds in zip(sweeps["peak"].values, sweeps["log_odds"].values, strict=True):
        ends = [_concordance(peak[part], odds[part]) for part in (slice(None, half), slice(half, None))]
        score, spread, pairs = np.sum(ends, axis=0)
        if pairs:
            contexts.append((score / pairs, spread / pairs**2))
    if not contexts:
        return Estimate.none()
    taus, variances = np.transpose(contexts)
    at_random = stats.norm.ppf((1 + intervals.LEVEL) / 2) * np.sqrt(np.mean(variances))
    apart = intervals.mean(taus)
    half_width = np.fmax(at_random, (apart.high - apart.low) / 2)
    return intervals.within(intervals.around(float(np.mean(taus)), float(half_width)), -1, 1)


def _concordance(peak: Float[np.ndarray, " n"], odds: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Pairs of one-bump tokens in order less those out of it, its variance without order, and pairs without ties."""
    single = np.isfinite(peak)
    n = int(single.sum())
    signs = np.sign(np.subtract.outer(peak[single], peak[single]) * np.subtract.outer(odds[single], odds[single]))
    upper = signs[np.triu_indices(n, 1)]
    return float(upper.sum()), n * (n - 1) * (2 * n + 5) / 18, float((upper != 0).sum())


def dominating(experiment: Experiment, curves: xr.Dataset, count: int = 8) -> xr.Dataset:
    """The likeliest tokens at the largest strength: at which percentile their log-odds are among all tokens'."""
    half = curves.sizes["slot"] // 2
    count = min(count, half)
    likeliest = curves.isel(variant=0, slot=slice(half, half + count))
    dims = ("concept", "layer", "context", "slot")
    ranks = []
    for concept in likeliest["concept"].values:
        below = stats.rankdata(experiment.log_odds(str(concept))) / experiment.lm.config.vocab_size
        ranks.append(below[np.maximum(likeliest["token"].sel(concept=concept).values, 0)])
    percentile = np.where(likeliest["token"].transpose(*dims).values >= 0, np.stack(ranks), np.nan)
    coords = {dim: likeliest[dim].values for dim in dims[:3]} | {"rank": np.arange(count)}
    return xr.Dataset({"percentile": ((*dims[:3], "rank"), percentile)}, coords)


def _of_resamples(experiment: Experiment, curves: xr.Dataset) -> Iterator[PaperClaim]:
    names = [str(name) for name in curves["variant"].values if str(name).startswith("resampled")]
    if len(names) < 2:
        return
    half = curves.sizes["slot"] // 2
    for concept in curves["concept"].values:
        sweeps = curves.sel(variant=names, concept=concept, layer=experiment.settings.middle).isel(context=0)
        rises = []
        for token in (
            curves["token"]
            .sel(concept=concept, layer=experiment.settings.middle)
            .isel(variant=0, context=0)
            .values[half:][:8]
        ):
            increases = []
            for k in range(len(names)):
                slots = np.flatnonzero(sweeps["token"].values[k] == token)
                if slots.size:
                    log_p, start = sweeps["log_p"].values[k, :, slots[-1]], sweeps["start"].values[k, slots[-1]]
                    increases.append(np.exp(log_p.astype(float)) - np.exp(float(start)))
            if len(increases) > 1:
                rises.append(np.std(increases, axis=0, ddof=1).max() / max(np.abs(np.mean(increases, axis=0)).max(), 1e-12))
        yield PaperClaim(
            "S, figure A.3",
            "other texts of the same kind give much the same curves",
            _about(str(concept), experiment.settings.middle),
            "largest deviation over largest rise, mean of tokens",
            *intervals.within(intervals.mean(rises), 0),
            most=0.5,
            basis=_counted(np.asarray(rises), "token"),
            blind=_weak(experiment, curves["alpha"].values[0], str(concept), experiment.settings.middle),
        )


# --- concept probability ----------------------------------------------------------------------------------------------


def _of_concept(experiment: Experiment, data: dict[str, xr.Dataset]) -> Iterator[PaperClaim]:
    shown = experiment.store.data("concept")
    data["presence"], sides = presence(shown), experiment.store.data("judge")
    data["fits"] = sigmoids(data["presence"], experiment.seed("fits"))
    blind: dict[tuple[str, str], str] = {}
    for concept in shown["concept"].values:
        texts, name = sides.sel(concept=concept), str(concept)
        answers = shown["answer"].sel(concept=concept).values
        rate = (answers == NO_ANSWER).mean()
        yield PaperClaim("judge", "the judge answers", name, "share of completions without an answer of 0 or 1", rate)
        for measure, variable in (("score", "score"), ("lexicon", "in_lexicon"), ("ratio", "ratio")):
            values = texts[variable].where(texts["answer"] != MISSING)
            positive, negative = (intervals.finite(values.sel(side=side).values) for side in ("positive", "negative"))
            says = f"the {measure} tells the concept's texts from the others"
            told = PaperClaim(
                "judge",
                says,
                name,
                "AUC",
                *intervals.auc(positive, negative),
                least=0.7,
                basis=f"{positive.size} and {negative.size} texts",
            )
            yield told
            if told.verdict != "holds":
                key = ("answer" if measure == "score" else measure, name)
                blind[key] = "this opinion has not been shown to tell the concept's texts from others"
    weak = {place: _weak(experiment, shown["alpha"].values, *place) for place in _pairs(shown)}
    for measure in MEASURES:
        for concept, layer in _pairs(shown):
            fit = data["fits"].sel(concept=concept, layer=layer, measure=measure)
            judged = data["presence"]["shown"].sel(concept=concept, layer=layer, measure=measure)
            basis = f"{judged.sizes['prompt'] * judged.sizes['completion']} completions at each strength"
            why_blind = blind.get((measure, concept), "") or weak[concept, layer]
            yield PaperClaim(
                "S, theorem 3.6",
                f"concept probability is a sigmoid ({measure})",
                _about(concept, layer),
                "R² of a fitted tanh",
                *_estimate(fit, "r_squared", "low", "high"),
                least=0.8,
                basis=f"{basis}, drawn again",
                blind=why_blind,
            )
            yield PaperClaim(
                "S, theorem 3.6",
                f"steering raises it ({measure})",
                _about(concept, layer),
                "probability at the largest strength less that at the lowest",
                *_estimate(fit, "rise", "rise_low", "rise_high"),
                least=0.05,
                basis=basis,
                blind=why_blind,
            )


def presence(shown: xr.Dataset) -> xr.Dataset:
    """Which completions show the concept by each measure: 1, 0, or NaN where it says nothing; and the strengths."""
    answer = shown["answer"].where((shown["answer"] == SHOWN) | (shown["answer"] == 0))
    in_lexicon = (shown["in_lexicon"] > 0).where(shown["in_lexicon"] >= 0).astype(float)
    likelier = (shown["ratio"] > 0).where(np.isfinite(shown["ratio"])).astype(float)
    both = xr.concat([answer.astype(float), in_lexicon, likelier], dim="measure").assign_coords(measure=list(MEASURES))
    return both.rename("shown").to_dataset().assign(alpha=shown["alpha"])


def sigmoids(data: xr.Dataset, seed: int, samples: int = 40) -> xr.Dataset:
    """A tanh fitted to the concept probability of every concept, layer and measure.

    `low` and `high` are the ends of the interval of R², by bootstrap over completions; `rise` is the share at the largest
    strength less that at the lowest.
    """
    dims = ("measure", "concept", "layer")
    alphas, size = data["alpha"].values, [data.sizes[dim] for dim in dims]
    names = (*Sigmoid._fields, "low", "high", "rise", "rise_low", "rise_high")
    values = {name: np.full(size, np.nan) for name in names}
    rng = np.random.default_rng(seed)
    texts = data["shown"].transpose(*dims, "strength", "prompt", "completion").values
    texts = texts.reshape(*size, alphas.size, -1)
    for place in np.ndindex(*size):
        if np.isnan(texts[place]).all(axis=-1).any():
            continue
        curve = np.nanmean(texts[place], axis=-1)
        fit = _fit(alphas, curve)
        again, n = [], texts.shape[-1]
        for _ in range(samples):
            sample = texts[place][:, rng.integers(0, n, n)]
            if not np.isnan(sample).all(axis=-1).any():
                drawn = np.nanmean(sample, axis=-1)
                again.append(_fit(alphas, drawn, fit if np.isfinite(fit.r_squared) else None).r_squared)
        # Samples of n values that are drawn from n spread less than others would.
        half = intervals.student(n) * _deviation(again) * np.sqrt(n / max(n - 1, 1))
        ends = intervals.within(intervals.around(fit.r_squared, half), most=1)
        new = (*fit, *ends[1:], *intervals.difference(texts[place][0], texts[place][-1]))
        for name, value in zip(names, new, strict=True):
            values[name][place] = value
    return xr.Dataset({name: (dims, value) for name, value in values.items()}, {dim: data[dim].values for dim in dims})


def _fit(alphas: Float[np.ndarray, " K"], curve: Float[np.ndarray, " K"], start: Sigmoid | None = None) -> Sigmoid:
    """The sigmoid of a curve; NaN if it does not change, or has so few points that there is nothing to explain."""
    if alphas.size < 5 or np.ptp(curve) == 0:
        return Sigmoid(*[float("nan")] * 4)
    return sigmoid(alphas, curve, start)


# --- cross-entropy and questions --------------------------------------------------------------------------------------


def _of_cross_entropy(experiment: Experiment, data: dict[str, xr.Dataset]) -> Iterator[PaperClaim]:
    del data
    curves = experiment.store.data("cross-entropy")
    for concept, layer in _pairs(curves):
        both = {kind: curves.sel(concept=concept, layer=layer, text=kind) for kind in ("foreign", "own")}
        about = _about(concept, layer)
        foreign = both["foreign"]
        slopes = foreign["slope"].values.astype(float)
        yield _no_slope(
            "S, theorem 3.8",
            "no linear term on text of others",
            f"{about}, foreign text",
            slopes.mean(),
            slopes.std(ddof=1) / np.sqrt(slopes.size) if slopes.size > 1 else float("nan"),
            float(foreign["curvature"].mean()),
            slopes.size,
            basis=_counted(slopes, "block"),
        )
        predicted = experiment.settings.cross_entropy.tokens - 1
        yield from _of_parabola(both["own"], about, predicted, experiment.lm.decoder.dtype)
        weak = _weak(experiment, curves["alpha"].values, concept, layer)
        for kind, sweep in both.items():
            yield from _of_cost(sweep, f"{about}, {kind} text", weak)


def _of_parabola(own: xr.Dataset, about: str, tokens: int, dtype: Any) -> Iterator[PaperClaim]:
    """The linear and the quadratic term on text of the model's own, so many tokens in each block, in a type of numbers."""
    slope, kappa = float(own["slope"].mean()), float(own["curvature"].mean())
    deviation = np.sqrt(2 * kappa / (tokens * own.sizes["block"]))
    yield _no_slope(
        "S, theorem 3.8; N9",
        "no linear term on its own text",
        f"{about}, own text",
        slope,
        deviation,
        kappa,
        basis="its error is known from N9",
    )
    alphas = own["alpha"].values
    near = np.flatnonzero(alphas > 0)[0]
    a = float(alphas[near])
    cost = own["divergence"].isel(strength=[near, alphas.size - 1 - near]).mean("strength").values
    pair = cost / a**2
    claim = PaperClaim(
        "S, theorem 3.8; N9",
        "the quadratic term is N9's",
        f"{about}, own text",
        f"KL / alpha² at ±{a:.2g} over the curvature",
        *intervals.ratio(pair, own["curvature"].values),
        least=0.8,
        most=1.25,
        basis=_counted(pair, "block"),
    )
    yield replace(claim, blind="" if claim.verdict == "holds" else _out_of_sight(float(cost.mean()), dtype))


def _out_of_sight(cost: float, dtype: Any) -> str:
    """Why the quadratic term cannot be seen at a strength that costs so many nats; nothing if it can."""
    # Logits are of the size 10, and KL is quadratic in their errors: at a hundred times as much, a fifth of it is in doubt.
    rounding = 100 * (10 * float(jnp.finfo(dtype).eps)) ** 2
    if cost > NEAR:
        return f"the smallest strength costs {cost:.2g} nats, and more than {NEAR:g} are not near 0"
    return f"the smallest strength costs {cost:.2g} nats, which rounding can make" if cost < rounding else ""


def _no_slope(
    source: str, says: str, about: str, slope: float, error: float, kappa: float, count: int | None = None, *, basis: str
) -> PaperClaim:
    """That a slope is 0, as far as its standard error lets one see.

    Args:
        source, says, about: of the claim.
        slope, error: it and its standard error.
        kappa: KL over alpha^2 at small strengths, which says what a strength costs.
        count: how many values the error was estimated from; None if it is known.
        basis: what the error comes from.
    """
    reach, score = SIGNIFICANT, abs(slope / error)
    if count is not None:
        # As rare under Student's distribution as under the normal one.
        reach = float(stats.t.isf(stats.norm.sf(SIGNIFICANT), count - 1))
        score = float(stats.norm.isf(stats.t.sf(score, count - 1)))
    seen = reach * error / np.sqrt(kappa) <= NOTICED
    what = "|slope| in standard errors"
    blind = (
        "" if seen or score > SIGNIFICANT else f"a slope of {NOTICED:g} nats where KL is one nat would not have been seen"
    )
    return PaperClaim(source, says, about, what, score, score, score, most=SIGNIFICANT, basis=basis, blind=blind)


def _of_cost(sweep: xr.Dataset, about: str, weak: str) -> Iterator[PaperClaim]:
    """The claims about the least and the final cost of steering on text of one kind."""
    alphas, increase = sweep["alpha"].values, sweep["increase"]
    worst = int(np.argmin(np.where(alphas == 0, np.inf, increase.mean("block").values)))
    yield PaperClaim(
        "S, section 5",
        "steering always costs",
        about,
        f"smallest increase of cross-entropy, at {alphas[worst]:.2g}, nats",
        *intervals.mean(increase.isel(strength=worst)),
        least=0.0,
        basis=_counted(increase.isel(strength=worst).values, "block"),
        blind=weak,
    )
    mean = increase.mean("block").values
    for k, (side, end) in enumerate({"low": 0, "high": alphas.size - 1}.items()):
        plateau = sweep["plateau"].isel(side=k).values
        last = abs(mean[end] - np.interp(alphas[end] / 2, alphas, mean))
        claim = PaperClaim(
            "S, proposition 4.1",
            "cross-entropy has a plateau, that of the limit",
            f"{about}, {side} end",
            "increase at the end over that of the limit",
            *intervals.ratio(increase.isel(strength=end).values, plateau),
            least=0.9,
            most=1.1,
            basis=_counted(plateau, "block"),
            blind=weak,
        )
        yield _of_limit(claim, *(float(change / abs(np.mean(plateau))) for change in (last, abs(mean[end]))))


def _of_questions(experiment: Experiment, data: dict[str, xr.Dataset]) -> Iterator[PaperClaim]:
    answers = experiment.store.data("mmlu")
    right = (answers["log_p"].argmax("letter") == answers["answer"]).astype(float)
    data["accuracy"] = right.rename("right").to_dataset().assign(alpha=answers["alpha"])
    middle = answers.sizes["strength"] // 2
    for concept, layer in _pairs(answers):
        hits = right.sel(concept=concept, layer=layer).transpose("strength", "question").values
        yield PaperClaim(
            "S, figure A.6",
            "the model answers better than by chance",
            _about(concept, layer),
            "accuracy of the unsteered model",
            *intervals.share(hits[middle]),
            least=0.25,
            basis=_counted(hits[middle], "question"),
        )
        yield PaperClaim(
            "S, figure A.6",
            "strong steering makes answers worse",
            _about(concept, layer),
            "accuracy at the ends less that of the unsteered model",
            *intervals.paired_difference((hits[0] + hits[-1]) / 2 - hits[middle]),
            most=0.0,
            basis=_counted(hits[middle], "question"),
            blind=_weak(experiment, answers["alpha"].values, concept, layer),
        )


TESTS: dict[str, Callable[[Experiment, dict[str, xr.Dataset]], Iterator[PaperClaim]]] = {
    "next-token": _of_next_token,
    "concept": _of_concept,
    "cross-entropy": _of_cross_entropy,
    "mmlu": _of_questions,
}
"""The tests of a group of data once it is finished."""


def _pairs(data: xr.Dataset) -> Iterator[tuple[str, int]]:
    return ((str(concept), int(layer)) for concept in data["concept"].values for layer in data["layer"].values)


def _about(concept: str, layer: int) -> str:
    return f"{concept}, block {layer}"


def _estimate(fit: xr.Dataset, value: str, low: str, high: str) -> Estimate:
    return Estimate(float(fit[value]), float(fit[low]), float(fit[high]))


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation; NaN where there is none, as where all are alike because there is nothing to draw from."""
    numbers = intervals.finite(values)
    return float(numbers.std()) if numbers.size > 1 and np.ptp(numbers) > ALIKE else float("nan")


def _contexts(values: Float[np.ndarray, "c ..."]) -> str:
    return _number_of(int(np.isfinite(values).reshape(len(values), -1).any(axis=1).sum()), "context")


def _counted(values: Float[np.ndarray, "..."], what: str) -> str:
    return _number_of(int(np.isfinite(values).sum()), what)


def _number_of(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
