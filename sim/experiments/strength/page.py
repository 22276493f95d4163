"""The page of a run of the first paper (S): theory laid over measurement, claim by claim, with its figures."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from sim import output
from sim.directions.prompt_texts import DEFINITIONS
from sim.experiments.experiment import Experiment
from sim.experiments.settings import PRESETS, ExperimentSettings
from sim.experiments.strength import STAGES, in_short
from sim.experiments.strength.paper_claims import PaperClaim, TestedClaims, claims
from sim.experiments.strength.prompts import opening, own_texts
from sim.experiments.unused import unused
from sim.figures.panels import NothingToDrawError
from sim.figures.strength import STRENGTH_FIGURES
from sim.figures.style import Drawing, save
from sim.output import write_data
from sim.pages import pictures, write_page


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        lead: what is measured, and what the theory says.
        claims: those of the run that belong to it.
        figures: by the name of their files.
    """

    title: str
    lead: str
    claims: tuple[PaperClaim, ...]
    figures: dict[str, Drawing]

    @property
    def summary(self) -> list[dict[str, Any]]:
        """Every claim once, with how often it holds and the range of its numbers."""
        rows: dict[tuple[str, str, str], list[PaperClaim]] = {}
        for claim in self.claims:
            rows.setdefault((claim.source, claim.says, claim.what.split(", at ")[0].split(" at ±")[0]), []).append(claim)
        summaries = []
        for (source, says, what), alike in rows.items():
            values = [claim.value for claim in alike if np.isfinite(claim.value)]
            summaries.append(
                {
                    "source": source,
                    "says": says,
                    "what": what,
                    "low": min(values, default=np.nan),
                    "high": max(values, default=np.nan),
                    "wanted": alike[0].wanted,
                    **{verdict: sum(claim.verdict == verdict for claim in alike) for verdict in VERDICTS},
                    "count": len(alike),
                }
            )
        return summaries


VERDICTS = ("holds", "fails", "open", "reported")

LEADS = {
    "next-token": (
        "Next-token probabilities",
        "Along a sweep of strengths, the probability of a token of the concept should rise to one peak and fall "
        "again, the peak later the larger its log-odds; only the token of the largest log-odds rises throughout "
        "(S, theorem 3.3). Strong steering should forget the prompt (S, proposition 4.1).",
    ),
    "concept": (
        "Concept probability",
        "The model goes on from neutral beginnings while it is steered, and each completion is judged. In the "
        "theory the probability of a concept is a sigmoid of the strength (S, theorem 3.6), fitted here by a "
        "tanh. There are three opinions: the judge's answer, which S uses; whether a word of high log-odds is in "
        "the text; and whether the text is likelier once the concept is announced than once its opposite is. How "
        "well each tells the texts that show the concept from the others is measured first: a judge that cannot "
        "do that says nothing about steering.",
    ),
    "cross-entropy": (
        "Cross-entropy",
        "What steering costs, in nats per token. Where the model's probabilities are the data's there is no "
        "linear term, and the coefficient of the quadratic one is a variance (S, theorem 3.8), known from one "
        "Jacobian-vector product (N9). Text that the model draws itself is such data; other text is not. For "
        "large strengths the increase should reach the plateau of the limit, which the direction of v alone "
        "decides (S, proposition 4.1).",
    ),
    "mmlu": (
        "Questions",
        "Questions with four answers after worked examples, scored by the log-probabilities of the letters: what "
        "steering does to something of use (S, figure A.6). The dotted line is chance. The project's own "
        "questions are easier than MMLU.",
    ),
}
"""Title and lead of the section of every measurement."""


