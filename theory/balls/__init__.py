"""Ball arithmetic: the value of a JAX function, with every rounding error enclosed.

The function is traced once, by `jax.make_jaxpr`, and its operations are then carried out on NumPy arrays of `flint.arb`:
numbers with an error bound, whose results contain the true result whatever the precision is. What comes out is a proof
about the function *as a function of real numbers*: where float64 would overflow or round, balls do neither.

Four rules say how the two worlds meet.

- Floats that come in, constants of the function included, are taken as the exact numbers they are. A constant that Python
  or NumPy computed before JAX saw it (``math.log(3)``, ``1 / 3``) is the rounded one.
- A comparison that the balls do not decide is None. `jnp.where` on it is the hull of both branches; a loop or a sort that
  depends on it is refused (`Undecided`).
- Infinities are exact, as masks need them to be: ``exp(-inf)`` is 0. A NaN ball may be any number, infinite or none.
- One `arb` object is one number, wherever it stands: it is equal to itself, and its difference from itself is 0.
"""

from theory.balls._numbers import Number, Undecided, Unsupported, bounds, interval, number, working
from theory.balls._programs import Along, along, evaluate, shapes

__all__ = [
    "Along",
    "Number",
    "Undecided",
    "Unsupported",
    "along",
    "bounds",
    "evaluate",
    "interval",
    "number",
    "shapes",
    "working",
]
