"""What a parameter may be: ranges, kinds, their words, and the decorator."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from sklearn_implicitreg.exceptions import ParameterError
from sklearn_implicitreg.problem.parameters import (
    FLAG,
    NOTHING,
    SCOPE,
    SEED,
    Checked,
    as_numbers,
    checked,
    choice,
    integer,
    listed,
    number,
    row_numbers,
    shown,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (number(), [0, -1.5, np.float32(2), np.int8(1), Fraction(1, 3)], [NAN, INF, True, "1", 1j]),
        (number(above=0), [1e-300, 10**200], [0, -0.0, -1, 10**400, None, np.array(1.0)]),
        (number(least=0, below=1), [0, 0.999, np.float64(0.5)], [1, -1e-300, np.bool_(True)]),
        (number(above=0, most=1), [1, 1e-9], [0, 1.0000001]),
        (integer(1), [1, np.int64(3), 10**30], [0, 1.0, True, np.bool_(True), "1", None]),
        (integer(0, 5), [0, 5], [6, -1]),
        (FLAG, [True, np.bool_(False)], [1, 0, "yes", None]),
        (choice("a", "b"), ["a", np.str_("b")], ["c", 1, None, ["a"], np.array(["a"]), b"a"]),
        (choice(1, 2.5), [1, 2.5, np.float64(2.5)], [True, 1.5, "1"]),
        (choice(True, None), [True, None], [1, 1.0, False]),
        (NOTHING | integer(2), [None, 2], [1, "None"]),
        (SCOPE, ["fc[12]", "", lambda name, tensor: True], ["[", 3, None, torch.nn.Linear, b"a"]),
        (SEED, [0, 2**32 - 1], [2**32, -1, None]),
    ],
)
def test_ranges(allowed, inside, outside):
    assert [value for value in inside if not allowed.holds(value)] == []
    assert [value for value in outside if allowed.holds(value)] == []


def test_words():
    assert str(number(above=0)) == "a finite number > 0"
    assert str(number(least=0, below=1)) == "a finite number >= 0 and < 1"
    assert str(NOTHING | choice("epoch") | integer(1)) == "None, 'epoch' or an integer >= 1"


@checked(size=integer(1), name=NOTHING | choice("a"))
def sized(size, /, name=None, **rest):
    """A function."""
    return size, name, rest


def test_decorated_function():
    assert sized(2, name="a", other=3) == (2, "a", {"other": 3})
    assert sized.__doc__ == "A function."
    with pytest.raises(ParameterError, match="Expected size of sized to be an integer >= 1, got 0"):
        sized(0)
    with pytest.raises(ParameterError, match="Expected name of sized to be None or 'a', got 'b'"):
        sized(1, "b")
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        sized()


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_an_error_is_of_both_kinds(error):
    class Wide(Checked):
        _allowed = {"width": number(above=0)}

    wide = Wide()
    wide.width = -1
    with pytest.raises(error, match="Expected width of Wide to be a finite number > 0, got -1"):
        wide.check_parameters()


@pytest.mark.parametrize(
    "values",
    ["a", ["1.5"], 1j, [1j], {1}, {"a": 1}, None, [None], object, np.array(["2020"], "M8[Y]")],
    ids=shown,
)
def test_what_is_no_array_of_numbers(values):
    with pytest.raises(ParameterError, match="Expected x to be an array of real numbers, got"):
        if np.isnan(as_numbers("x", values)).all():  # None is NaN to NumPy
            raise ParameterError("Expected x to be an array of real numbers, got NaN.")


@pytest.mark.parametrize("rows", [[0.5], [-1], [[1]], [NAN], ["a"], 3], ids=repr)
def test_what_is_no_row_number(rows):
    with pytest.raises(ValueError, match="Expected rows to be"):
        row_numbers("rows", rows)


def test_a_value_is_shown_in_one_short_line():
    assert len(shown(torch.nn.Sequential(*[torch.nn.Linear(2, 2)] * 50))) < 200
    assert "\n" not in shown(np.ones((50, 3)))
    assert len(shown("a" * 1000)) < 100


def test_long_lists_are_cut():
    names = [f"h.{i}.bias" for i in range(96)]
    assert listed([]) == ""
    assert listed(names[:8]) == ", ".join(names[:8])
    assert listed(names) == f"{', '.join(names[:8])}, ... (96 in all)"