def write(experiment: Experiment) -> TestedClaims:
    """Test the claims, draw the figures, and write ``index.html``, ``claims.json``, ``derived.nc`` and ``figures``.

    A run that is not finished gives a page of its results so far.

    Returns:
        The claims, and what they rest on.
    """
    tried = [name for name in SAMPLES if experiment.store.finished(name) and is_trial(experiment.settings, name)]
    tested, folder = _undecided(claims(experiment), tried), experiment.store.path
    data = {group: experiment.store.data(group) for group in experiment.store.groups} | {
        f"derived-{k}": v for k, v in tested.data.items()
    }
    drawable = datasets(experiment, data)
    files = {}
    for name, drawing in STRENGTH_FIGURES.items():
        if drawing.dataset in drawable:
            with suppress(NothingToDrawError):
                files[name] = save(drawing.draw(drawable[drawing.dataset]), output.prepare_folder(folder / "figures"), name)
    output.write_json(
        folder / "claims.json", {"settings": dict(experiment.store.about), "claims": [c.as_json() for c in tested.claims]}
    )
    write_data(folder / "derived.nc", xr.DataTree.from_dict(dict(tested.data)), dict(experiment.store.about))
    sections = []
    for group, (title, lead) in LEADS.items():
        of_group = tuple(claim for claim in tested.claims if claim.group == group)
        drawn = {
            name: drawing
            for name, drawing in STRENGTH_FIGURES.items()
            if OF_GROUP.get(drawing.dataset, drawing.dataset) == group
        }
        drawn = {name: drawing for name, drawing in drawn.items() if name in files}
        if of_group or drawn:
            sections.append(Section(title, lead, of_group, drawn))
    write_page(
        folder / "index.html",
        "experiments.html",
        about=experiment.store.about,
        settings=experiment.settings.as_json(),
        sections=sections,
        found=in_short.of_run([claim.as_json() for claim in tested.claims]),
        counts={verdict: sum(claim.verdict == verdict for claim in tested.claims) for verdict in VERDICTS},
        texts=texts_of_sets(experiment),
        prompts=prompts_of_stages(experiment),
        units=units(experiment),
        undefined=[name for name in experiment.settings.concepts if name not in DEFINITIONS],
        words=_lexicon(experiment),
        completions=completions(experiment),
        unfinished=[name for name in STAGES if not experiment.store.finished(name)],
        tried=tried,
        notes=unused(experiment, STAGES),
        asked=asked_tokens(experiment),
        pictures=pictures(files),
    )
    return tested


SAMPLES = {
    "prompts": ("texts", "max_new_tokens"),
    "next-token": ("strengths",),
    "concept": ("prompts", "completions"),
    "cross-entropy": ("blocks", "tokens"),
    "mmlu": ("questions",),
}
"""The settings of a stage that say how much it measures."""


def is_trial(settings: ExperimentSettings, stage: str) -> bool:
    """Whether a stage measures no more than in a trial run, which is too little to conclude anything from."""
    own, smoke = (getattr(settings, stage.replace("-", "_")) for settings in (settings, PRESETS["smoke"]))
    return all(getattr(own, name) <= getattr(smoke, name) for name in SAMPLES[stage])


def _undecided(tested: TestedClaims, tried: Sequence[str]) -> TestedClaims:
    """The claims of a run, those open that rest on trials. All of them rest on the texts of the stage "prompts"."""
    claims_tested = (replace(claim, trial="prompts" in tried or claim.group in tried) for claim in tested.claims)
    return replace(tested, claims=tuple(claims_tested))


OF_GROUP = {"bump-shares": "next-token", "dominant-log-odds": "next-token"}
"""The section of datasets that are derived from others."""


