"""The figures of S on real models: drawn from a whole run and from parts of one, and of what the data says."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import log_softmax

from sim.experiments.settings import grid
from sim.experiments.strength.paper_claims import presence
from sim.figures.next_token import curves, over_resamples, single_bumps
from sim.figures.panels import NothingToDrawError, linear_width, mean, nice_ticks, share
from sim.figures.strength import (
    MEASURES,
    STRENGTH_FIGURES,
    accuracy,
    concept_probability,
    cross_entropy,
    cross_entropy_near_zero,
)
from sim.figures.style import word_label, word_labels
from sim.measure.curves import mean_tau

CONCEPTS, LAYERS, KEPT, VOCABULARY = ["joy", "evil"], [7, 15, 29], 24, 300
VARIANTS = ["random", "contrastive", "normalised", "last-token", *(f"resampled {k}" for k in range(1, 6))]
STEMS = [
    "happy",
    "delight",
    "smile",
    "grin",
    "dark",
    "cruel",
    "pain",
    "a$b",
    "_x",
    "\u559c\u60a6",
    "the\n",
    "of",
    "to",
    "wonderful" * 3,
]
WORDS = np.array([f"{' ' * (k % 3 > 0)}{STEMS[k % len(STEMS)]}{k // len(STEMS) or ''}" for k in range(VOCABULARY)], object)


def next_token_data() -> xr.Dataset:
    """Log-probabilities that follow the law of steering before a norm, with bumps at strengths of about 1 to 20."""
    rng = np.random.default_rng(0)
    shape = (len(VARIANTS), len(CONCEPTS), len(LAYERS), 3)
    alpha = np.stack([grid(161, 2000.0 if name == "normalised" else 200.0, 6.0) for name in VARIANTS])
    arrays = {
        "token": np.full((*shape, 2 * KEPT), -1, np.int32),
        "log_p": np.full((*shape, 161, 2 * KEPT), np.nan, np.float32),
        "start": np.full((*shape, 2 * KEPT), np.nan, np.float32),
        "log_odds": np.full((*shape, 2 * KEPT), np.nan, np.float32),
        "scale": np.full(shape, np.nan, np.float32),
        "word": np.full((*shape, 2 * KEPT), "", object),
    }
    bias, far = rng.normal(0, 2.5, (3, VOCABULARY)), rng.normal(0, 2.5, (2, 3, VOCABULARY))
    for cell in np.ndindex(*shape):
        variant, concept, layer, context = cell
        if variant > 0 and layer != 1:
            continue
        scale = (2.0, 4.0, 8.0)[layer] * (10 if VARIANTS[variant] == "normalised" else 1)
        noise = rng.normal(0, 0.6, VOCABULARY) if variant > 0 else 0
        x = alpha[variant][:, None] / scale
        pushed = far[concept, layer] + noise
        log_p = log_softmax(
            (2 * bias[context] + 2 * x * pushed + 0.8 * x * far[1 - concept, layer]) / np.sqrt(1 + x * x), -1
        )
        tokens = np.concatenate([np.argsort(-log_p[end])[:KEPT] for end in (0, -1)])
        arrays["token"][cell], arrays["log_p"][cell] = tokens, log_p[:, tokens]
        arrays["start"][cell], arrays["log_odds"][cell] = log_p[80, tokens], (pushed + rng.normal(0, 1, VOCABULARY))[tokens]
        arrays["scale"][cell], arrays["word"][cell] = scale, WORDS[tokens]
    dims = ("variant", "concept", "layer", "context")
    last = {"token": ("slot",), "log_p": ("strength", "slot"), "scale": ()}
    return xr.Dataset(
        {name: ((*dims, *last.get(name, ("slot",))), values) for name, values in arrays.items()}
        | {"alpha": (("variant", "strength"), alpha)},
        coords={"variant": VARIANTS, "concept": CONCEPTS, "layer": LAYERS, "context": np.arange(3)},
    )


def concept_data() -> xr.Dataset:
    rng, alpha = np.random.default_rng(1), grid(11, 40.0, 3.0)
    dims = ("concept", "layer", "strength", "prompt", "completion")
    rate = np.array([0.5, 0.25, 0.1])[None, :, None, None, None]
    p = np.broadcast_to(0.5 + 0.45 * np.tanh(rate * (alpha[:, None, None] - 3)), (2, 3, 11, 4, 4))
    answer = np.where(rng.random(p.shape) < 0.1, 2, rng.random(p.shape) < p).astype(np.int8)
    return xr.Dataset(
        {
            "answer": (dims, answer),
            "ratio": (dims, (np.log(p / (1 - p)) + rng.normal(0, 1, p.shape)).astype(np.float32)),
            "in_lexicon": (dims, rng.poisson(1.5 * p).astype(np.int16)),
            "alpha": ("strength", alpha),
        },
        coords={"concept": CONCEPTS, "layer": LAYERS},
    )


def fits_data() -> xr.Dataset:
    shape, dims = (2, 3, 3), ("concept", "layer", "measure")
    rate = np.broadcast_to(np.array([0.5, 0.25, 0.1])[None, :, None], shape)
    return xr.Dataset(
        {name: (dims, np.full(shape, value)) for name, value in (("level", 0.5), ("height", 0.45), ("centre", 3.0))}
        | {"rate": (dims, rate)},
        coords={"concept": CONCEPTS, "layer": LAYERS, "measure": list(MEASURES)},
    )


def cross_entropy_data() -> xr.Dataset:
    rng, alpha = np.random.default_rng(2), grid(17, 100.0, 5.0)
    shape, dims = (2, 3, 2, 8), ("concept", "layer", "text", "block")
    strength = np.array([0.3, 0.1, 0.03])[None, :, None, None] * rng.uniform(0.7, 1.3, shape)
    slope = np.broadcast_to(np.array([-0.15, 0.0])[:, None], shape) * rng.uniform(0.2, 1.8, shape)
    plateau = np.stack([rng.normal(9, 0.3, shape), rng.normal(7, 0.3, shape)], axis=-1)
    a, square = alpha, strength[..., None] * alpha**2
    top = np.where(a < 0, plateau[..., :1], plateau[..., 1:])
    divergence = square / (1 + square / top)
    return xr.Dataset(
        {
            "increase": ((*dims, "strength"), divergence + slope[..., None] * a / (1 + a**2 / 9)),
            "divergence": ((*dims, "strength"), divergence),
            "slope": (dims, slope),
            "curvature": (dims, strength),
            "plateau": ((*dims, "side"), plateau),
            "alpha": ("strength", alpha),
        },
        coords={"concept": CONCEPTS, "layer": LAYERS, "text": ["foreign", "own"], "side": ["low", "high"]},
    )


def mmlu_data() -> xr.Dataset:
    rng, alpha = np.random.default_rng(3), grid(9, 10.0, 3.0)
    answer = rng.integers(0, 4, 40)
    log_p = rng.normal(0, 1, (2, 1, 9, 40, 4))
    log_p += 1.5 * np.exp(-((alpha[:, None, None] / 4) ** 2)) * (np.arange(4) == answer[:, None])
    return xr.Dataset(
        {
            "log_p": (("concept", "layer", "strength", "question", "letter"), log_p.astype(np.float32)),
            "alpha": ("strength", alpha),
            "answer": ("question", answer),
        },
        coords={"concept": CONCEPTS, "layer": [15], "letter": list("ABCD")},
    )


def shares_data() -> xr.Dataset:
    values = np.random.default_rng(4).dirichlet([4, 3, 2], (len(VARIANTS), 2, 3))
    values[1:, :, [0, 2]] = np.nan
    return xr.Dataset(
        {"share": (("variant", "concept", "layer", "kind"), values)},
        coords={
            "variant": VARIANTS,
            "concept": CONCEPTS,
            "layer": LAYERS,
            "kind": ["one bump", "none", "several bumps"],
        },
    )


def percentiles_data() -> xr.Dataset:
    values = 100 * np.random.default_rng(5).beta(np.array([1, 3, 30])[:, None], 1, (2, 3, 10))
    return xr.Dataset({"percentile": (("concept", "layer", "rank"), values)}, coords={"concept": CONCEPTS, "layer": LAYERS})


@pytest.fixture(scope="module")
def run() -> dict[str, xr.Dataset]:
    return {
        "next-token": next_token_data(),
        "concept": presence(concept_data()),
        "cross-entropy": cross_entropy_data(),
        "mmlu": mmlu_data(),
        "bump-shares": shares_data(),
        "dominant-log-odds": percentiles_data(),
    }


def drawn(name: str, run: dict[str, xr.Dataset]) -> Figure:
    return STRENGTH_FIGURES[name].draw(run[STRENGTH_FIGURES[name].dataset])


def panel(figure: Figure, title: str) -> Axes:
    (axes_of_title,) = (axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))
    return axes_of_title


def longest(axes: Axes) -> list[np.ndarray]:
    """The y data of the lines that are no marks of an axis, a legend or a plateau."""
    return [np.asarray(line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) > 2]


def without(data: xr.Dataset, **where: object) -> xr.Dataset:
    """A run that has not come to some concept, layer or variant yet."""
    kept = xr.ones_like(data["concept"], bool)
    for name, label in where.items():
        kept = kept & (data[name] != label) if name in data.coords else kept
    arrays = {}
    for name, values in data.data_vars.items():
        if "concept" in values.dims:
            fill = -1 if values.dtype.kind == "i" else "" if values.dtype.kind == "O" else np.nan
            arrays[name] = values.where(kept, fill).transpose(*values.dims).astype(values.dtype)
    return data.assign(arrays)


@pytest.fixture(scope="module")
def figures(run) -> dict[str, Figure]:
    return {name: drawn(name, run) for name in STRENGTH_FIGURES}


PANELS = {
    "figure-6": 6,
    "figure-A10": 6,
    "figure-A1-A2-A5": 6,
    "figure-A3": 2,
    "figure-7-concept": 6,
    "figure-7-cross-entropy": 2,
    "figure-7-cross-entropy-near-0": 6,
    "figure-A6": 2,
    "bump-shares": 2,
    "bump-places": 6,
    "dominant-log-odds": 2,
}


@pytest.mark.parametrize("name", STRENGTH_FIGURES)
def test_a_whole_run_is_drawn(name, figures):
    figure = figures[name]
    figure.draw_without_rendering()
    assert len(figure.axes) == PANELS[name]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(set(titles)) == len(titles)
    assert all(axes.has_data() for axes in figure.axes)


@pytest.mark.parametrize("name", STRENGTH_FIGURES)
def test_what_has_not_been_computed_is_left_out(name, run):
    drawing = STRENGTH_FIGURES[name]
    data = run[drawing.dataset]
    figure = drawing.draw(without(data, concept="evil"))
    assert len(figure.axes) == (3 if name == "figure-7-concept" else PANELS[name] // 2)
    assert all(axes.get_title(loc="left").startswith("joy") for axes in figure.axes)
    evil = data.sel(concept=["evil"])
    for missing in ({"layer": 29}, {"layer": 15, "variant": "normalised"}):
        part = without(evil, **missing)
        if name in ("figure-A1-A2-A5", "figure-A3", "figure-A6") and missing["layer"] == 15:
            with pytest.raises(NothingToDrawError):
                drawing.draw(part)
        else:
            assert all(axes.has_data() for axes in drawing.draw(part).axes)
    with pytest.raises(NothingToDrawError, match="nothing that has been computed"):
        drawing.draw(without(evil, concept="evil"))


def test_one_concept_one_layer_one_variant_and_few_strengths(run):
    for name, drawing in STRENGTH_FIGURES.items():
        data = run[drawing.dataset].isel(concept=[0])
        data = data.sel(layer=[15]) if data.sizes["layer"] > 1 else data
        data = data.isel(variant=[0]) if "variant" in data.dims else data
        if "strength" in data.dims:
            middle = data.sizes["strength"] // 2
            data = data.isel(strength=[0, middle, -1])
        if name in ("figure-A1-A2-A5", "figure-A3"):
            with pytest.raises(NothingToDrawError):
                drawing.draw(data)
        else:
            figure = drawing.draw(data)
            assert len(figure.axes) == (3 if name == "figure-7-concept" else 1)


@pytest.mark.parametrize(("name", "end"), [("figure-6", -1), ("figure-A10", 0)])
def test_lines_are_the_increases_of_the_likeliest(name, end, figures, run):
    axes = panel(figures[name], "evil, block 15")
    sweep = run["next-token"].sel(variant="random", concept="evil", layer=15, context=0)
    p, start = np.exp(sweep["log_p"].values.astype(float)), np.exp(sweep["start"].values.astype(float))
    shown = sweep["alpha"].values >= 0 if end else sweep["alpha"].values <= 0
    lines = longest(axes)
    assert len(lines) == 8
    assert np.diff([line[end] for line in lines] + start[np.argsort(-p[end])[:8]]).max() < 1e-6
    for line, slot in zip(lines, np.argsort(-p[end])[:8], strict=True):
        assert np.abs(line - (p[shown, slot] - start[slot])).max() < 1e-6
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == word_labels(sweep["word"].values[np.argsort(-p[end])[:8]])


def test_other_ways_to_steer_have_strengths_of_their_own(figures):
    figure = figures["figure-A1-A2-A5"]
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [
        "joy, normalised, block 15",
        "joy, last-token, block 15",
        "joy, contrastive, block 15",
    ]
    assert [axes.get_xlim()[1] for axes in figure.axes[:3]] == pytest.approx([2000, 200, 200])


def test_resamples_are_matched_by_token(figures, run):
    data = run["next-token"]
    resamples = data.sel(variant=VARIANTS[4:], concept="joy", layer=15, context=0)
    increases = over_resamples(data.sel(variant=VARIANTS[4:], concept="joy", layer=15), count=30)
    assert increases is not None
    assert increases.spread is not None
    ranks = {}
    for token in np.unique(resamples["token"].values):
        rows = []
        for k in range(5):
            slots = np.flatnonzero(resamples["token"].values[k] == token)
            rows += [
                np.exp(resamples["log_p"].values[k, :, slot]) - np.exp(resamples["start"].values[k, slot])
                for slot in slots[:1]
            ]
        if len(rows) > 1:
            ranks[token] = rows
    ends = {token: np.mean([row[-1] for row in rows]) for token, rows in ranks.items()}
    best = max(ends, key=lambda token: ends[token])
    column = int(np.argmax(increases.increase[-1]))
    assert np.abs(increases.increase[:, column] - np.mean(ranks[best], axis=0)).max() < 1e-6
    assert np.abs(increases.spread[:, column] - np.std(ranks[best], axis=0, ddof=1)).max() < 1e-6
    lines = longest(panel(figures["figure-A3"], "joy"))
    assert np.abs(lines[column] - increases.increase[80:, column]).max() < 1e-12


def test_a_token_that_is_kept_twice_or_by_some_resamples_alone():
    tokens = np.array([[1, 2, 2], [2, 3, 4], [4, 5, 1]])
    ends = np.array([[0.1, 0.3, 0.3], [0.5, 0.2, 0.1], [0.2, 0.6, 0.3]])
    log_p = np.log(np.stack([np.full((3, 3), 0.05), np.full((3, 3), 0.05), ends], axis=1))
    data = xr.Dataset(
        {
            "token": (("variant", "context", "slot"), tokens[:, None]),
            "word": (("variant", "context", "slot"), np.array([f"w{z}" for z in tokens.ravel()]).reshape(3, 1, 3)),
            "log_p": (("variant", "context", "strength", "slot"), log_p[:, None]),
            "start": (("variant", "context", "slot"), np.full((3, 1, 3), np.log(0.05))),
            "alpha": (("variant", "strength"), np.tile([-1.0, 0.0, 1.0], (3, 1))),
        }
    )
    once = curves(data.isel(variant=0), -1)
    assert once is not None
    assert once.words == ["w2", "w1"]
    mean_of = over_resamples(data)
    assert mean_of is not None
    assert mean_of.spread is not None
    assert mean_of.words == ["w2", "w1", "w4"]
    assert mean_of.increase[-1] == pytest.approx([0.35, 0.15, 0.1])
    assert mean_of.spread[-1] == pytest.approx(np.array([0.2, 0.2, 0.1]) / np.sqrt(2))


def test_concept_probability_counts_answers_and_draws_fits(run):
    sweep = concept_data().sel(concept="joy", layer=7)
    figure = concept_probability(run["concept"], fits_data())
    judged, words, likelier = (panel(figure, f"joy, {what}") for what in MEASURES.values())
    answers, counted = (sweep[name].values.reshape(11, -1) for name in ("answer", "in_lexicon"))
    expected = [(row == 1).sum() / ((row == 0) | (row == 1)).sum() for row in answers]
    assert longest(judged)[0] == pytest.approx(expected)
    assert longest(words)[0] == pytest.approx((counted > 0).mean(axis=1))
    assert longest(likelier)[0] == pytest.approx((sweep["ratio"].values > 0).reshape(11, -1).mean(axis=1))
    fine = judged.get_lines()[1]
    assert fine.get_ydata() == pytest.approx(0.5 + 0.45 * np.tanh(0.5 * (fine.get_xdata() - 3)))
    other = [line for line in judged.get_lines() if len(line.get_xdata()) == 201][1]
    assert other.get_ydata() == pytest.approx(0.5 + 0.45 * np.tanh(0.25 * (other.get_xdata() - 3)))
    # Fits in the data do as well, and where there is no fit there is no line.
    merged = concept_probability(run["concept"].merge(fits_data()))
    assert panel(merged, "joy, as").get_lines()[1].get_ydata() == pytest.approx(fine.get_ydata())
    fewer = concept_probability(run["concept"], fits_data().sel(layer=[15], measure=["answer"]))
    assert [len(line) for line in longest(panel(fewer, "joy, as"))] == [11, 11, 201, 11]


def test_cross_entropy_is_a_mean_over_blocks_with_its_plateaus(run):
    data = run["cross-entropy"]
    axes = panel(cross_entropy(data), "evil")
    assert longest(axes)[0] == pytest.approx(
        data["increase"].sel(concept="evil", layer=7, text="foreign").mean("block").values
    )
    flat = [
        float(line.get_ydata()[0]) for line in axes.get_lines() if line.get_linestyle() != "-" and len(line.get_xdata()) == 2
    ]
    assert flat[:2] == pytest.approx(data["plateau"].sel(concept="evil", layer=7, text="foreign").mean("block").values)


def test_small_strengths_lie_on_the_parabola(run):
    data = run["cross-entropy"]
    axes = panel(cross_entropy_near_zero(data), "joy, block 29")
    fine, slope = (line for line in axes.get_lines() if len(line.get_xdata()) == 101)
    moments = data.sel(concept="joy", layer=29)
    assert fine.get_ydata() == pytest.approx(float(moments["curvature"].sel(text="own").mean()) * fine.get_xdata() ** 2)
    assert slope.get_ydata() == pytest.approx(float(moments["slope"].sel(text="foreign").mean()) * slope.get_xdata())
    assert 7 <= len(longest(axes)[0]) < 17
    few = cross_entropy_near_zero(data.isel(strength=[0, 4, 8, 12, 16]))
    assert panel(few, "joy, block 29").get_xlim()[1] == pytest.approx(1.05 * float(data["alpha"][12]))


def test_accuracy_is_the_share_of_the_likeliest_letters(run):
    data = run["mmlu"]
    axes = panel(accuracy(data), "joy")
    expected = [
        np.mean([row.argmax() == answer for row, answer in zip(rows, data["answer"].values, strict=True)])
        for rows in data["log_p"].sel(concept="joy", layer=15).values
    ]
    assert longest(axes)[0] == pytest.approx(expected)
    assert any(np.all(np.asarray(line.get_ydata()) == 0.25) for line in axes.get_lines())
    # Questions that have not been asked yet do not count.
    part = data.assign(log_p=data["log_p"].where(data["question"] < 10))
    share_of_ten = (data["log_p"][0, 0, 0, :10].argmax("letter") == data["answer"][:10]).mean()
    assert longest(panel(accuracy(part), "joy"))[0][0] == pytest.approx(float(share_of_ten))


def test_bars_are_shares_and_resamples_their_mean(figures, run):
    axes = panel(figures["bump-shares"], "evil")
    bars = np.array([bar.get_width() for bar in axes.patches]).reshape(-1, 3)
    shares = run["bump-shares"]["share"].sel(concept="evil")
    labels = [text.get_text() for text in figures["bump-shares"].axes[0].get_yticklabels()]
    assert labels[:4] == ["block 7", "block 15", "block 29", "block 15, contrastive"]
    assert bars[labels.index("block 15")] == pytest.approx(shares.sel(variant="random", layer=15).values)
    last = shares.sel(variant=VARIANTS[4:], layer=15).mean("variant").values
    assert bars[labels.index("block 15, resampled")] == pytest.approx(last)


def test_places_of_single_bumps_in_lengths_of_the_state():
    alpha, peaks = grid(161, 200.0, 6.0), np.array([-4.0, 1.0, 3.0, 10.0])
    shapes = -1 - (np.arcsinh(alpha)[:, None] - np.arcsinh(peaks)) ** 2
    both = np.logaddexp(8 * shapes[:, 1], 8 * shapes[:, 3])[:, None]
    sweep = xr.Dataset(
        {
            "log_p": (("context", "strength", "slot"), np.concatenate([shapes, both], axis=1)[None]),
            "token": (("context", "slot"), np.arange(5)[None]),
            "log_odds": (("context", "slot"), np.array([[-2.0, 0.1, 0.5, 0.4, 9.0]])),
            "scale": ("context", [2.0]),
            "alpha": ("strength", alpha),
        },
        coords={"context": [0]},
    )
    ((odds, places),) = single_bumps(sweep)
    assert odds.tolist() == [-2.0, 0.1, 0.5, 0.4]
    assert places == pytest.approx(peaks / 2, rel=0.08)
    # Of six pairs one is the wrong way round.
    assert mean_tau([(odds, places)]) == pytest.approx(4 / 6)


def test_percentiles_are_drawn_by_layer(figures, run):
    axes = panel(figures["dominant-log-odds"], "joy")
    expected = run["dominant-log-odds"]["percentile"].sel(concept="joy").values
    assert [line.tolist() for line in longest(axes)] == expected.tolist()


def test_the_axis_of_strengths():
    assert linear_width(grid(161, 200.0, 6.0)) == pytest.approx(200 / np.sinh(6))
    assert linear_width(grid(11, 40.0, 3.0)) == pytest.approx(40 / np.sinh(3))
    assert linear_width(grid(129, 100.0, 0.0)) == np.inf
    for width, low, high in (
        (1.0, 0.0, 200.0),
        (1.0, -200.0, 200.0),
        (4.0, -40.0, 40.0),
        (9.9, 0.0, 2e3),
        (0.1, -2.0, 30.0),
        (1.0, -0.5, 0.0),
    ):
        ticks = np.array(nice_ticks(width, low, high, 0.1))
        assert 0 in ticks
        assert ((low <= ticks) & (ticks <= high)).all()
        assert (np.diff(np.arcsinh(ticks / width)) >= 0.1 * (np.arcsinh(high / width) - np.arcsinh(low / width))).all()
    assert nice_ticks(1.0, 0.0, 200.0, 0.1) == [0, 1, 3, 10, 30, 100]


def test_error_bars():
    bars = mean(np.array([[1.0, 2.0, 3.0, np.nan], [5.0, np.nan, np.nan, np.nan], [np.nan] * 4]))
    assert bars.value == pytest.approx([2, 5, np.nan], nan_ok=True)
    assert bars.below == pytest.approx([1 / np.sqrt(3), 0, 0])
    hits = np.arange(400) < np.array([[100], [0], [400]])
    of = share(hits, np.ones_like(hits))
    assert of.value == pytest.approx([0.25, 0, 1])
    assert of.below[0] == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.05)
    assert [of.below[1], of.above[2]] == pytest.approx([0, 0])
    assert [of.above[1], of.below[2]] == pytest.approx([1 / 401] * 2)
    none = share(hits, np.zeros_like(hits))
    assert np.isnan(none.value).all()


def test_words_as_labels():
    assert word_label(" joy") == "joy"
    assert word_label("a$b$") == "a\\$b\\$"
    assert word_label("_x") == "'_x'"
    assert word_label("the\n") == "the\\n"
    assert word_label("   ") == "'   '"
    assert word_label("\u559c") == "\\u559c"
    assert len(word_label("long" * 9)) == 18
    assert word_labels([" joy", "joy", " love"]) == ["\u2423joy", "joy", "love"]
