"""How often a process looks for garbage. Tracing makes millions of objects, and little garbage that only a search finds."""

import gc

SELDOM = 100_000, 20, 20
"""Thresholds by generation, in place of Python's 700 (2,000 from 3.13 on), 10 and 10."""


def collect_seldom() -> None:
    """Have this process look for garbage less often, which spares a tenth of what a verification costs.

    Commands and their workers ask for it. No import does: it is a setting of the whole process.
    """
    gc.set_threshold(*SELDOM)
