"""The form of a statement: a margin, positive where the statement holds and negative where it fails.

From the one form come all the ways to check it (`theory.routes`). A statement comes with its hypotheses, themselves
margins, and with a *false twin*: a plausible wrong version that every route must reject, which is how the routes are
tested. An instance on which a statement claims nothing has margin +inf, and is never counted as a success.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from theory import examples, random_instances
from theory._compilation import compiled_briefly, compiled_quickly
from theory.instance import Instance, with_peaks
from theory.symbolic import Identity
from ufm._batches import map_in_batches
from ufm._check import require, typed

Margin = Callable[[Any], Float[Array, ""]]


def _as_it_is(instance: Any) -> Any:
    """Margins share nothing."""
    return instance


def _no_sweeps(seed: int) -> Sequence[Any]:
    """Nothing of the kind is trained."""
    del seed
    return ()


BATCH = 50
"""Instances that a margin is vectorised over at a time: enough to fill the processor, few enough for its caches."""


MANY = 5_000
"""Instances from which on a program that runs faster pays for taking twice as long to compile."""


@dataclass(frozen=True)
class Domain:
    """The domain of a statement: random instances of it, and how gradients move one.

    Attributes:
        name: such as "tables".
        sample: from a key and names of families, a discrete design and smooth parameters.
        assemble: the instance of both.
        families: names that `sample` takes, the default choice.
        complete: adds to an instance what margins share, so that it is computed once.
        measured: sweeps of trained models, given a seed: what the sweep route reads.
        kind: the class of instances.
    """

    name: str
    sample: Callable[[jax.Array, Sequence[str]], tuple[Any, Any]]
    assemble: Callable[[Any, Any], Any]
    families: tuple[str, ...] = ()
    complete: Callable[[Any], Any] = field(default=_as_it_is)
    measured: Callable[[int], Sequence[Any]] = field(default=_no_sweeps)
    kind: type = field(default=object)


TABLES = Domain(
    "tables",
    random_instances.sample,
    random_instances.assemble,
    random_instances.FAMILIES,
    complete=with_peaks,
    measured=examples.measured,
    kind=Instance,
)
"""Next-token tables of disjoint concepts (`theory.instance.Instance`)."""


class Curve(NamedTuple):
    """An inequality over strengths, in a form that ball arithmetic decides: every entry positive, at every strength.

    Attributes:
        function: of an instance and a strength; entries that are +inf claim nothing.
        interval: the strengths, in units of 1/R.
        zero: the order of a zero that the entries are known to have at strength 0, an end of the interval.
        beyond: of an instance and a strength. Where all its entries are positive at a strength A, a function that is
            positive at A is known to be so at all strengths beyond A, away from 0: the claim is then proved on all of R.
    """

    function: Callable[[Any, Float[Array, ""]], Float[Array, "..."]]
    interval: tuple[float, float] = (-64.0, 64.0)
    zero: int = 0
    beyond: Callable[[Any, Float[Array, ""]], Float[Array, "..."]] | None = None


class Count(NamedTuple):
    """How often a function of the strength changes its sign, in a form that ball arithmetic decides.

    Attributes:
        function: of an instance and a strength; entries that are +inf claim nothing.
        most: of an instance: for every entry, the largest number of changes of sign that is claimed.
        interval: the strengths, in units of 1/R.
        beyond: of an instance and a strength. Where all its entries are positive at a strength A, no sign changes at
            strengths beyond A, away from 0: the claim is then proved on all of R.
    """

    function: Callable[[Any, Float[Array, ""]], Float[Array, "..."]]
    most: Callable[[Any], Int[Array, "..."]]
    interval: tuple[float, float] = (-64.0, 64.0)
    beyond: Callable[[Any, Float[Array, ""]], Float[Array, "..."]] | None = None


@dataclass(frozen=True)
class Claim:
    """What is claimed, with one part for each route that can check it; a route that cannot has none.

    Attributes:
        tex: the claim, in TeX.
        instances: the margin from closed forms; this is *the* margin of the statement.
        autodiff: the margin from derivatives that JAX takes through a model with gap 0, instead of the closed forms'.
        sweep: the margin read off the measured sweep of a trained model.
        curves: what ball arithmetic proves on an exact instance; all together imply the claim there, or the part of it that
            the page of the proof says.
        identities: equalities of symbolic expressions that make up the claim.
        counts: what ball arithmetic counts on an exact instance, as part of the same proof as the curves.
        reading: what the margin is a measure of, in words that go on "Here it is ...".

    Margins of inequalities include an allowance for rounding, so that a statement holds exactly where its margin is
    positive; margins of equalities are a tolerance less the error.
    """

    tex: str
    instances: Margin
    autodiff: Margin | None = None
    sweep: Callable[[Any], float] | None = None
    curves: tuple[Curve, ...] = ()
    identities: Callable[[], tuple[Identity, ...]] | None = None
    counts: tuple[Count, ...] = ()
    reading: str = field(default="")


class Hypothesis(NamedTuple):
    """A condition that a statement needs: in words, and as a margin that is positive where it is given."""

    words: str
    margin: Margin


@dataclass(frozen=True)
class Statement:
    """A numbered statement.

    Attributes:
        id: such as "theorem-3.3.bump".
        title: a few words.
        source: "S, " and what it is in the paper; N and the number of a result of the project; "own" where there is none.
        claim: what it says, and its margins.
        twin: a plausible wrong version.
        hypotheses: by name; all margins must be positive for the statement to apply.
        remarks: what a reader should know beyond the claim.
        domain: what it is about.
        proof: the page of the documentation that proves it.
        figure: the dataset of the figures that show it.
    """

    id: str
    title: str
    source: str
    claim: Claim
    twin: Claim
    hypotheses: Mapping[str, Hypothesis]
    remarks: str = field(default="")
    domain: Domain = field(default=TABLES)
    proof: str = field(default="")
    figure: str = field(default="")

    @property
    def conditions(self) -> tuple[Margin, ...]:
        """The margins of the hypotheses."""
        return tuple(hypothesis.margin for hypothesis in self.hypotheses.values())


@typed
def find(statement_id: str, registry: Mapping[str, Statement]) -> Statement:
    """The statement of that id, or the only one that it names.

    Raises:
        ValueError: several; none. The message lists them, or the near matches.
    """
    statements = find_all(statement_id, registry)
    parts = ", ".join(statement.id for statement in statements)
    require(len(statements) == 1, "statement", f"one of {parts}", repr(statement_id))
    return statements[0]


@typed
def find_all(statement_id: str, registry: Mapping[str, Statement]) -> list[Statement]:
    """The statements that a name stands for: "theorem-3.6.tanh", all parts of "theorem-3.6", or "3.6" for short.

    Raises:
        ValueError: none; the message lists the near matches: those of the same number first, then by kind and number.
    """
    if statement_id in registry:
        return [registry[statement_id]]
    words = statement_id.strip().lower().replace(" ", "-")
    hyphenated = re.sub(r"(?<=[a-z]{2})(?=(b\.)?\d)", "-", words)
    parts = [key for key in registry if any(_begins(key, alias) for alias in (words, hyphenated, f"n{words}"))]
    parts = parts or [key for key in registry if _begins(_number(key), words)]
    if parts:
        return [registry[key] for key in parts]
    near = sorted(registry, key=partial(_distance, words))[:6]
    raise ValueError(f"statement: expected a known id such as {', '.join(near)}, got {statement_id!r}")


def _distance(name: str, key: str) -> tuple[bool, bool, bool, float, float]:
    """A sort key by which ids are near to a name: the same series and number, the same kind, near numbers, like letters."""
    unlike = -max(difflib.SequenceMatcher(None, name, part).ratio() for part in (key.lower(), key.rpartition(".")[2]))
    asked, known = _numbered(name), _numbered(key.lower())
    if asked is None or known is None:
        return asked is not None, True, True, 0.0, unlike
    apart = abs(asked[2] - known[2])
    return asked[0] != known[0], apart > 0, asked[1] != known[1], apart, unlike


def _numbered(name: str) -> tuple[str, str, float] | None:
    """The series ("n", "b", or "" for sections of the paper), the kind and the number of an id; None without a number."""
    match = re.match(r"([a-z]*)-?(b?)\.?(\d+(?:\.\d+)?)", name)
    if match is None:
        return None
    kind, series, number = match.groups()
    ours = kind == "n" or not (kind or series or "." in number)
    return "n" if ours else series, kind, float(number)


def _begins(key: str, name: str) -> bool:
    """True where a name is that of an id, or of the statement that it is a part of."""
    return key.lower() == name or key.lower().startswith(f"{name}.")


def _number(key: str) -> str:
    """The part of an id after the kind: "3.6.tanh" of "theorem-3.6.tanh"."""
    return key.partition("-")[2] or key


# Statements share their hypotheses, so that these compile once for all; margins compile once each.
@partial(jax.jit, static_argnums=0)
def hold(hypotheses: tuple[Margin, ...], instance: Any) -> Bool[Array, ""]:
    """True where all margins of hypotheses are positive on an instance."""
    return jnp.all(jnp.stack([margin(instance) > 0 for margin in hypotheses])) if hypotheses else jnp.asarray(True)


@partial(compiled_quickly, static_argnums=0)
def hold_on(hypotheses: tuple[Margin, ...], batch: Any) -> Bool[Array, " n"]:
    """True for each instance of a batch where all hypotheses hold."""
    return jax.vmap(lambda instance: hold(hypotheses, instance))(batch)


def margins_on(margin: Margin, batch: Any) -> Float[Array, " n"]:
    """A margin on every instance of a batch, vectorised over `BATCH` at a time."""
    n = jax.tree.leaves(batch)[0].shape[0]
    return (_margins_soon if n <= MANY else _margins_fast)(margin, batch)


def _margins(margin: Margin, batch: Any) -> Float[Array, " n"]:
    return map_in_batches(margin, batch, BATCH)


_margins_soon = partial(compiled_quickly, static_argnums=0)(_margins)
_margins_fast = partial(compiled_briefly, static_argnums=0)(_margins)


@partial(compiled_quickly, static_argnums=(0, 1))
def sample_all(domain: Domain, families: tuple[str, ...], keys: Any) -> Any:
    """Random designs and parameters, one for each key."""
    return jax.vmap(lambda key: domain.sample(key, families))(keys)


def assemble_all(domain: Domain, designs: Any, parameters: Any) -> Any:
    """The instances of designs and parameters, with what margins share: one batch."""
    n = jax.tree.leaves(parameters)[0].shape[0]
    return (_assemble_soon if n <= MANY else _assemble_fast)(domain, designs, parameters)


def _assemble(domain: Domain, designs: Any, parameters: Any) -> Any:
    def assembled(pair):
        return domain.complete(domain.assemble(*pair))

    # A batch takes as many steps to its peaks as the slowest of its instances.
    return map_in_batches(assembled, (designs, parameters), BATCH)


_assemble_soon = partial(compiled_quickly, static_argnums=0)(_assemble)
_assemble_fast = partial(compiled_briefly, static_argnums=0)(_assemble)
