import pytest

from lightning_farms.common.arguments import check_at_least, check_integers


def test_what_fits_is_let_through():
    check_at_least(1, stride=1, share=1.5)
    check_integers(0, seed=0, depth=3)


def test_the_first_too_small_one_is_named():
    with pytest.raises(ValueError, match="`stride` to be at least 2, but got 1"):
        check_at_least(2, size=2, stride=1, count=0)


@pytest.mark.parametrize("value", [True, 1.0, None, "1"])
def test_what_is_no_integer(value):
    with pytest.raises(TypeError, match=f"`depth` to be an integer, but got {value!r}"):
        check_integers(0, seed=1, depth=value)


def test_a_too_small_integer():
    with pytest.raises(ValueError, match="`depth` to be an integer of at least 1, but got 0"):
        check_integers(1, depth=0)
