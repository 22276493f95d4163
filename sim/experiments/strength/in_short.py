"""What was found in a run, or in several, in a few plain sentences: which claims held, which failed, and how many bumps."""

from collections.abc import Mapping, Sequence
from typing import Any

BUMPS = "most tokens show one bump"
"""The claim whose number is told whatever its verdict: how much is left of the theory's single bump."""


def outcomes(claims: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The outcome of each claim by its words: "fails" if it does anywhere, else "holds" if it does anywhere, else "open".

    Args:
        claims: as `PaperClaim.as_json` gives them, one for each place that they were tested at; those that are only
            reported are left out.
    """
    verdicts: dict[str, set[str]] = {}
    for claim in claims:
        if claim["verdict"] != "reported":
            verdicts.setdefault(claim["says"], set()).add(claim["verdict"])
    return {says: next(name for name in ("fails", "holds", "open") if name in places) for says, places in verdicts.items()}


def of_run(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """The findings of one run.

    Args:
        claims: as for `outcomes`.
    """
    verdicts = outcomes(claims)
    held = [says for says, outcome in verdicts.items() if outcome == "holds"]
    failed = [_failure(says, claims) for says, outcome in verdicts.items() if outcome == "fails"]
    lines = [f"Held wherever it was decided: {'; '.join(held)}."] if held else []
    lines += [f"Failed: {'; '.join(failed)}."] if failed else []
    lines += [] if lines else ["No claim could be decided."]
    return lines + (
        [f"Of the likeliest tokens, {share} rise to a single peak and fall again."] if (share := _bumps(claims)) else []
    )


def of_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The findings of several runs: on which claims they agree, and on which they do not.

    Args:
        runs: the claims of each by the name of the run, as for `outcomes`.
    """
    verdicts = {name: outcomes(claims) for name, claims in runs.items()}
    together: dict[tuple[str, ...], list[str]] = {}
    for says in dict.fromkeys(says for outcome in verdicts.values() for says in outcome):
        together.setdefault(tuple(outcome.get(says, "open") for outcome in verdicts.values()), []).append(says)
    everywhere = {name: together.get((name,) * len(runs), []) for name in ("holds", "fails")}
    lines = [f"Held in every run: {'; '.join(everywhere['holds'])}."] if everywhere["holds"] else []
    lines += [f"Failed in every run: {'; '.join(everywhere['fails'])}."] if everywhere["fails"] else []
    apart = [
        f"{says} ({', '.join(f'{outcome} in {name}' for name, outcome in zip(runs, pattern, strict=True))})"
        for pattern, alike in together.items()
        for says in alike
        if {"holds", "fails"} <= set(pattern)
    ]
    lines += [f"Held in one run and failed in another: {'; '.join(apart)}."] if apart else []
    lines += [] if lines else ["No claim was decided in all runs."]
    shares = [f"{share} in {name}" for name, claims in runs.items() if (share := _bumps(claims))]
    return lines + (
        [f"Of the likeliest tokens, so many rise to a single peak and fall again: {', '.join(shares)}."] if shares else []
    )


def _failure(says: str, claims: Sequence[Mapping[str, Any]]) -> str:
    """A claim that fails, with how often, and the numbers that it came to there."""
    places = [claim for claim in claims if claim["says"] == says and claim["verdict"] != "reported"]
    wrong = [claim["value"] for claim in places if claim["verdict"] == "fails"]
    limits = (("at least", places[0]["least"]), ("at most", places[0]["most"]))
    wanted = " and ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)
    return f"{says} ({len(wrong)} of {len(places)} times: {_range(wrong, '{:.2g}')} where {wanted} is wanted)"


def _bumps(claims: Sequence[Mapping[str, Any]]) -> str:
    """The shares of tokens with one bump; nothing if none was measured by a sweep that could have shown some."""
    told = [claim for claim in claims if claim["says"] == BUMPS and not claim.get("blind")]
    return _range([claim["value"] for claim in told if claim["value"] is not None], "{:.0%}")


def _range(values: Sequence[float], form: str) -> str:
    ends = dict.fromkeys(form.format(end) for end in (min(values), max(values))) if values else ()
    return " to ".join(ends)
