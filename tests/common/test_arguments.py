"""Range checks: what lies within passes, the first argument that does not is named with its value."""

import math

import pytest

from lightning_farms.common.arguments import check_at_least, check_not_negative, check_share


@pytest.mark.parametrize(
    ("check", "within", "outside", "rule"),
    [
        (lambda **values: check_at_least(2, **values), (2, 3), (1, -1), "at least 2"),
        (check_share, (0, 0.999), (-0.1, 1.0, math.nan), r"in \[0, 1\)"),
        (check_not_negative, (0, 1e9), (-0.1, math.inf, math.nan), "at least 0 and finite"),
    ],
)
def test_the_first_argument_out_of_range_is_named(check, within, outside, rule):
    assert check() is None
    assert check(a=within[0], b=within[1]) is None
    for value in outside:
        with pytest.raises(ValueError, match=f"^Expected argument `second` to be {rule}, but got {value}.$"):
            check(first=within[0], second=value, third=value)
