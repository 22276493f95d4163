"""What the tests put in the place of `jax.jit` gives what `jax.jit` gives, wherever it is called from."""

import functools
import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compilation
from theory import _compilation

X = jnp.arange(3.0)


@jax.jit
def square(x):
    return x * x


@functools.partial(jax.jit, static_argnames="power")
def powered(x, power):
    return x**power


def test_tests_compile_hastily():
    assert isinstance(square, compilation.Program)
    # No release has to take any of them.
    assert compilation.options({}).items() <= _compilation.LEAN.items()
    assert "no_such_option" not in compilation.options({"no_such_option": 1})


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (square, [0, 1, 4]),
        (lambda x: powered(x, power=3), [0, 1, 8]),
        (jax.jit(lambda x: square(x) + powered(x, 1)), [0, 2, 6]),
        (jax.jit(lambda x: x + square(jnp.ones(()))), [1, 2, 3]),
        (jax.vmap(square), [0, 1, 4]),
        (jax.jit(jax.vmap(square)), [0, 1, 4]),
        (jax.jit(jax.vmap(jax.grad(square))), [0, 2, 4]),
        (jax.vmap(jax.grad(square)), [0, 2, 4]),
        (lambda x: jnp.diag(jax.jit(jax.jacrev(square))(x)), [0, 2, 4]),
        (lambda x: jax.grad(lambda a: square(jnp.ones(3) * a).sum())(2.0) * x, [0, 12, 24]),
        (lambda x: jax.jit(lambda: square(x))(), [0, 1, 4]),
        (lambda x: jax.jvp(square, (x,), (x,))[1], [0, 2, 8]),
    ],
)
def test_programs_give_the_same_called_traced_and_transformed(function, expected):
    assert function(X).tolist() == expected


def test_methods_lowering_and_shapes():
    class Doubled:
        @jax.jit
        def of(self, x):
            return 2 * x

    jax.tree_util.register_static(Doubled)
    assert Doubled().of(X).tolist() == [0, 2, 4]
    assert square.lower(X).compile()(X).tolist() == [0, 1, 4]
    assert jax.eval_shape(square, X).shape == (3,)
    assert square.__name__ == "square"


def test_options_given_are_those_that_are_asked_for():
    assert not isinstance(jax.jit(lambda x: x, compiler_options={}), compilation.Program)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="memory maps are not told here")
def test_programs_are_let_go_with_their_memory_maps():
    """Each takes several, and a process has 65,530: `few_memory_maps` relies on this."""

    def maps():
        return Path("/proc/self/maps").read_bytes().count(b"\n")

    programs = [jax.jit(lambda x, k=k: jnp.sin(x) * k + x.sum()) for k in range(40)]
    before = maps()
    for program in programs:
        program(jnp.ones(3))
    grown = maps()
    jax.clear_caches()
    gc.collect()
    assert grown > before + 80
    assert maps() < grown - 80


def test_programs_are_released_where_they_take_too_many_maps():
    if _compilation.memory_maps() == 0:
        pytest.skip("the system does not tell how many memory maps there are")
    traced = []

    @jax.jit
    def tripled(x):
        traced.append(x)
        return 3 * x

    for released, count in ((False, 1), (False, 1), (True, 2)):
        assert _compilation.release_programs(0 if released else 10**9) is released
        np.testing.assert_array_equal(tripled(X), 3 * X)
        assert len(traced) == count


def factor():
    return 2.0


def by_a_factor(x):
    return factor() * x


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("jit", [_compilation.compiled_quickly, jax.jit])
def test_what_was_traced_of_a_function_is_forgotten_even_where_its_program_is_gone(jit, kept, monkeypatch):
    program = jit(by_a_factor)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "factor", lambda: 3.0)
        compilation.forget()
        assert program(X).tolist() == [0, 3, 6]
    if not kept:
        del program
        gc.collect()
    compilation.forget()
    again = program if kept else jit(by_a_factor)
    assert again(X).tolist() == [0, 2, 4]
