"""Range checks: what lies within passes, the first argument that does not is named with its value."""

import math

import pytest

from lightning_farms.common.arguments import check_amplitude, check_at_least, check_integers, check_share


@pytest.mark.parametrize(
    ("check", "within", "outside", "rule"),
    [
        (lambda **values: check_at_least(2, **values), (2, 3), (1, -1), "at least 2"),
        (lambda **values: check_integers(2, **values), (2, 3), (1, -1), "an integer of at least 2"),
        (check_share, (0, 0.999), (-0.1, 1.0, math.nan), r"in \[0, 1\)"),
        (check_amplitude, (0, 1e9), (-0.1, math.inf, math.nan), "at least 0 and finite"),
    ],
)
def test_the_first_argument_out_of_range_is_named(check, within, outside, rule):
    assert check() is None
    assert check(a=within[0], b=within[1]) is None
    for value in outside:
        with pytest.raises(ValueError, match=f"^Expected argument `second` to be {rule}, but got {value}.$"):
            check(first=within[0], second=value, third=value)


@pytest.mark.parametrize("value", [True, 1.0, None, "1"])
def test_what_is_no_integer(value):
    with pytest.raises(TypeError, match=f"`depth` to be an integer, but got {value!r}"):
        check_integers(0, seed=1, depth=value)
