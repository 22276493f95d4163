"""Calls and loops of a jaxpr in the project's own form, which does not change when a release of JAX renames a parameter.

What a loop needs to be carried out (how many values are constant, carried, scanned; how often; in which order) is read from
the shapes of the equation and of its body. What shapes do not tell, JAX is asked: a small loop is traced, and the parameter
that says its length is the one that has that length in it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


@dataclass(frozen=True)
class Call:
    """An equation that does nothing but call a jaxpr."""

    jaxpr: Any
    consts: Sequence


@dataclass(frozen=True)
class Branches:
    """`jax.lax.cond` and `switch`: the first operand is the index of the branch."""

    branches: Sequence[core.ClosedJaxpr]


@dataclass(frozen=True)
class Scan:
    """`jax.lax.scan`, and loops of known length.

    Attributes:
        body: of the constants, the carried values and one row of what is scanned, to the carried values and one row.
        consts, carried: how many operands are constant, and how many are carried; the rest is scanned.
        length: rounds.
        reverse: whether it goes from the last row to the first.
    """

    body: core.ClosedJaxpr
    consts: int
    carried: int
    length: int
    reverse: bool


@dataclass(frozen=True)
class While:
    """`jax.lax.while_loop`. Operands are the constants of the condition, those of the body, and the state.

    Attributes:
        condition, body: what is asked before a step, and the step.
        condition_consts, body_consts: how many constants each takes.
    """

    condition: core.ClosedJaxpr
    body: core.ClosedJaxpr
    condition_consts: int
    body_consts: int


def control(eqn: Any) -> Call | Branches | Scan | While | None:
    """What an equation calls, chooses or repeats; None if it is an operation on arrays."""
    known = _asked()
    if eqn.primitive in known.calls:
        (inner,) = _jaxprs(eqn.params).values()
        return Call(inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else Call(inner, ())
    if eqn.primitive is known.cond:
        return Branches(eqn.params[known.branches])
    if eqn.primitive is known.scan:
        (body,) = _jaxprs(eqn.params).values()
        series = _differ(eqn.invars, body.jaxpr.invars)
        carried = len(eqn.outvars) - _differ(eqn.outvars, body.jaxpr.outvars)
        consts = len(eqn.invars) - series - carried
        return Scan(body, consts, carried, int(eqn.params[known.length]), bool(eqn.params[known.reverse]))
    if eqn.primitive is known.loop:
        condition, body = eqn.params[known.condition], eqn.params[known.body]
        state = len(eqn.outvars)
        return While(condition, body, len(condition.jaxpr.invars) - state, len(body.jaxpr.invars) - state)
    return None


def _differ(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many values have one more axis outside of the body of a scan than inside."""
    return sum(x.aval.ndim != y.aval.ndim for x, y in zip(outside, inside, strict=True))


def _jaxprs(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if isinstance(value, core.ClosedJaxpr | core.Jaxpr)}


@dataclass(frozen=True)
class _Asked:
    """The primitives that calls and loops become in the installed release, and the names of those parameters that matter."""

    calls: tuple[Any, ...]
    cond: Any
    branches: str
    scan: Any
    length: str
    reverse: str
    loop: Any
    condition: str
    body: str


@functools.cache
def _asked() -> _Asked:
    cond = _last(lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x))
    three, five, back = _scanned(3, reverse=False), _scanned(5, reverse=False), _scanned(3, reverse=True)
    loop = _last(lambda x: lax.while_loop(lambda state: state[0] < 1, lambda state: (state[1], state[0]), (x, x)))
    results = {name: len(inner.jaxpr.outvars) for name, inner in _jaxprs(loop.params).items()}
    return _Asked(
        calls=tuple(_last(call).primitive for call in (jax.jit(jnp.sin), jax.checkpoint(jnp.sin), _with_jvp(), _with_vjp())),
        cond=cond.primitive,
        branches=_only(cond.params, lambda x: isinstance(x, tuple) and all(isinstance(y, core.ClosedJaxpr) for y in x)),
        scan=three.primitive,
        length=_only(three.params, lambda x: type(x) is int and x == 3, five.params, lambda x: x == 5),
        reverse=_only(three.params, lambda x: x is False, back.params, lambda x: x is True),
        loop=loop.primitive,
        condition=_only(results, lambda n: n == 1),
        body=_only(results, lambda n: n == 2),
    )


def _last(function: Callable) -> Any:
    """The last equation that a function of one number is traced to."""
    return jax.make_jaxpr(function)(0.0).jaxpr.eqns[-1]


def _scanned(length: int, *, reverse: bool) -> Any:
    return _last(lambda x: lax.scan(lambda carry, _: (carry * 2, None), x, None, length=length, reverse=reverse)[0])


def _with_jvp() -> Callable:
    function = jax.custom_jvp(jnp.sin)
    function.defjvp(lambda primals, tangents: (jnp.sin(*primals), *tangents))
    return function


def _with_vjp() -> Callable:
    function = jax.custom_vjp(jnp.sin)
    function.defvjp(lambda x: (jnp.sin(x), None), lambda _, cotangent: (cotangent,))
    return function


def _only(params: dict, test: Callable, others: dict | None = None, other_test: Callable = lambda _: True) -> str:
    """The one parameter that passes the test, and in the other equation the other test.

    Raises:
        NotImplementedError: none or several: this release of JAX writes loops in another form.
    """
    names = [name for name, value in params.items() if test(value) and other_test((others or params).get(name))]
    if len(names) != 1:
        raise NotImplementedError(f"jax: expected a release whose loops are known, got {jax.__version__}: {sorted(params)}")
    return names[0]
