"""Checked reads of a model's settings: what is missing, null, malformed or not implemented is refused by its key."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from ufm._check import finite_number, real_numbers, require, shown, whole_number

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""The names that transformers has for an activation."""


class Settings:
    """Settings with checked reads.

    A setting that is absent is that of `defaults`. One that is null is null, as in transformers: it is refused, unless it is
    read by `maybe`.
    """

    def __init__(self, settings: Any, defaults: Mapping[str, Any] | None = None, *, name: str = "config") -> None:
        require(isinstance(settings, Mapping), name, "an object of settings", type(settings).__name__)
        self.raw: Mapping[str, Any] = {**(defaults or {}), **settings}

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        return self.raw.get(key, default)

    def has(self, key: str) -> bool:
        """Whether there is a value that is not null."""
        return self.raw.get(key) is not None

    def whole(self, key: str, *, least: int = 1) -> int:
        """Read a whole number.

        Raises:
            ValueError: there is anything else under the key.
        """
        return whole_number(key, self.raw.get(key), least)

    def number(self, key: str) -> float:
        """Read a positive number.

        Raises:
            ValueError: there is anything else under the key.
        """
        return finite_number(key, self.raw.get(key), "a positive number", lambda x: x > 0)

    def maybe(self, key: str) -> float | None:
        """Read a positive number; None if it is null or absent.

        Raises:
            ValueError: there is anything else under the key.
        """
        return self.number(key) if self.has(key) else None

    def maybe_whole(self, key: str) -> int | None:
        """Read a positive whole number; None if it is null or absent.

        Raises:
            ValueError: there is anything else under the key.
        """
        return self.whole(key) if self.has(key) else None

    def numbers(self, key: str) -> tuple[float, ...]:
        """Read a list of positive numbers.

        Raises:
            ValueError: there is anything else under the key.
        """
        array = real_numbers(key, self.raw.get(key), "a list of positive numbers")
        fits = array.ndim == 1 and bool((np.isfinite(array) & (array > 0)).all())
        require(fits, key, "a list of positive numbers", shown(self.raw.get(key)))
        return tuple(array.astype(float).tolist())

    def flag(self, key: str) -> bool:
        """Read a truth value.

        Raises:
            ValueError: there is anything else under the key.
        """
        value = self.raw.get(key)
        require(isinstance(value, bool), key, "true or false", value)
        return bool(value)

    def activation(self, key: str) -> Activation:
        """Read the name of an activation.

        Raises:
            ValueError: there is anything else under the key.
        """
        name: Any = self.raw.get(key)
        require(isinstance(name, str) and name in _ACTIVATIONS, key, f"one of {', '.join(_ACTIVATIONS)}", repr(name))
        return _ACTIVATIONS[name]

    def refuse(self, key: str, *allowed: Any) -> None:
        """Refuse what is not implemented; null is as good as absent.

        Raises:
            ValueError: there is a value that is not one of those allowed.
        """
        value = self.raw.get(key)
        expected = f"{' or '.join(map(str, allowed)) or 'nothing'} (else not implemented)"
        require(value is None or value in allowed, key, expected, value)

    def windows(self, slides_at: Callable[[int], bool], *, used: bool = True) -> tuple[int | None, ...]:
        """The window of every layer: `sliding_window` in those that slide, None in the others.

        Args:
            slides_at: whether a layer slides, by its number, where `layer_types` does not say.
            used: whether there is a window at all.

        Raises:
            ValueError: the types of the layers are not known or of another number; a layer slides and there is no window.
        """
        layers, types = self.whole("num_hidden_layers"), self.raw.get("layer_types")
        window = self.maybe_whole("sliding_window") if used else None
        if types is None:
            slides = [slides_at(i) for i in range(layers)]
        else:
            known = ("full_attention", "attention", "sliding_attention")
            ok = isinstance(types, list) and all(kind in known for kind in types)
            expected = f"full_attention or sliding_attention for each of {layers} layers"
            require(ok and len(types) == layers, "layer_types", expected, types)
            slides = [kind == "sliding_attention" for kind in types]
        require(window is not None or not any(slides), "sliding_window", "the window of layers of sliding_attention", window)
        return tuple(window if slide else None for slide in slides)
