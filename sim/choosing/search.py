"""The strength to steer with: solved on fixed text, and checked on what the steered model writes.

choice = sim.choose(lm, vector, prompts, layer=20, budget=1.0)
lm.generate(prompts, steering=choice.steering, alpha=choice.alpha)

The first guess is N9's, from one derivative on the prompts. At the guess the model writes; on that text the strength is
solved, with passes through the blocks behind the layer only. At what was solved the model writes again, with the same
randomness, and the strength is solved on the new text, until it stays.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from sim.bridge.generation import Sampling
from sim.bridge.model import LanguageModel
from sim.choosing.bounds import bounds_of
from sim.choosing.choice import Choice, Cost, Point, PromptChoice, aim_of, share_in_words
from sim.choosing.compute_cost import Work
from sim.choosing.criteria import (
    STATISTICS,
    Ceiling,
    KLBudget,
    Rising,
    ShareAtLeast,
    Situation,
    TextsAtLeast,
    floor_of,
    logit,
    statistic,
)
from sim.choosing.crossing import STEEPEST, crossing, first_rise, least_reaching
from sim.choosing.interpolation import expected_root
from sim.choosing.interval import interval_of
from sim.choosing.layers import over_layers
from sim.choosing.rollouts import (
    Effects,
    FixedText,
    Promotion,
    Rollouts,
    Tilt,
    Writer,
    added_vector,
    least_cost,
    members_of,
    promoted,
    prompts_alone,
    require_moving,
)
from theory.allocation import strength_for_each
from ufm._check import random_seed, require, shown, whole_number
from ufm.interventions import Add
from ufm.steering import After, All, Steering, without_budget

LOG = logging.getLogger(__name__)

TOLERANCE = 0.01
"""Relative error of a strength on a text."""

COARSE = 0.05
"""Relative error of a strength on the short text that comes first."""

SETTLED = 0.08
"""A strength stays if it differs by no more than so much from the one that its text was written at: text written at a
strength one per cent larger moves the solution by a fifth of that or less, and other random numbers move it as much."""

SHORT = 2
"""The first text is such a part of the horizon long."""

ROUNDS = 5
"""How often the model writes at most until the strength stays."""

HALVINGS = 5
"""How often the first strength that text is written at is halved at most, where logits are not finite."""

FEW = 4
"""Fewer prompts than these are spoken of: an interval over them says little."""

REPEATING = 0.1
"""A larger part of the texts that repeat themselves is spoken of."""

RESOLVED = 1e-9
"""KL of fewer nats is rounding in float32: on SmolLM2 it is a twentieth off at 1e-9, and three times too large at 1e-11."""

HARDLY = 0.01
"""A share whose log-odds rise by less is spoken of: it is a hundredth larger than without steering, if it is small."""

FINITE = "finite logits"
"""What stops a strength where a larger one gives NaN."""

FARTHEST = 1e4
"""Strengths are looked for up to this many times the first guess."""

LADDER = (8, 6)
"""For a share, strengths are looked at that double: so many at most below the one that a text is written at, and above."""

OF_TEXTS = (3, 4)
"""For a share of texts, strengths are looked at that double: so many at most below the first guess, and above."""

ELSEWHERE = 2
"""Texts on which a share is not reached, or is there without steering, before the search for it ends."""


def choose(
    lm: LanguageModel,
    steering: Any,
    prompts: Any,
    *,
    layer: int | str | None = None,
    budget: float | None = None,
    of: str = "p95",
    share: float | None = None,
    shows: Callable[[Sequence[str]], Any] | None = None,
    criteria: Sequence[Any] = (),
    tokens: Sequence[int] | None = None,
    horizon: int = 50,
    sign: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    chat: bool = False,
    completions: int = 3,
    other_weights: bool = False,
) -> Choice:
    """How hard to push: the largest strength within all limits, or the least that reaches a share of the concept.

    Args:
        lm: the model.
        steering: a `sim.SteeringVector`; a `Steering` with a layer for every part; or a vector ``[d]``, with `layer`.
        prompts: texts, token ids, or chats: what the model will be used on.
        layer: the block of a vector to steer after; may be left out if it has one only. With "auto" it is the one that gets
            most of the concept for the budget, or the share for the least cost.
        budget: KL per token that steering may cost, nats; 1 if no other limit and no share is named.
        of: the statistic of KL over the tokens that is to stay within it: p95, mean or max.
        share: the mean probability of the concept's tokens that is to be reached, with as little strength as does.
        shows: who says how probable it is that a text shows the concept: `sim.directions.opinions.Shows`, or any function of
            a list of texts. Then `share` is that of the texts that the steered model writes.
        criteria: further limits (`sim.choosing.criteria`).
        tokens: the concept's tokens; those that the steering promotes most if left out.
        horizon: tokens of each continuation that costs are measured on.
        sign: -1 for negative strengths, away from the concept. The share of `tokens` is then to fall, and no `share` can be
            asked for; if they are left out, they are those that negative strengths promote, whose share is to rise.
        sampling: how continuations are written; drawn from the model's probabilities if left out.
        seed: of their randomness.
        chat: whether prompts are what a user says.
        completions: for how many prompts what the model writes is kept.
        other_weights: whether a vector for the same model with other weights will do, another quantisation for instance.

    Raises:
        ValueError: no prompts, a steering for another model, a zero vector, a limit that is not positive, an unknown token.
    """
    require(isinstance(lm, LanguageModel), "lm", "a language model of sim.load", shown(lm))
    sign, completions, layer = _sign_of(sign), whole_number("completions", completions, 0), _layer_of(layer)
    require(shows is None or lm.tokenizer is not None, "shows", "none, for a model without a tokenizer", shown(shows))
    floor = floor_of(share, falls=sign < 0 and tokens is not None, shows=shows)
    limits = _limits(budget, of, share, criteria)
    horizon, seed = whole_number("horizon", horizon, 1), random_seed("seed", seed)
    if hasattr(steering, "require_fits"):
        steering.require_fits(lm, other_weights=other_weights)
    writer = Writer.of(lm, prompts, horizon, sampling=sampling, seed=seed, chat=chat)
    settings = _known(lm, steering, layer, tokens) | _limited(limits, of) | _reached(floor) | _written(writer, sign)

    def choose_at(place: int | None, concept: Any = tokens) -> Choice:
        return _Search(writer, _steering_of(steering, place), limits, floor, concept, sign, settings).run(completions)

    return over_layers(writer, steering, sign, tokens, choose_at) if isinstance(layer, str) else choose_at(layer)


def _sign_of(sign: Any) -> int:
    number = whole_number("sign", sign)
    require(number in (1, -1), "sign", "1 or -1", number)
    return number


def _layer_of(layer: Any) -> int | str | None:
    """A block by number, "auto", or None."""
    if layer is None:
        return None
    require(not isinstance(layer, str) or layer == "auto", "layer", 'a block by number, or "auto"', repr(layer))
    return layer if isinstance(layer, str) else whole_number("layer", layer)


def _known(lm: LanguageModel, steering: Any, layer: int | str | None, tokens: Sequence[int] | None) -> dict[str, Any]:
    """What a choice is about."""
    model = {"model": lm.name, "fingerprint": lm.fingerprint, "vector": getattr(steering, "name", None)}
    return model | {"layer": layer, "tokens": "promoted" if tokens is None else "given"}


def _limited(limits: Sequence[Ceiling], of: str) -> dict[str, Any]:
    """The limits of a choice, and the statistic of KL that is measured if none of them is a budget."""
    spent = next((limit for limit in limits if isinstance(limit, KLBudget) and not limit.reverse), None)
    nats, of = (None, of) if spent is None else (spent.nats, spent.of)
    return {"budget": nats, "statistic": of, "limits": [limit.name for limit in limits]}


def _reached(floor: ShareAtLeast | TextsAtLeast | None) -> dict[str, Any]:
    """The share that a choice is to reach, and who reads the texts if it is one of theirs."""
    shows = floor.shows if isinstance(floor, TextsAtLeast) else None
    name = None if shows is None else str(getattr(shows, "name", getattr(shows, "__name__", shows)))
    return {"share": floor and floor.share, "shows": name}


def _written(writer: Writer, sign: int) -> dict[str, Any]:
    """How the texts of a choice are written."""
    sampled = {"horizon": writer.horizon, "seed": writer.seed, "sign": sign, "temperature": writer.sampling.temperature}
    return sampled | {"prompts": writer.prompt_texts}


def _steering_of(steering: Any, layer: int | None) -> Steering:
    """What was given as a steering, with a layer for every part.

    Raises:
        ValueError: something else; a vector of several layers, without one of them.
    """
    if hasattr(steering, "require_fits"):
        several = layer is None and len(steering.layers) > 1
        require(not several, "layer", f"one of the vector's {len(steering.layers)} blocks", "none")
        return steering.steering(steering.layers[0] if layer is None else layer)
    if isinstance(steering, Steering):
        placed = all(part.layer is not None for part in steering.parts)
        require(
            placed and layer is None, "layer", "a layer in every part of the steering, and none beside it", repr(steering)
        )
        return without_budget(steering, "a choice: its budget is an argument")
    known = layer is not None and np.ndim(steering) == 1
    require(known, "steering", "a SteeringVector, a Steering({layer: ...}), or a vector [d] with layer=", shown(steering))
    return Steering({layer: Add(jnp.asarray(np.asarray(steering, np.float32)))})


def _at_every_token(steering: Steering) -> Steering:
    """A steering in which what begins after so many tokens begins at once."""
    return Steering.of([replace(part, tokens=All()) if isinstance(part.tokens, After) else part for part in steering.parts])


def _limits(budget: float | None, of: str, share: float | None, criteria: Sequence[Any]) -> tuple[Ceiling, ...]:
    require(isinstance(of, str) and of in STATISTICS, "of", f"one of {', '.join(STATISTICS)}", repr(of))
    expected = "limits such as LossRise(0.2), while a floor is share="
    require(isinstance(criteria, Iterable), "criteria", f"a list of {expected}", shown(criteria))
    criteria = tuple(criteria)
    for criterion in criteria:
        require(isinstance(criterion, Ceiling), "criteria", expected, shown(criterion))
    if budget is None and (criteria or share is not None):
        return tuple(criteria)
    return KLBudget(1.0 if budget is None else budget, of), *criteria


class _NoStrengthError(Exception):
    """There is no strength; the words say why."""


class _ThereError(_NoStrengthError):
    """A share is there without steering, on what the unsteered model writes."""


class _NotFiniteError(_NoStrengthError):
    """The model does not write at a strength."""


class _OtherTextError(_NoStrengthError):
    """A text does not tell the strength for a share; one that is written at another strength may.

    Attributes:
        alpha: that strength.
        is_there: whether the share is had without steering.
    """

    def __init__(self, reason: str, alpha: float, *, is_there: bool) -> None:
        super().__init__(reason)
        self.alpha, self.is_there = alpha, is_there


class _Search:
    """The steps of a choice, and what they share. Strengths are positive here; the sign is put to them outside."""

    def __init__(
        self,
        writer: Writer,
        steering: Steering,
        limits: tuple[Ceiling, ...],
        floor: ShareAtLeast | TextsAtLeast | None,
        tokens: Any,
        sign: int,
        settings: dict[str, Any],
    ) -> None:
        self.lm, self.writer, self.steering, self.limits, self.floor = writer.lm, writer, steering, limits, floor
        self.sign, self.settings = sign, settings
        self.aim = aim_of(settings)
        # The least strength that is known to give logits that are not finite.
        self.too_large = np.inf
        self.layer = min(int(part.layer) for part in steering.parts)
        self.work = Work.of(self.lm.config, writer)
        self.points: list[Point] = []
        self.warning = ""
        # The share of the texts of the unsteered model that show the concept, where one of texts is asked for.
        self.shown = np.nan
        # Whether a share is known to be missed without steering, on what the unsteered model writes.
        self.has_room = False
        self.steepness = 2.0 if floor is None else 1.0
        self.slope = any(limit.needs_slope for limit in limits)
        budgets = [limit for limit in limits if isinstance(limit, KLBudget)]
        self.budget = budgets[0] if budgets else KLBudget()
        self.base_loss = np.nan
        vector = added_vector(steering)
        self.added = None if vector is None else float(jnp.linalg.norm(vector))
        self.members, self.prompts, self.tilt = self._look_at_prompts(tokens)

    def run(self, completions: int) -> Choice:
        """Take all steps, and put together what they found."""
        guess = float(np.sqrt(self.budget.nats / statistic(self.tilt.variance / 2, self.budget.of)))
        last = self.lm.config.num_layers - 1
        LOG.info("block %d (of 0 to %d): the first guess is strength %.4g", self.layer, last, self.sign * guess)
        if any(limit.needs_base_text for limit in self.limits):
            base = self._text(self.writer())
            self.base_loss = float(np.mean(base.entropy[base.rollouts.counted]))
        before = float(np.nanmean(self.tilt.share))
        bounds = bounds_of(self.lm, self.prompts, self.tilt, self.budget, self.sign)
        none = Choice(
            alpha=None,
            layer=self.layer,
            interval=None,
            per_prompt=(),
            cost=None,
            share=(before, before),
            least_cost=None,
            efficiency=None,
            safe_alpha=bounds,
            guess=self.sign * guess,
            stopped_by="nothing",
            passes=0.0,
            reason="",
            steering=self.steering,
            tokens=tuple(np.flatnonzero(np.asarray(self.members)).tolist()),
            words=self._words(),
            points=(),
            settings=self.settings,
        )
        try:
            if isinstance(self.floor, TextsAtLeast):
                solved = self._settle_on_texts(self.floor, guess)
            else:
                solved = self._settle(guess if self.floor is None else self._least_guess(self.floor, before))
        except _NoStrengthError as reason:
            return replace(none, reason=str(reason), points=tuple(self.points), passes=self.work.passes)
        return self._described(none, *solved, completions)

    def _look_at_prompts(self, tokens: Any) -> tuple[Any, FixedText, Tilt]:
        """Which tokens the concept is, and how predictions in the prompts move at strength 0."""
        rollouts, v = prompts_alone(self.writer.prompts), self.lm.config.vocab_size
        self.work.read(rollouts)
        # What is steered after the prompts alone is steered in them here, so that there is something to see.
        text = FixedText.of(self.lm, rollouts, _at_every_token(self.steering), skip=False)
        self.work.derived(rollouts, self.layer)
        members = np.zeros(v, bool) if tokens is None else members_of(tokens, v)
        slopes = text.logit_slopes()
        if slopes is not None:
            self.work.tilted(rollouts, kept=True)
        tilt, promotion = self._tilt(text, members, slopes)
        require_moving(tilt.variance[text.rollouts.counted], added_vector(self.steering))
        if tokens is None:
            members = promoted(promotion, self.sign)
            tilt, _ = self._tilt(text, members, slopes)
        require(0 < members.sum() < v, "tokens", "some tokens, and not all", f"{members.sum()} of {v}")
        return jnp.asarray(members), text, tilt

    def _tilt(self, text: FixedText, members: np.ndarray, slopes: Any) -> tuple[Tilt, Promotion]:
        if slopes is None:
            self.work.tilted(text.rollouts)
        return text.tilt(jnp.asarray(members), slopes)

    def _least_guess(self, floor: ShareAtLeast, before: float) -> float:
        """Where the search for a share begins: a strength at which most predictions cost less than one nat to first order.

        Where log-odds that grow at most twice as fast as they begin to do not reach the share before, a smaller one.

        Args:
            floor: the share.
            before: what it is in the prompts.

        Raises:
            _ThereError: it is reached already.
        """
        most = float(np.sqrt(1 / statistic(self.tilt.variance / 2, "p95")))
        if before >= floor.share:
            self._require_room(before)
            return most
        if before == 0:
            return most
        slope = self.sign * float(np.nanmean(self.tilt.covariance)) / (before * (1 - before))
        return min(most, (logit(floor.share) - logit(before)) / (2 * slope)) if slope > 0 else most

    def _require_room(self, in_prompts: float | None = None) -> None:
        """Refuse a share that is there without steering, on the text that the unsteered model writes.

        Args:
            in_prompts: what it is in the prompts, if that is spoken of.

        Raises:
            _ThereError: it is there.
        """
        assert self.floor is not None
        self.has_room = True
        share = float(np.nanmean(self._text(self.writer()).shares(self.members)))
        if share >= self.floor.share:
            prompts = "" if in_prompts is None else f" and {in_prompts:.3g} in the prompts"
            raise _ThereError(
                f"the share {self.floor.share:g} is reached without steering already: it is {share:.3g} on the text that "
                f"the unsteered model writes{prompts}"
            )

    # --- the strength ----------------------------------------------------------------------------------------------------

    def _settle(self, guess: float) -> tuple[float, FixedText, dict[float, Effects]]:
        """The strength that text written at it gives again, that text, and what was looked at on it.

        A short text is there to come near. What it does not reach, a longer one may.
        """
        alpha = guess
        if self.writer.horizon >= 2 * SHORT:
            try:
                text, written = self._write(alpha, self.writer.horizon // SHORT, halvings=HALVINGS)
                alpha = self._solve(text, written, COARSE)[0]
            except _ThereError:
                raise
            except _OtherTextError as other:
                alpha = other.alpha
            except _NoStrengthError:
                pass
        alpha, text, written, looked_at = self._rounds(alpha)
        if self.floor is not None:
            self._require_within(text, alpha, looked_at[alpha])
        finite = {strength: effects for strength, effects in looked_at.items() if effects.is_finite}
        if len(finite) < 2:
            other_end = 1.2 * alpha if 1.2 * alpha < self.too_large else alpha / 1.2
            self._look(text, written, other_end, finite)
        return alpha, text, {strength: effects for strength, effects in finite.items() if effects.is_finite}

    def _settle_on_texts(self, floor: TextsAtLeast, guess: float) -> tuple[float, FixedText, dict[float, Effects]]:
        """The least strength at which texts show the concept often enough, its text, and what texts of others have shown.

        A text is read once it is written: every strength that is looked at costs one.

        Raises:
            _NoStrengthError: texts show it often enough without steering, or at no strength that was tried.
        """
        unsteered = self.writer()
        self.work.wrote(unsteered)
        self.shown = float(floor.of(self.writer.texts(unsteered)).mean())
        if self.shown >= floor.share:
            raise _ThereError(f"without steering {self.shown:.1%} of the texts show the concept already")
        texts: dict[float, FixedText] = {}
        looked_at: dict[float, Effects] = {}

        def excess(alpha: float) -> float:
            try:
                text, _ = self._write(alpha)
            except _NotFiniteError:
                return np.inf
            effects = self._effects(text, alpha, alpha)
            if not effects.is_finite:
                return np.inf
            texts[alpha] = text
            looked_at[alpha] = effects._replace(shown=floor.of(self.writer.texts(text.rollouts)))
            part, said = (
                100 * looked_at[alpha].shown.mean(),
                "block %d: %.1f %% of the texts written at %.4g show the concept",
            )
            LOG.info(said, self.layer, part, self.sign * alpha)
            return self._excess(text, alpha, looked_at[alpha])

        rungs = [guess * 2.0**k for k in range(-OF_TEXTS[0], OF_TEXTS[1] + 1)]
        alpha = least_reaching(excess, rungs, tolerance=COARSE, least=guess / FARTHEST)
        if alpha is None:
            if not texts:
                raise _NoStrengthError(self._unreached(too_much=False))
            best = max(texts, key=lambda strength: looked_at[strength].shown.mean())
            ends = " to ".join(f"{self.sign * end:.4g}" for end in (min(texts), max(texts)))
            raise _NoStrengthError(
                f"no strength that was tried ({ends}) makes {floor.share:.1%} of the texts show the concept: at most "
                f"{looked_at[best].shown.mean():.1%} do, at {self.sign * best:.4g}, and {self.shown:.1%} without steering"
            )
        self._require_within(texts[alpha], alpha, looked_at[alpha])
        return alpha, texts[alpha], {strength: looked_at[strength] for strength in texts}

    def _rounds(self, alpha: float) -> tuple[float, FixedText, float, dict[float, Effects]]:
        """Texts at a strength and at those that are solved on them, until it stays.

        Returns:
            The strength, the text, the strength that it was written at, and what was looked at on it.

        Raises:
            _NoStrengthError: no strength is known after the last round.
        """
        solved: tuple[float, FixedText, float, dict[float, Effects]] | None = None
        elsewhere, below, above = 0, 0.0, np.inf
        for _ in range(ROUNDS):
            try:
                text, written = self._write(alpha, halvings=0 if solved else HALVINGS)
                alpha, looked_at = self._solve(text, written, TOLERANCE)
            except _NotFiniteError as error:
                if solved is None:
                    raise
                # What was looked at on the text of the round before stays.
                alpha, text, written, looked_at = solved
                self.warning = f"{error}: the text written at {self.sign * written:.4g} is kept"
                return min(alpha, written), text, written, looked_at
            except _OtherTextError as other:
                elsewhere += 1
                if elsewhere == ELSEWHERE and solved is not None and other.is_there:
                    self.warning = f"{other}: the text written at {self.sign * solved[2]:.4g} is kept"
                    return solved
                if elsewhere == ELSEWHERE or abs(np.log(other.alpha / written)) <= SETTLED:
                    raise
                # Halfway back, where a text has told a strength before.
                alpha = other.alpha if solved is None else float(np.sqrt(other.alpha * solved[2]))
                continue
            solved = alpha, text, written, looked_at
            if abs(np.log(alpha / written)) <= SETTLED:
                return solved
            below, above = (max(below, written), above) if alpha > written else (below, min(above, written))
            if 0 < below < above < np.inf:
                # Two texts may each lead to the strength of the other: one between them is written.
                alpha = _well_between(alpha, below, above)
        if solved is None:
            raise _NoStrengthError(f"no text of {ROUNDS} tells the strength")
        moved = abs(solved[0] / solved[2] - 1)
        self.warning = f"after {ROUNDS} rounds of writing the strength still moves by {moved:.0%}"
        return solved

    def _write(self, alpha: float, horizon: int | None = None, *, halvings: int = 0) -> tuple[FixedText, float]:
        """Text of the model at a strength, of fewer tokens where a horizon is named, and the strength.

        Where logits are not finite, the strength is halved so often at most.

        Raises:
            _NotFiniteError: logits are not finite at any of these.
        """
        writer = self.writer if horizon is None else replace(self.writer, horizon=horizon)
        for strength in alpha / 2.0 ** np.arange(halvings + 1):
            try:
                return self._text(writer(self.steering, self.sign * float(strength))), float(strength)
            except ValueError as error:
                if "finite" not in str(error):
                    raise
                self.too_large = min(self.too_large, float(strength))
        raise _NotFiniteError(f"at strength {self.sign * self.too_large:.4g} logits are not finite")

    def _text(self, rollouts: Rollouts) -> FixedText:
        """A text that the model wrote, read."""
        self.work.wrote(rollouts)
        self.work.read(rollouts)
        return FixedText.of(self.lm, rollouts, self.steering)

    def _solve(self, text: FixedText, written: float, tolerance: float) -> tuple[float, dict[float, Effects]]:
        """The strength on a text that was written at another, and what was looked at.

        Raises:
            _NoStrengthError: no limit is reached, or the share is not.
        """
        looked_at: dict[float, Effects] = {}

        def excess(alpha: float) -> float:
            return self._look(text, written, alpha, looked_at)

        def expected(low: float, high: float) -> float | None:
            return expected_root(lambda alpha, effects: self._excess(text, alpha, effects), looked_at, low, high)

        options: dict[str, Any] = {"expected": expected}
        start = written
        if isinstance(self.floor, ShareAtLeast):
            low, start = self._bracket(self.floor, text, written, excess, looked_at)
            # Below the first rung, the share falls to what it is without steering.
            options |= {"between": (low, start)} if low > 0 else {"stride": 2.0}
        # A share that falls from the first strength on does so at all smaller ones, and tends to 0 there.
        smallest = written / FARTHEST if any(isinstance(limit, Rising) for limit in self.limits) else 0.0
        options |= {"most": FARTHEST * written, "least": smallest}
        result = crossing(excess, start, steepness=self.steepness, tolerance=tolerance, **options)
        if result.alpha is None:
            raise _NoStrengthError(self._unreached(too_much=result.low == 0))
        horizon, (start, end) = text.rollouts.horizon, (self.sign * written, self.sign * result.alpha)
        said = "block %d: text of %d tokens a prompt, written at %.4g, asks for %.4g"
        LOG.info(said, self.layer, horizon, start, end)
        self.steepness = result.steepness
        return result.alpha, looked_at

    def _bracket(
        self,
        floor: ShareAtLeast,
        text: FixedText,
        written: float,
        excess: Callable[[float], float],
        looked_at: dict[float, Effects],
    ) -> tuple[float, float]:
        """Strengths that the least one with the share is between, on a text: the lower one is 0 where none is known.

        A share may have a peak, and the text may be written at a strength beyond it: small strengths are looked at first.
        What a share costs at least (N15), and KL as the square of the strength, say how small the first of them may be.

        Raises:
            _OtherTextError: the share is there without steering, or at no strength that was looked at.
        """
        before = text.shares(self.members)
        share, place = float(np.nanmean(before)), f"on the text that the model writes at strength {self.sign * written:.4g}"
        if share >= floor.share:
            if not self.has_room:
                self._require_room()
            reason = f"the share {floor.share:g} is there without steering {place}, where it is {share:.3g}"
            raise _OtherTextError(reason, written / 4, is_there=True)
        excess(written)
        paid = float(np.nanmean(looked_at[written].kl)) if written in looked_at else np.nan
        needed = least_cost(before, np.where(np.isnan(before), np.nan, floor.share))
        rungs = np.log2(paid / needed) / 2 if paid > 0 and needed > 0 else float(LADDER[0])
        below = int(np.clip(np.ceil(rungs) + 1, 1, LADDER[0])) if np.isfinite(rungs) else LADDER[0]
        bracket = first_rise(excess, [written * 2.0**k for k in range(-below, LADDER[1] + 1)])
        if bracket is not None:
            return bracket
        known = {alpha: float(np.nanmean(effects.share)) for alpha, effects in looked_at.items() if effects.is_finite}
        if not known:
            raise _NoStrengthError(self._unreached(too_much=False))
        best = max(known, key=lambda alpha: known[alpha])
        ends = " to ".join(f"{self.sign * end:.4g}" for end in (min(known), max(known)))
        raise _OtherTextError(
            f"no strength that was tried ({ends}) reaches the share {floor.share:g} {place}: at most it is "
            f"{known[best]:.3g}, at {self.sign * best:.4g}, and {share:.3g} without steering",
            best,
            is_there=False,
        )

    def _look(self, text: FixedText, written: float, alpha: float, looked_at: dict[float, Effects]) -> float:
        """By how much a strength is too large, and what it does put down in `looked_at`."""
        if alpha >= self.too_large:
            return np.inf
        if alpha not in looked_at:
            looked_at[alpha] = self._effects(text, written, alpha)
        return self._excess(text, alpha, looked_at[alpha])

    def _effects(self, text: FixedText, written: float, alpha: float) -> Effects:
        """What a strength does on a text that was written at another."""
        unembedded = text.last_step is None
        self.work.steered(text.rollouts, self.layer, derivative=self.slope, unembedded=unembedded)
        effects = text.effects(self.sign * alpha, self.members, slope=self.slope)
        if effects.is_finite:
            share = float(np.nanmean(effects.share))
            self.points.append(Point(self.sign * alpha, Cost.of(effects), share, self.sign * written))
        else:
            self.too_large = alpha
        return effects

    def _situation(self, text: FixedText, alpha: float, effects: Effects) -> Situation:
        return Situation(effects, self.sign * alpha, self._relative(text, alpha), self.base_loss, self.aim)

    def _excess(self, text: FixedText, alpha: float, effects: Effects) -> float:
        """What is to cross 0: the share's if one is to be reached, or the first of the limits'."""
        if not effects.is_finite:
            return np.inf
        situation = self._situation(text, alpha, effects)
        if self.floor is not None:
            return self.floor.excess(situation)
        return max(limit.excess(situation) for limit in self.limits)

    def _require_within(self, text: FixedText, alpha: float, effects: Effects) -> None:
        """Refuse a share that is not reached, since larger strengths give nothing, or that costs more than limits allow."""
        situation = self._situation(text, alpha, effects)
        if isinstance(self.floor, ShareAtLeast) and self.floor.excess(situation) < -STEEPEST * TOLERANCE:
            raise _NoStrengthError(self._unreached(too_much=False))
        broken = [limit.name for limit in self.limits if limit.excess(situation) > 2 * TOLERANCE]
        if broken and self.floor is not None:
            cost = Cost.of(effects)
            raise _NoStrengthError(
                f"the share {self.floor.share:g} needs strength {self.sign * alpha:.4g}, which costs {cost.mean:.3g} nats "
                f"per token (95th percentile {cost.p95:.3g}): more than {' and '.join(broken)} allows"
            )

    def _unreached(self, *, too_much: bool) -> str:
        """Why no strength was found."""
        if self.points and self.floor is None and too_much:
            first = min(self.points, key=lambda point: abs(point.alpha))
            names = " and ".join(limit.name for limit in self.limits)
            falls = any(isinstance(limit, Rising) for limit in self.limits)
            why = f" (the concept's share does not {'rise' if self.aim > 0 else 'fall'} there)" if falls else ""
            return f"the smallest strength that was looked at, {first.alpha:.3g}, is too much already for {names}{why}"
        if self.floor is not None and self.points:
            return f"the share {self.floor.share:g} is not reached at the strengths that were tried"
        if not self.points:
            return "no strength gives finite logits"
        last = max(self.points, key=lambda point: abs(point.alpha))
        spent = f"KL is {last.cost.p95:.3g} nats at the 95th percentile"
        return f"no limit is reached up to strength {last.alpha:.4g}, where {spent}"

    def _relative(self, text: FixedText, alpha: float) -> float:
        """The length of what is added in units of the median length of the states; NaN if it is not one vector."""
        return np.nan if self.added is None else alpha * self.added / text.scale

    # --- the answer ------------------------------------------------------------------------------------------------------

    def _described(
        self,
        none: Choice,
        alpha: float,
        text: FixedText,
        looked_at: dict[float, Effects],
        completions: int,
    ) -> Choice:
        """The choice with a strength."""
        effects = looked_at[alpha]
        before, after = text.shares(self.members), effects.share
        cost = Cost.of(effects)
        share, least = (float(np.nanmean(before)), float(np.nanmean(after))), least_cost(before, after)
        situation = self._situation(text, alpha, effects)
        stopped = self._stopped_by(alpha, situation)
        coarse = cost.max < RESOLVED and self.budget in self.limits
        unresolved = (
            f"costs below {RESOLVED:.0e} nats cannot be told from rounding in float32: the strength is not known well"
        )
        ends = interval_of(lambda a, of: self._excess(text, a, of), looked_at, alpha, self.writer.seed)
        if ends is not None:
            low, high = sorted((self.sign * ends[0], self.sign * min(ends[1], self.too_large)))
            ends = low, high
        broken = f"at strength {self.sign * self.too_large:.4g} logits are not finite" if stopped == FINITE else ""
        return replace(
            none,
            alpha=self.sign * alpha,
            interval=ends,
            per_prompt=self._per_prompt(alpha, effects),
            cost=cost,
            share=share,
            shown=(self.shown, float(effects.shown.mean())) if isinstance(self.floor, TextsAtLeast) else None,
            least_cost=least,
            efficiency=least / cost.mean if cost.mean > 0 else None,
            stopped_by=stopped,
            reason="; ".join(
                filter(None, [self.warning or broken, unresolved if coarse else "", *self._notes(text.rollouts, *share)])
            ),
            points=tuple(self.points),
            completions=self._completions(alpha, text, completions),
            passes=self.work.passes,
        )

    def _stopped_by(self, alpha: float, situation: Situation) -> str:
        """What a larger strength would break, or the share that a smaller one would miss."""
        if self.floor is not None:
            return self.floor.name
        excess, name = max((limit.excess(situation), limit.name) for limit in self.limits)
        at_the_end = self.too_large <= (1 + 2 * TOLERANCE) * alpha and excess < -STEEPEST * TOLERANCE
        return FINITE if at_the_end else name

    def _per_prompt(self, alpha: float, effects: Effects) -> tuple[PromptChoice, ...]:
        """What the strength is to each prompt."""
        gain, price = _row_means(self.aim * self.sign * self.tilt.covariance), _row_means(self.tilt.variance)
        known, own = ~np.isnan(price), np.full(len(price), np.nan)
        budget = alpha**2 * price[known].mean() / 2
        own[known] = strength_for_each(jnp.asarray(gain[known]), jnp.asarray(price[known]), float(budget))
        columns = (_row_means(effects.kl), _row_means(effects.share), self.sign * own)
        rows = zip(*([None if np.isnan(x) else float(x) for x in column] for column in columns), strict=True)
        tokenizer = self.lm.tokenizer
        names = [str(list(row[-8:])) if tokenizer is None else tokenizer.decode(row)[-80:] for row in self.writer.prompts]
        return tuple(PromptChoice(name, *row) for name, row in zip(names, rows, strict=True))

    def _notes(self, rollouts: Rollouts, before: float, after: float) -> list[str]:
        """What a reader should know of a choice that was made.

        Args:
            rollouts: the text that was written at it.
            before, after: the mean share without steering and with it.
        """
        verb = "rise" if self.aim > 0 else "fall"
        whose = share_in_words(self.settings)
        against = f"{whose} does not {verb}: {before:.3g} without steering, {after:.3g} with it"
        hardly = f"{whose} hardly {verb}s, from {before:.4g} to {after:.4g}"
        little = self.aim * (logit(after) - logit(before)) < HARDLY
        moved = against if self.aim * (after - before) <= 0 else hardly if little else ""
        count = len(self.writer.prompts)
        few = f"{count} prompt{'s say' if count > 1 else ' says'} little of others; 8 or more are better"
        repeating = int(rollouts.repeating.sum())
        stuck = f"{repeating} of {count} texts written at it repeat themselves: read the completions, or ask for less"
        return [moved, stuck if repeating > REPEATING * count else "", few if count < FEW else ""]

    def _words(self) -> tuple[str, ...]:
        """The concept's tokens as text."""
        tokenizer = self.lm.tokenizer
        return () if tokenizer is None else tuple(map(tokenizer.decode, np.flatnonzero(self.members)[:, None].tolist()))

    def _completions(self, alpha: float, text: FixedText, count: int) -> dict[float, tuple[str, ...]]:
        """What the model writes after the first prompts: unsteered, at the strength, and at twice it."""
        few = replace(self.writer, prompts=self.writer.prompts[:count])
        if not few.prompts or self.lm.tokenizer is None:
            return {}
        strengths = [0.0, self.sign * alpha, 2 * self.sign * alpha]
        written = {strengths[1]: self.writer.texts(text.rollouts)[:count]}
        for strength in (strengths[0], strengths[2]):
            try:
                rollouts = few(self.steering, strength)
            except ValueError:  # logits that are not finite: there is nothing to show
                continue
            self.work.wrote(rollouts)
            written[strength] = few.texts(rollouts)
        return dict(sorted(written.items(), key=lambda pair: abs(pair[0])))


def _row_means(values: Any) -> np.ndarray:
    """The mean of each row over what is not NaN, ``[n]``; NaN where nothing is."""
    counts = (~np.isnan(values)).sum(axis=1)
    return np.where(counts > 0, np.nansum(values, axis=1) / np.maximum(counts, 1), np.nan)


def _well_between(alpha: float, low: float, high: float) -> float:
    """A strength between two others, or their middle where it is not, or is as good as one of them."""
    inside = low * (1 + SETTLED) < alpha < high / (1 + SETTLED)
    return alpha if inside else float(np.sqrt(low * high))
