"""Compilation that spares time where a program runs once or a few times: there it is most of what checking costs.

XLA has options for it, but they come and go between releases. So each is tried once on a program of one operation, when the
first program is compiled, and is asked for only if this release takes it.
"""

import functools
import gc
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

LEAN: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
"""Emitters of fused loops take two thirds of the time of XLA's compiler for CPUs. Of the rest, a third goes into cutting a
program into parts to compile side by side, which pays for large ones only."""

_HASTY = LEAN | {"xla_backend_optimization_level": 0}
_BRIEF = LEAN | {"xla_backend_optimization_level": 1}


def compiled_quickly(function: Callable, **keywords: Any) -> Callable:
    """`jax.jit` for programs that run once or a few times, on small instances; `keywords` are those of `jax.jit`."""
    return _compiled(function, _HASTY, keywords)


def compiled_briefly(function: Callable, **keywords: Any) -> Callable:
    """`jax.jit` for programs that run on thousands of small instances: a little optimisation."""
    return _compiled(function, _BRIEF, keywords)


def _compiled(function: Callable, options: Mapping[str, Any], keywords: Mapping[str, Any]) -> Callable:
    # Not before the first call: importing a module must not start JAX.
    @functools.cache
    def program() -> Callable:
        return jax.jit(function, compiler_options=taken(options), **keywords)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return program()(*arguments, **named)

    return call


def taken(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the installed release takes."""
    return {name: value for name, value in options.items() if _takes(name, value)}


@functools.cache
def _takes(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


MOST_MAPS = 17_000
"""Linux lets a process have 65,530 memory maps by default; a compiled program takes several. Beyond, the process ends. Well
below, a thousand programs take gigabytes."""

_RELEASING = threading.Lock()


def release_programs(most: int = MOST_MAPS) -> bool:
    """Let go of compiled programs if the process has more memory maps than `most`; whether it did.

    They are compiled again, or read from the cache that is kept, when they are next called.
    """
    with _RELEASING:
        if memory_maps() <= most:
            return False
        jax.clear_caches()
        gc.collect()
        return True


def memory_maps() -> int:
    """How many memory maps the process has; 0 where the system does not tell."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.is_file() else 0
