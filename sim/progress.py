"""Progress of long work: a bar on a terminal; elsewhere a line now and then, so that a log shows that it goes on."""

import sys
from time import monotonic
from typing import Any

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines."""

FORMAT = "{desc}: {n_fmt} of {total_fmt}{postfix}, {elapsed} so far"

TOLD_FROM = 0.05
"""The part that has to be done before it is told what is left: the first steps of work are often its slowest."""


class _Lines:
    """Takes what a bar would draw over and over, and writes a line of it now and then."""

    def __init__(self, file: Any) -> None:
        self.file, self.last = file, monotonic()

    def write(self, text: str) -> None:
        line, now = text.strip(), monotonic()
        if line and now - self.last >= EVERY:
            self.file.write(f"ufm: {line}\n")
            self.last = now

    def flush(self) -> None:
        self.file.flush()


class _InLines(tqdm):
    """A bar of tqdm in words."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """The parts that its line is made of."""
        told = self.total is not None and self.n >= TOLD_FROM * self.total
        return {**super().format_dict, "bar_format": FORMAT + (", {remaining} left" if told else "")}


def bar(iterable: Any = None, *, shown: bool | None = None, **options: Any) -> Any:
    """A progress bar of tqdm, or lines where standard error is no terminal.

    Args:
        iterable: what is gone through; nothing where the bar is updated by hand.
        shown: whether to show a bar; None for a bar on a terminal, and lines elsewhere.
        options: of tqdm.
    """
    if shown is not None or sys.stderr.isatty():
        return tqdm(iterable, disable=shown is False, **options)
    # What is left is told from the mean rate: one line in half a minute must not rest on the last step.
    return _InLines(iterable, file=_Lines(sys.stderr), smoothing=0, **options)
