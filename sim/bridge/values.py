"""What people pass in, checked: the checks of `ufm`, by the names that this room knows them by."""

from ufm._check import finite as numbers
from ufm._check import real_numbers as as_numpy
from ufm._check import shown, text
from ufm._check import whole_number as whole

__all__ = ["as_numpy", "numbers", "shown", "text", "whole"]
