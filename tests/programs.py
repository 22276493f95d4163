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
    result = []
    for eqn in equations(jax.make_jaxpr(function)(*args)):
        if eqn.primitive.name in PRODUCTS:
            asked = eqn.params["precision"]
            both = asked if isinstance(asked, tuple) else (asked, asked)
            result += [(str(factor.aval.dtype), precision) for factor, precision in zip(eqn.invars, both, strict=False)]
    return result


def asks_for_less(function, *args):
    """The products of float32 in a function that do not ask for all its digits; there has to be a product at all."""
    result = products(function, *args)
    assert result
    return [product for product in result if product[0] == "float32" and product[1] is not lax.Precision.HIGHEST]
