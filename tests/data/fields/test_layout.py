import numpy as np
import pytest

from lightning_farms.data.fields._layout import DatasetAxes, FieldLayout, FieldSource, Varying, parse_field


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


@pytest.mark.parametrize("name", ["a/b", ".", "", "state", "t-coordinate"])
def test_channels_that_a_file_of_predictions_could_not_hold(name):
    with pytest.raises(ValueError, match=f"names of the channels to be .*, but got '{name}'. Call such channels"):
        FieldLayout({"u": "u", name: "v"})


@pytest.mark.parametrize("axes", ["btx", "bty", "bbtxy", "btxyz", "btxyy", "bctxyc", ""])
def test_wrong_axes(axes):
    with pytest.raises(ValueError, match=r"`axes` to have each of the letters t, x, y once .* at most once, but got"):
        FieldLayout({"u": "u"}, axes)


@pytest.mark.parametrize("fields", [{}, ["u"], "u"])
def test_no_mapping(fields):
    with pytest.raises(ValueError, match="`fields` to map at least one channel to a dataset, but got"):
        FieldLayout(fields)


def test_one_read_serves_all_components():
    layout = FieldLayout({"u": "v[0]", "p": "p", "w": "v[1]"}, "bxyct")
    stored = np.arange(2 * 3 * 4 * 2 * 5).reshape(2, 3, 4, 2, 5)
    sizes = layout.sizes("v", stored.shape)
    assert sizes == {"b": 2, "t": 5, "x": 3, "y": 4}
    axes = DatasetAxes(layout.axes_of("v", stored.shape, None, sizes), stored.shape)
    fields = axes.fields(stored[axes.index(1, slice(0, 5, 2))], layout.channels_of("v"), (3, 3, 4))
    assert sorted(fields) == [0, 2]
    for channel, component in ((0, 0), (2, 1)):
        np.testing.assert_array_equal(fields[channel], np.moveaxis(stored[1, :, :, component, ::2], -1, 0))


SIZES = {"b": 2, "t": 5, "x": 3, "y": 4}


@pytest.mark.parametrize(
    ("shape", "varying", "axes"),
    [
        ((2, 5, 3, 4), None, "btxy"),
        ((2, 3, 4), None, "bxy"),  # the same in all frames
        ((3, 4), None, "xy"),
        ((2, 3, 4), Varying(True, False, (True, True)), "bxy"),
        ((5, 3, 4), Varying(False, True, (True, True)), "txy"),
        ((2, 5, 3), Varying(True, True, (True, False)), "btx"),
        ((2, 5, 3, 1), Varying(True, True, (True, False)), "btxy"),
        ((5,), Varying(False, True, (False, False)), "t"),
        ((), Varying(False, False, (False, False)), ""),
        ((2,), Varying(True, False, (False, False)), "b"),
    ],
)
def test_axes_that_a_dataset_lacks(shape, varying, axes):
    layout = FieldLayout({"u": "u"})
    assert layout.axes_of("u", shape, varying, SIZES) == axes
    values = np.random.RandomState(0).standard_normal(shape)
    found = DatasetAxes(axes, shape)
    read = np.asarray(values[found.index(1, slice(0, 5, 2))])
    field = found.fields(read, layout.channels_of("u"), (3, 3, 4))[0]
    places = {"b": np.array([1]), "t": np.array([0, 2, 4]), "x": np.arange(3), "y": np.arange(4)}
    long = {axis: size for axis, size in zip(axes, shape, strict=True) if size > 1}
    grid = np.ix_(*(places[axis] if axis in long else np.array([0]) for axis in axes))
    expected = values[grid].reshape([len(places[axis]) if axis in long else 1 for axis in "btxy"])
    np.testing.assert_array_equal(field, np.broadcast_to(expected, (1, 3, 3, 4))[0])


def test_what_may_be_read_in_two_ways_is_refused():
    with pytest.raises(ValueError, match=r"as many trajectories as frames.* Give it the attributes `sample_varying`"):
        FieldLayout({"u": "u"}).axes_of("u", (5, 3, 4), None, {**SIZES, "b": 5})
    with pytest.raises(ValueError, match=r"`u` to have the axes \(B, T, X, Y\), but it is of shape \(5, 3, 4\)"):
        FieldLayout({"u": "u"}).axes_of("u", (5, 3, 4), None, SIZES)


def test_a_source_that_stands_twice():
    with pytest.raises(ValueError, match=r"name each source once, but 'velocity\[0\]' stands twice"):
        FieldLayout({"vx": "velocity[0]", "vy": "velocity[0]"})
