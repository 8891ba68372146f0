import numpy as np
import pytest

from lightning_farms.data.fields._layout import FieldLayout, FieldSource, parse_field


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("density", ("density", ())),
        ("t0_fields/density", ("t0_fields/density", ())),
        (" velocity[0] ", ("velocity", (0,))),
        ("a/b c[1, 12]", ("a/b c", (1, 12))),
    ],
)
def test_names_of_fields(text, expected):
    assert parse_field(text) == FieldSource(*expected)


@pytest.mark.parametrize(
    "text", ["", "velocity[", "velocity[]", "velocity[-1]", "velocity[x]", "[0]", "a/", "v[0][1]", 3]
)
def test_names_that_are_none(text):
    with pytest.raises(ValueError, match=r"Expected argument `fields` to name datasets such as .*, but got"):
        parse_field(text)


@pytest.mark.parametrize("axes", ["btx", "btxyz", "btxyy", "bctxyc", ""])
def test_wrong_axes(axes):
    with pytest.raises(ValueError, match=r"`axes` to have each of the letters b .* at most once, but got"):
        FieldLayout({"u": "u"}, axes)


@pytest.mark.parametrize("fields", [{}, ["u"], "u"])
def test_no_mapping(fields):
    with pytest.raises(ValueError, match="`fields` to map at least one channel to a dataset, but got"):
        FieldLayout(fields)


def test_one_read_serves_all_components():
    layout = FieldLayout({"u": "v[0]", "p": "p", "w": "v[1]"}, "bxyct")
    stored = np.arange(2 * 3 * 4 * 2 * 5).reshape(2, 3, 4, 2, 5)
    assert layout.sizes("v", stored.shape) == (2, 5, 3, 4)
    fields = layout.channel_fields("v", stored[layout.index("v", 1, slice(0, 5, 2))])
    assert sorted(fields) == [0, 2]
    for channel, component in ((0, 0), (2, 1)):
        np.testing.assert_array_equal(fields[channel], np.moveaxis(stored[1, :, :, component, ::2], -1, 0))
