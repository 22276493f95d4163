"""A workbench for conjectures: attack a margin, keep what breaks it in a file and a figure, and evaluate the file again.

A conjecture is a margin, a function of one `theory.Instance` in a file of the user's, or a statement of the registry or its
false twin. `refute` attacks it (`theory.refute`), `replay` evaluates a kept instance in ball arithmetic and in floats.
"""

import dataclasses
import difflib
import json
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sim import output
from sim.checks.counterexample import as_text, describe
from sim.figures import counterexample, save
from sim.output import json_text, write_json
from theory import REGISTRY, Claim, Domain, Instance, balls, find, random_instances, rationals
from theory._compilation import compiled_quickly
from theory.certificate import Confirmation, confirm
from theory.random_instances import SEPARATED
from theory.rationals import RationalInstance
from theory.refute import DRAWN, RESTARTS, STEPS, Attack, attack, confirmed, simplified
from theory.small_tables import attack_small
from theory.statement import TABLES, Hypothesis, Margin
from ufm._check import known_names, require, typed
from ufm.precision import in_float64
from ufm.transformer import Layers, Transformer

NEEDS = ("not-constant", "positive")
"""The hypotheses of a conjecture, unless told otherwise."""

_PARTS = (Transformer, Layers)
"""The types that instances are made of beside arrays."""

_BARE_TABLES = Domain(TABLES.name, TABLES.sample, TABLES.assemble, SEPARATED, kind=Instance)
"""Tables without their peaks, which take long to compile: a margin that uses them computes them."""


# --- what is attacked ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conjecture:
    """A conjecture that is attacked or replayed.

    Attributes:
        target: "FILE.py:NAME" or the id of a statement, as it was given.
        margin: of one instance; positive where the conjecture holds, +inf where it claims nothing.
        domain: what it is about.
        needs: the hypotheses under which it is made, by name.
        twin: whether the false twin of the statement is meant.
        claim: of the statement.
    """

    target: str
    margin: Margin
    domain: Domain
    needs: dict[str, Hypothesis]
    twin: bool = field(default=False)
    claim: Claim | None = field(default=None)

    @property
    def name(self) -> str:
        """The name of its files."""
        return self.target.rpartition(":")[2] + ("-twin" if self.twin else "")

    @property
    def conditions(self) -> tuple[Margin, ...]:
        """The margins of the hypotheses."""
        return tuple(hypothesis.margin for hypothesis in self.needs.values())


@typed
def conjecture(
    target: str,
    needs: Sequence[str] | None = None,
    *,
    twin: bool = False,
    route: str = "instances",
    folders: Sequence[Path] = (),
) -> Conjecture:
    """The conjecture of a name, checked without evaluating it on an instance.

    Args:
        target: "FILE.py:NAME", or the id of a statement.
        needs: names of hypotheses; by default those of the statement, or `NEEDS`.
        twin: the false twin of the statement.
        route: "autodiff" for that margin of the statement's; any other stands for the margin from closed forms.
        folders: where to look for the file, in this order, if it is not where its name says.

    Raises:
        ValueError: an unknown id or hypothesis; a file that does not exist or does not import; a name that it has not, or
            that is no differentiable scalar function of an instance. The message has the cause and the line.
    """
    if ".py" in target or ":" in target or "/" in target:  # no id has these
        require(not twin, "twin", "the id of a statement, which has a false twin", repr(target))
        margin, domain, claim = _margin_in_file(target, folders), _BARE_TABLES, None
        own: Sequence[str] = NEEDS
    else:
        statement = find(target, REGISTRY)
        claim = statement.twin if twin else statement.claim
        margin = claim.autodiff if route == "autodiff" and claim.autodiff else claim.instances
        domain, own = statement.domain, list(statement.hypotheses)
    chosen = own if needs is None else tuple(needs)
    others = [registered.hypotheses for registered in REGISTRY.values() if registered.domain.name == domain.name]
    known = {name: hypothesis for hypotheses in others for name, hypothesis in hypotheses.items()}
    known_names("needs", chosen, known)
    return Conjecture(target, margin, domain, {name: known[name] for name in chosen}, twin, claim)


