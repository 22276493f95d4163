"""What programs ask for, read from their jaxprs."""

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot"}


def equations(jaxpr):
    """All equations of a program, those of programs inside it included."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for leaf in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(leaf, ClosedJaxpr | Jaxpr):
                yield from equations(leaf)


def products(function, *args):
    """The type and the precision of both factors of every matrix product of a function."""
    found = []
    for eqn in equations(jax.make_jaxpr(function)(*args)):
        if eqn.primitive.name in PRODUCTS:
            given = eqn.params["precision"]
            both = given if isinstance(given, tuple) else (given, given)
            found += [(str(one.aval.dtype), precision) for one, precision in zip(eqn.invars, both, strict=False)]
    return found


def asks_for_less(function, *args):
    """The products of float32 in a function that do not ask for all its digits; there has to be a product at all."""
    found = products(function, *args)
    assert found
    return [one for one in found if one[0] == "float32" and one[1] is not lax.Precision.HIGHEST]
