"""What people pass in: tensors of torch (or what looks like one), lists, whole numbers, texts."""

import importlib.util
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ufm._check import finite, float_type, real_numbers, shown, text, whole_number


class Tensor:
    """As a tensor of torch: NumPy takes it only without a gradient, on the CPU, and not in bfloat16."""

    def __init__(self, values, dtype="torch.float32", requires_grad=False, device="cpu"):
        self.values, self.dtype, self.requires_grad, self.device = np.asarray(values), dtype, requires_grad, device

    def detach(self):
        return Tensor(self.values, self.dtype, False, self.device)

    def cpu(self):
        return Tensor(self.values, self.dtype, self.requires_grad, "cpu")

    def float(self):
        return Tensor(self.values, "torch.float32", self.requires_grad, self.device)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.device != "cpu" or self.dtype == "torch.bfloat16":
            raise TypeError("can't convert")
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(Tensor(value, self.dtype, self.requires_grad, self.device) for value in self.values)

    @property
    def ndim(self):
        return self.values.ndim


V = [0.5, -2.0, 3.0]


KINDS = {
    "list": lambda: V,
    "tuple": lambda: tuple(V),
    "float16": lambda: np.asarray(V, np.float16),
    "bfloat16": lambda: np.asarray(V, ml_dtypes.bfloat16),
    "jax": lambda: jnp.asarray(V),
    "jax in bfloat16": lambda: jnp.asarray(V, jnp.bfloat16),
    "list of jax": lambda: [jnp.float32(value) for value in V],
    "tensor": lambda: Tensor(V),
    "tensor in bfloat16": lambda: Tensor(V, "torch.bfloat16"),
    "tensor with a gradient": lambda: Tensor(V, requires_grad=True),
    "tensor elsewhere": lambda: Tensor(V, "torch.bfloat16", requires_grad=True, device="cuda:0"),
    "fractions": lambda: [Fraction(value) for value in V],
    "decimals": lambda: [Decimal(value) for value in V],
    "list of tensors": lambda: [Tensor(value, requires_grad=True) for value in V],
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_every_library(kind):
    result = finite("v", KINDS[kind]())
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, V)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_tensors_of_torch():
    import torch

    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        plain = torch.tensor(V, dtype=dtype)
        for value in (plain, plain.clone().requires_grad_(), [plain[0], plain[1].clone().requires_grad_(), plain[2]]):
            np.testing.assert_array_equal(finite("v", value), V)
        np.testing.assert_array_equal(finite("v", [plain, plain]), [V, V])
    assert whole_number("k", torch.tensor(3)) == 3
    assert real_numbers("ids", torch.tensor([3, 4])).tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"^k: expected a whole number"):
        whole_number("k", torch.tensor(3.0))


@pytest.mark.parametrize("value", ["a", ["a"], None, [None], [[1, 2], [3]], {"a": 1}, [1j], object(), np.array(["a"]), {1}])
def test_things_that_are_no_numbers(value):
    with pytest.raises(ValueError, match=r"^v: expected real numbers"):
        finite("v", value)


@pytest.mark.parametrize("value", [[1.0, np.nan], Tensor([np.inf])])
def test_numbers_that_are_not_finite(value):
    with pytest.raises(ValueError, match=r"^v: expected finite numbers"):
        finite("v", value)


def test_whole_numbers():
    for value in (3, np.int8(3), np.array(3), jnp.asarray(3)):
        result = whole_number("k", value)
        assert (type(result), result) == (int, 3)
    for value in (3.0, "3", None, True, np.bool_(True), [3], np.array([3]), np.float32(3), 2**0.5):
        with pytest.raises(ValueError, match=r"^k: expected a whole number"):
            whole_number("k", value)
    with pytest.raises(ValueError, match=r"^k: .*got 0"):
        whole_number("k", 0, 1)


def test_texts():
    assert type(text("t", np.str_("naïve 😀"))) is str
    with pytest.raises(ValueError, match=r"^t: .*lone surrogate '\\ud83d' in place 1"):
        text("t", "a\ud83d")
    for value in (b"a", 3, None, ["a"]):
        with pytest.raises(ValueError, match=r"^t: expected text, got"):
            text("t", value)


@pytest.mark.parametrize("value", ["bfloat16", jnp.bfloat16, np.dtype(ml_dtypes.bfloat16), "torch.bfloat16"])
def test_types_by_whatever_name(value):
    assert float_type("dtype", value) == float_type("dtype", value, ["float32", "bfloat16"]) == jnp.bfloat16
    with pytest.raises(ValueError, match=r"^dtype: .*got bfloat16"):
        float_type("dtype", value, ["float32", "float64"])


@pytest.mark.parametrize(("value", "got"), [("float99", "'float99'"), (int, "int64"), ([3], r"\[3\]")])
def test_things_that_are_no_type(value, got):
    with pytest.raises(ValueError, match=f"^dtype: .*got {got}"):
        float_type("dtype", value)


@pytest.mark.parametrize("value", [[1, True], [[1, 2], [np.bool_(False), 3]], True, [np.bool_(True)]])
def test_truth_values_are_no_numbers(value):
    with pytest.raises(ValueError, match=r"^v: expected real numbers"):
        real_numbers("v", value)


def test_values_are_shown_short_and_read_no_further():
    assert shown("it's") == '"it\'s"'
    assert shown(np.float32(0.5)) == "0.5"
    assert shown(np.zeros((2, 3))) == "an array of float64 of shape (2, 3)"
    assert shown([1, "a", None]) == "[1, 'a', None]"
    assert shown(list(range(99))) == str(list(range(99)))[:57] + "..."
    read = []

    class Told:
        def __repr__(self):
            read.append(1)
            return "x"

    shown([Told() for _ in range(1000)])
    assert len(read) < 100