def _margin_in_file(target: str, folders: Sequence[Path]) -> Margin:
    """The function that "FILE.py:NAME" names."""
    name_of_file, _, name = target.rpartition(":")
    require(name_of_file.endswith(".py") and bool(name), "conjecture", "FILE.py:NAME", repr(target))
    path = Path(name_of_file)
    path = next((candidate for candidate in (path, *(folder / path for folder in folders)) if candidate.is_file()), path)
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        elsewhere = f", nor in {folders[0]} or above it" if folders else ""
        require(False, "conjecture", "a file that can be read", f"{str(path)!r} ({error.strerror}{elsewhere})")
    try:
        # Compiled here, not imported: nothing is left beside the user's file, and the file is read as it is now.
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        require(False, "conjecture", "a file that imports", _cause(error, path))
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, functions, n=3, cutoff=0.4) or functions or ["no function at all"]
    require(hasattr(module, name), "conjecture", f"a name in {path} such as {', '.join(near)}", repr(name))
    margin = getattr(module, name)
    require(callable(margin), "conjecture", "a function of an instance", f"{name}, of type {type(margin).__name__}")
    _check_margin(margin, path)
    return margin


def _check_margin(margin: Callable, path: Path) -> None:
    """Refuse what is no scalar function of an instance, or has no gradient; traces it, and evaluates nothing."""
    structure = jax.eval_shape(lambda key: random_instances.draw(key), jax.random.key(0))
    try:
        result = jax.eval_shape(margin, structure)
    except jax.errors.JAXTypeError as error:
        got = f"NumPy, float() or a Python condition on a traced array: {_cause(error, path)}"
        require(False, "conjecture", "JAX operations, which gradients go through", got)
    except Exception as error:
        require(False, "conjecture", "a function of one instance", _cause(error, path))
    got = f"shape {result.shape}" if hasattr(result, "shape") else type(result).__name__
    require(got == "shape ()", "conjecture", "a function that returns a scalar", got)
    real = jnp.issubdtype(result.dtype, jnp.floating)
    require(real, "conjecture", "a differentiable function, which returns floats", result.dtype)

    def gradient(instance: Instance) -> Any:
        return jax.grad(lambda log_p: margin(dataclasses.replace(instance, log_p=log_p)))(instance.log_p)

    try:
        # As the attack takes it: over a batch.
        jax.eval_shape(
            lambda keys: jax.vmap(gradient)(jax.vmap(random_instances.draw)(keys)), jax.random.split(jax.random.key(0), 2)
        )
    except Exception as error:
        require(False, "conjecture", "a differentiable function", _cause(error, path))


