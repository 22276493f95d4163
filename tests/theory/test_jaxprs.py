"""Calls and loops are understood whatever a release of JAX calls their parameters, and options of the compiler are tried."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from theory import _compilation, _jaxprs
from theory._jaxprs import Branches, Call, Scan, While, control


def last(function, *arguments):
    return jax.make_jaxpr(function)(*arguments).jaxpr.eqns[-1]


@pytest.mark.parametrize("reverse", [False, True])
def test_what_a_scan_carries_and_reads(reverse):
    def sums(factor, rows):
        def step(carry, row):
            total, count = carry
            return (total + factor * row, count + 1), (2 * row, total, count)

        return lax.scan(step, (jnp.zeros(3), 0), rows, reverse=reverse)

    scan = control(last(sums, 2.0, jnp.ones((5, 3))))
    assert isinstance(scan, Scan)
    assert (scan.consts, scan.carried, scan.length, scan.reverse) == (1, 2, 5, reverse)
    assert len(scan.body.jaxpr.outvars) == 5


def test_a_loop_of_known_length_reads_nothing():
    scan = control(last(lambda x: lax.fori_loop(0, 7, lambda _, y: 2 * y, x), 1.0))
    assert isinstance(scan, Scan)
    assert scan.length == 7
    assert scan.carried == len(scan.body.jaxpr.outvars)


def test_conditions_and_bodies_are_told_apart_where_both_give_one_truth_value():
    eqn = last(lambda x, y, z: lax.while_loop(lambda s: s & (y > 0), lambda s: s & (y > z), x), True, 1.0, 2.0)
    loop = control(eqn)
    assert isinstance(loop, While)
    assert (loop.condition_consts, loop.body_consts) == (1, 2)
    assert loop.condition_consts + loop.body_consts + 1 == len(eqn.invars)


def test_branches_and_calls():
    branches = control(last(lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x), 1, 1.0))
    assert isinstance(branches, Branches)
    assert len(branches.branches) == 3

    @jax.custom_jvp
    def twice(x):
        return 2 * x

    twice.defjvp(lambda primals, tangents: (twice(*primals), 2 * tangents[0]))
    for function in (jax.jit(lambda x: 2 * x), jax.checkpoint(lambda x: 2 * x), twice):
        called = control(last(function, 1.0))
        assert isinstance(called, Call)
        assert len(called.jaxpr.outvars) == 1
    assert control(last(lambda x: 2 * x, 1.0)) is None


def test_a_form_that_is_not_known_is_refused():
    assert _jaxprs._only({"a": 3, "b": 4}, lambda x: x == 3) == "a"
    with pytest.raises(NotImplementedError, match=r"loops are known.*'a', 'b'"):
        _jaxprs._only({"a": 3, "b": 3}, lambda x: x == 3)


def test_an_option_that_this_release_does_not_take_is_not_asked_for():
    options = {"xla_backend_optimization_level": 0, "xla_no_such_option": True}
    assert _compilation.taken(options) == {"xla_backend_optimization_level": 0}
    double = _compilation._compiled(lambda x: 2 * x, options, {})
    assert float(double(3.0)) == 6.0