def datasets(experiment: Experiment, data: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The data that the figures are drawn from."""
    drawable = {}
    if "next-token" in data:
        tokens = data["next-token"]["token"]
        token_strings = np.asarray(
            [*experiment.tokenizer.token_strings, *[""] * (experiment.lm.config.vocab_size - experiment.tokenizer.size)]
        )
        words = xr.where(tokens >= 0, token_strings[np.maximum(tokens.values, 0)], "")
        drawable["next-token"] = data["next-token"].assign(word=words)
    for name in ("concept", "cross-entropy", "mmlu"):
        if name in data:
            drawable[name] = data[name]
    if "derived-presence" in data:
        drawable["concept"] = xr.merge([data["derived-presence"], data["derived-fits"]])
    if "derived-shapes" in data:
        drawable["bump-shares"] = data["derived-shapes"][["share"]].mean("context")
        drawable["dominant-log-odds"] = 100 * data["derived-dominating"].mean("context")
    return drawable


def units(experiment: Experiment) -> list[dict[str, Any]]:
    """The length that strength 1 adds for every concept and layer, relative to states and to the vector."""
    if not experiment.store.finished("vectors"):
        return []
    rows = []
    for concept in experiment.settings.concepts:
        for layer in map(int, experiment.settings.layers):
            length = float(np.linalg.norm(experiment.difference(concept, layer)))
            state, added = float(experiment.state_length(concept, layer)), experiment.lengths_added(concept, layer)
            rows.append(
                {"concept": concept, "layer": layer, "vector": length, "state": state}
                | {"in_vectors": added * state / length if length else np.nan, "in_states": added}
            )
    return rows


def asked_tokens(experiment: Experiment) -> list[dict[str, Any]]:
    """The tokens that were asked for, after every context: where they begin, and how far they get.

    Returns:
        By concept, layer, context and token: `word`, `log_odds`, `start`, the probability without steering, and `most` and
        `place`, the largest along the sweep and the strength that it has there.
    """
    if not experiment.settings.next_token.tokens or not experiment.store.finished("next-token"):
        return []
    data, rows = experiment.store.data("next-token").isel(variant=0), []
    odds = {name: experiment.log_odds(name) for name in map(str, data["concept"].values)}
    numbers = [experiment.tokenizer.token(str(word)) for word in data["asked"].values]
    for concept, layer, context, k in product(odds, data["layer"].values, data["context"].values, range(len(numbers))):
        token = data.sel(concept=concept, layer=layer, context=context).isel(asked=k)
        log_p = token["asked_log_p"].values.astype(float)
        top = int(np.argmax(log_p))
        rows.append(
            {
                "concept": concept,
                "layer": int(layer),
                "context": int(context),
                "word": str(data["asked"].values[k]),
                "log_odds": float(odds[concept][numbers[k]]),
                "start": float(np.exp(token["asked_start"])),
                "most": float(np.exp(log_p[top])),
                "place": float(data["alpha"].values[top]),
            }
        )
    return rows


def texts_of_sets(experiment: Experiment, count: int = 2, length: int = 240) -> dict[str, tuple[str, list[str], int]]:
    """The request for the texts of every set (nothing for the user's own), a few beginnings, and the number of texts."""
    if not experiment.store.finished("prompts"):
        return {}
    decode, own = experiment.tokenizer.decode, own_texts(experiment)
    return {
        name: (
            "" if name in own else _cut(decode(opening(experiment, name)), length),
            [_cut(decode(row), length) for row in experiment.rows(name)[:count]],
            len(experiment.rows(name)),
        )
        for name in experiment.sets
    }


def prompts_of_stages(experiment: Experiment, length: int = 240) -> dict[str, list[str]]:
    """The texts that stages begin with: contexts of next tokens, beginnings of completions."""
    stages = {"next-token": "contexts whose next token is looked at", "concept": "beginnings that the model goes on from"}
    return {
        words: [_cut(str(text), length) for text in experiment.store.data(stage)["text"].values]
        for stage, words in stages.items()
        if experiment.store.finished(stage)
    }


def completions(experiment: Experiment, length: int = 160) -> list[dict[str, Any]]:
    """A completion of the first prompt at a few strengths, for every concept and layer."""
    if not experiment.store.finished("concept"):
        return []
    stored, rows = experiment.store.data("concept"), []
    alphas = stored["alpha"].values
    middle = alphas.size // 2
    chosen = sorted({0, middle // 2, middle, middle + (alphas.size - middle) // 2, alphas.size - 1})
    for concept in stored["concept"].values:
        for layer in stored["layer"].values:
            tokens = stored["tokens"].sel(concept=concept, layer=layer).isel(prompt=0, completion=0).values
            texts = [
                (float(alphas[k]), _cut(experiment.tokenizer.decode(tokens[k][tokens[k] >= 0]), length)) for k in chosen
            ]
            rows.append({"concept": str(concept), "layer": int(layer), "texts": texts})
    return rows


def _lexicon(experiment: Experiment, count: int = 24) -> dict[str, list[str]]:
    if not experiment.store.finished("lexicon"):
        return {}
    words = experiment.store.data("lexicon")["word"]
    return {
        str(name): [str(word).strip() for word in words.sel(concept=name).values[:count]] for name in words["concept"].values
    }


def _cut(text: str, length: int) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= length else f"{plain[:length].rstrip()} ..."


def summary(tested: TestedClaims) -> str:
    """The claims as a table for the terminal."""
    lines = [f"{'claim':<62}{'where':<34}{'value':>9}{'95 % interval':>22}  verdict"]
    for claim in tested.claims:
        ends = f"{claim.low:.2g} to {claim.high:.2g}" if claim.low < claim.high else ""
        value = f"{claim.value:.3g}" if np.isfinite(claim.value) else "none"
        reason = f" ({claim.reason})" if claim.reason else ""
        lines.append(f"{claim.says[:60]:<62}{claim.about[:32]:<34}{value:>9}{ends:>22}  {claim.verdict}{reason}")
    counts = {verdict: sum(claim.verdict == verdict for claim in tested.claims) for verdict in VERDICTS[:3]}
    words = {"holds": "hold", "fails": "fail", "open": "open"}
    return "\n".join([*lines, ", ".join(f"{count} {words[verdict]}" for verdict, count in counts.items())])