def _cause(error: BaseException, path: Path) -> str:
    """The type and the first sentence of an error, and the line of the user's file that it comes from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    words = str(error)
    if isinstance(error, SyntaxError):
        lines, words = [error.lineno], error.msg
    first = re.split(r"(?<=\.)\s|\n", words.strip())[0]
    return f"{type(error).__name__}: {first}" + (f" ({path}, line {lines[-1]})" if lines else "")


# --- the attack ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refutation:
    """The outcome of an attack.

    Attributes:
        conjecture: what was attacked.
        result: what the attack found.
        file: the counterexample as JSON, if there is one.
        figure: its figure by format, if it is a table.
        table: the table in words and numbers, if it is one.
        where: what the search was confined to, in words.
    """

    conjecture: Conjecture
    result: Attack
    file: Path | None = field(default=None)
    figure: dict[str, Path] | None = field(default=None)
    table: str = field(default="")
    where: str = field(default="")

    @property
    def answer(self) -> str:
        """One line in words, and below it the table that breaks the conjecture."""
        result = self.result
        if result.confirmation is None:
            if result.margin < 0:
                return f"{result.note}; in floating point the margin is {result.margin:+.3g}"
            lowest = f"not refuted: lowest margin {result.margin:+.3g} among {result.tried} instances after descent"
            lowest += f"; {self.where}" if self.where else ""
            same = "; it is the same on all of them and does not move: nothing was tested, for the margin is constant"
            return lowest + (same if result.constant else "")
        exactly = "in exact fractions" if result.exact else "for exactly these floats"
        where = f"written to {self.file}" + (f", figure {self.figure['pdf']}" if self.figure else "")
        line = f"refuted: confirmed {exactly}, margin {_enclosure(result.confirmation)}; {where}"
        return f"{line}\n\n{self.table}" if self.table else line


@typed
def refute(
    target: str,
    *,
    needs: Sequence[str] | None = None,
    families: Sequence[str] | None = None,
    twin: bool = False,
    seed: int = 0,
    out: str | Path = "out/refute",
    drawn: int = DRAWN,
    restarts: int = RESTARTS,
    steps: int = STEPS,
) -> Refutation:
    """Attack a conjecture in float64; a counterexample is written to the folder, and drawn if it is a table.

    Args:
        target, needs, twin: what is attacked, see `conjecture`.
        families: of random tables, `theory.random_instances.FAMILIES`; if left out, those in which target tokens
            gain log-odds for a conjecture, all for a statement.
        seed: of the random instances.
        out: the folder, made if need be; nothing is written unless a counterexample is confirmed.
        drawn, restarts, steps: how long to search, see `theory.refute.attack`.

    Raises:
        ValueError: as `conjecture`; an unknown family; a folder that cannot be written; a margin that is NaN on a random
            instance, or that claims nothing on any; families on which nothing satisfies the hypotheses.
    """
    folder = output.writable_folder(out)
    with in_float64():
        tried = conjecture(target, needs, twin=twin)
        _check_families(families, tried)
        key, conditions = jax.random.key(seed), tried.conditions
        size = {"drawn": drawn, "restarts": restarts, "steps": steps}
        result = None
        if tried.domain.kind is Instance:
            result = attack_small(tried.margin, tried.domain, conditions, families=families, seed=seed)
        if result is None:
            result = attack(tried.margin, key, tried.domain, conditions, families=families, **size)
            if result.tried == 0:
                _claims_nothing(tried, families, drawn)
            result = simplified(confirmed(result))
        if result.confirmation is None:
            return Refutation(tried, result, where=_searched(tried, families, seed))
        kept = Kept(
            result.exact or result.instance,
            target,
            result.confirmation.upper,
            needs=tuple(tried.needs),
            twin=twin,
            route="refutation",
            seed=seed,
            enclosure=_ends(result.confirmation),
            bits=result.confirmation.precision,
        )
        name = _free_name(folder, tried.name, kept)
        file = write_instance(folder / f"{name}.json", kept)
        if result.exact is None:
            return Refutation(tried, result, file)
        words = f"{target}{', false twin' if twin else ''}"
        data = describe(result.exact, words, tried.margin, result.confirmation.upper, claim=tried.claim)
        return Refutation(tried, result, file, save(counterexample(data), folder, name), as_text(data))


def _check_families(families: Sequence[str] | None, tried: Conjecture) -> None:
    if families is not None:
        require(bool(tried.domain.families), "families", f"none for statements about {tried.domain.name}", list(families))
        random_instances.check_families(families)


def _claims_nothing(tried: Conjecture, families: Sequence[str] | None, drawn: int) -> None:
    """Refuse what claims nothing on any random instance: the families, where it is usually tried on others."""
    got = f"+inf, or a hypothesis that fails, on all {drawn} random ones"
    under = f" under {', '.join(tried.needs)}" if tried.needs else ""
    chosen = tried.domain.families if families is None else families
    usual = [name for name in tried.domain.families if name not in chosen]
    if usual:
        expected = f"some on which {tried.target} claims something{under}, such as {', '.join(usual)}"
        require(False, "families", expected, f"{', '.join(chosen)}: {got}")
    require(False, "conjecture", "a claim about some instance", got + under)


def _searched(tried: Conjecture, families: Sequence[str] | None, seed: int) -> str:
    """The limits of a search in words: hypotheses, families of random tables, the seed."""
    words = [f"with {', '.join(tried.needs)}" if tried.needs else "without hypotheses"]
    if chosen := families or tried.domain.families:
        others = [name for name in random_instances.FAMILIES if name not in chosen]
        left_out = f" (not {', '.join(others)}: --families)" if others else ""
        words.append(f"families {', '.join(chosen)}{left_out}")
    return ", ".join([*words, f"seed {seed}"])


def _free_name(folder: Path, name: str, kept: "Kept") -> str:
    """The name, or one with a number behind it: files of other attacks stay, the same counterexample is written again."""
    for number in count(1):
        numbered = name if number == 1 else f"{name}-{number}"
        file = folder / f"{numbered}.json"
        if not file.exists() or file.read_text(encoding="utf-8") == json_text(_as_json(kept)):
            return numbered
    raise AssertionError("numbers do not end")


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """An instance that is kept in a file, and what was found on it.

    Attributes:
        instance: in fractions, or an instance of the domain in floats, which are kept exactly; its peaks are left out.
        target: "FILE.py:NAME" or the id of a statement.
        margin: what it came to there.
        needs: names of the hypotheses; None for those of the statement.
        twin: whether the false twin of the statement is meant.
        route: what found it; "autodiff" if the margin is that of the route.
        seed: of the search.
        enclosure: of the margin, if it was confirmed to be a counterexample in ball arithmetic.
        bits: with what precision.
    """

    instance: Any
    target: str
    margin: float
    needs: tuple[str, ...] | None = field(default=None)
    twin: bool = field(default=False)
    route: str = field(default="instances")
    seed: int | None = field(default=None)
    enclosure: tuple[float, float] | None = field(default=None)
    bits: int | None = field(default=None)


@typed
def write_instance(path: str | Path, kept: Kept) -> Path:
    """Write a kept instance as JSON, whole; infinities and NaN as strings."""
    return write_json(Path(path), _as_json(kept))


def _as_json(kept: Kept) -> dict[str, Any]:
    plain = {name: _plain(value) for name, value in vars(kept).items() if name != "instance"}
    return {"version": output.package_version(), **plain, "instance": _plain_instance(kept.instance)}


@typed
def read_instance(path: str | Path) -> Kept:
    """The instance that `write_instance` wrote.

    Raises:
        ValueError: a file that cannot be read or is not of this form; the message names the field.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        require(False, "file", "a file that can be read", f"{str(path)!r} ({error.strerror})")
    except ValueError as error:
        require(False, "file", "JSON as `ufm refute` writes it", f"{str(path)!r} ({error})")
    names = ["instance", *_FORMS]
    fields = sorted(data) if isinstance(data, dict) else type(data).__name__
    require(fields == sorted(names), "file", f"the fields {sorted(names)}", fields)
    for name, (expected, fits) in _FORMS.items():
        require(fits(data[name]), name, expected, repr(data[name]))
    return Kept(
        instance=_read_instance(data["instance"]),
        target=data["target"],
        margin=float(data["margin"]),
        needs=None if data["needs"] is None else tuple(data["needs"]),
        twin=data["twin"],
        route=data["route"],
        seed=data["seed"],
        enclosure=None if data["enclosure"] is None else (float(data["enclosure"][0]), float(data["enclosure"][1])),
        bits=data["bits"],
    )


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_number(value: Any) -> bool:
    return value in ("inf", "-inf", "nan") or isinstance(value, int | float)


