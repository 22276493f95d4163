"""Checks at the boundary: one way to refuse an argument, by name, before anything is computed."""

from collections.abc import Sequence

import numpy as np


def require(condition: bool | np.bool_, argument: str, expected: str, got: object) -> None:
    """Raise ``ValueError("argument: expected ..., got ...")`` unless `condition` holds."""
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def finite(argument: str, value) -> np.ndarray:
    """`value` as a NumPy float array; refuses NaN and infinities and says where the first one is."""
    array = np.asarray(value, dtype=float)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = f" at index {tuple(int(i) for i in bad[0])}" if array.ndim else ""
        require(False, argument, "finite numbers", f"{array[tuple(bad[0])]}{where}")
    return array


def indices(argument: str, value: Sequence[int] | np.ndarray, limit: int, *, of: str) -> np.ndarray:
    """`value` as a one-dimensional array of distinct integers in [0, limit), not empty."""
    array = np.asarray(value)
    require(array.ndim == 1 and array.size > 0, argument, f"a non-empty list of {of}", value)
    require(np.issubdtype(array.dtype, np.integer), argument, f"integers (indices of {of})", array.dtype)
    outside = array[(array < 0) | (array >= limit)]
    require(outside.size == 0, argument, f"{of} between 0 and {limit - 1}", outside.tolist())
    unique, counts = np.unique(array, return_counts=True)
    require(unique.size == array.size, argument, f"distinct {of}", f"{unique[counts > 1].tolist()} more than once")
    return array