_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "version": ("a version", _is(str)),
    "target": ("FILE.py:NAME or the id of a statement", _is(str)),
    "margin": ("a number", _is_number),
    "needs": (
        "a list of names, or null",
        lambda x: x is None or (isinstance(x, list) and all(isinstance(y, str) for y in x)),
    ),
    "twin": ("true or false", _is(bool)),
    "route": ("the name of a route", _is(str)),
    "seed": ("an integer or null", _is(int, type(None))),
    "enclosure": (
        "two numbers, or null",
        lambda x: x is None or (isinstance(x, list) and len(x) == 2 and all(_is_number(y) for y in x)),
    ),
    "bits": ("an integer or null", _is(int, type(None))),
}
"""The entries of a file beside the instance: in words, and as a check."""


def _plain_instance(instance: Any) -> dict[str, Any]:
    if isinstance(instance, RationalInstance):
        return {"type": "fractions", "fields": rationals.as_json(instance)}
    fields = {name: _plain(getattr(instance, name)) for name in _fields(type(instance))}
    return {"type": type(instance).__name__, "fields": fields}


def _read_instance(data: Any) -> Any:
    whole = isinstance(data, dict) and sorted(data) == ["fields", "type"]
    require(whole, "instance", "the fields 'fields' and 'type'", repr(data)[:60])
    if data["type"] == "fractions":
        return rationals.from_json(data["fields"])
    kinds = {statement.domain.kind for statement in REGISTRY.values()}
    types = {kind.__name__: kind for kind in (*sorted(kinds, key=lambda kind: kind.__name__), *_PARTS)}
    require(data["type"] in types, "instance", f"a type in {['fractions', *types]}", repr(data["type"]))
    kind, fields = types[data["type"]], data["fields"]
    names = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
    # Files from before there were fields that may be left out lack them.
    known = fields if isinstance(fields, dict) else {}
    wanted = sorted(name for name in _fields(kind) if name in known or name not in ("gap", "where"))
    require(names == wanted, "instance", f"the fields {wanted}", names)
    return kind(**{name: _array(name, value) for name, value in fields.items()})


def _fields(kind: Any) -> list[str]:
    """The fields that are kept: peaks are computed again."""
    names = kind._fields if hasattr(kind, "_fields") else [attribute.name for attribute in dataclasses.fields(kind)]
    return [name for name in names if name != "known_peaks"]


def _plain(value: Any) -> Any:
    """Lists, numbers and strings; floats as the shortest decimals that read as the same float."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, _PARTS):
        return _plain_instance(value)
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if isinstance(value, int) else _plain(np.asarray(value).tolist())


def _array(name: str, value: Any) -> Any:
    """An array of booleans, integers or floats, or a part; what is no list stays what it is."""
    if isinstance(value, dict):
        return _read_instance(value)
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
        # Infinities are strings, and make strings of the numbers beside them.
        return array.astype(float) if array.dtype.kind == "U" else array
    except ValueError:
        require(False, name, "an array of numbers", repr(value)[:60])


# --- replay ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """A kept instance, evaluated again.

    Attributes:
        kept: what the file says.
        conjecture: what it is about.
        floats: the margins of the hypotheses by name, and that of the conjecture under "margin", in float64.
        exact: the same in ball arithmetic, or why there is nothing.
    """

    kept: Kept
    conjecture: Conjecture
    floats: dict[str, float]
    exact: dict[str, Confirmation | str]

    @property
    def stands(self) -> bool | None:
        """A counterexample: whether it is one in ball arithmetic, None if a sign that it takes is not decided there.

        Any other instance: whether the margin has the sign that the file says.
        """
        if self.kept.enclosure is None:
            return _sign(self.floats["margin"]) == _sign(self.kept.margin)
        signs = {name: margin.sign if isinstance(margin, Confirmation) else 0 for name, margin in self.exact.items()}
        as_said = [sign * (-1 if name == "margin" else 1) for name, sign in signs.items()]
        return None if 0 in as_said and -1 not in as_said else min(as_said) > 0

    @property
    def answer(self) -> str:
        """A line for each margin, and one that says whether the file is right."""
        width = max(len(name) for name in self.floats)
        lines = [f"{self.conjecture.target}{', false twin' if self.conjecture.twin else ''}"]
        for name, value in self.floats.items():
            exact = self.exact[name]
            words = exact if isinstance(exact, str) else f"exactly {_enclosure(exact)}"
            lines.append(f"  {name:<{width}}  {value:+.6g} in floating point, {words}")
        what = "the counterexample" if self.kept.enclosure else f"the recorded margin, {self.kept.margin:+.6g},"
        undecided = "is neither confirmed nor disproved: exact arithmetic does not decide a sign"
        verdict = undecided if self.stands is None else "stands" if self.stands else "does not stand"
        return "\n".join([*lines, f"{what} {verdict}"])


@typed
def replay(path: str | Path) -> Replay:
    """Evaluate a kept instance: hypotheses and margin, in ball arithmetic and in float64.

    Raises:
        ValueError: as `read_instance` and `conjecture`; an instance that the conjecture is not about.
    """
    with in_float64():
        kept = read_instance(path)
        folders = Path(path).absolute().parents
        target = conjecture(kept.target, kept.needs, twin=kept.twin, route=kept.route, folders=list(folders))
        exact, instance = kept.instance, kept.instance
        if isinstance(exact, RationalInstance):
            instance = rationals.to_floats(exact)
        expected = target.domain.kind
        require(
            isinstance(instance, expected),
            "instance",
            f"one of statements about {target.domain.name}",
            type(instance).__name__,
        )
        margins = {**{name: hypothesis.margin for name, hypothesis in target.needs.items()}, "margin": target.margin}
        try:
            instance = compiled_quickly(target.domain.complete)(instance)
            floats = {name: float(compiled_quickly(margin)(instance)) for name, margin in margins.items()}
        except (TypeError, IndexError) as error:
            require(False, "instance", "arrays that fit together", str(error).splitlines()[0])
        return Replay(kept, target, floats, {name: _in_balls(margin, exact) for name, margin in margins.items()})


def _in_balls(margin: Margin, exact: Any) -> Confirmation | str:
    try:
        fractions = rationals.rationalise(exact) if type(exact) is Instance else exact
        return confirm(margin, fractions)
    except (balls.Unsupported, ValueError) as error:
        return f"not evaluated exactly ({error})"


def _sign(x: float) -> int:
    return int(x > 0) - int(x < 0)


def _ends(value: Confirmation) -> tuple[float, float]:
    return value.lower, value.upper


def _enclosure(value: Confirmation) -> str:
    return f"in [{value.lower}, {value.upper}], {value.precision} bits"
