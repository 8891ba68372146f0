"""What a file's header says before any field is read, and checks of it."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from lightning_farms.common.texts import listed, number_order
from lightning_farms.data.fields._layout import DatasetAxes, FieldLayout, Varying
from lightning_farms.data.fields._made_up import MadeUp, existing, made_up, sources
from lightning_farms.data.fields._opening import missing_filters
from lightning_farms.data.fields._values import Array, Marks

# PDEBench's names, those of The Well, and of PDEBench's incompressible flows
_COORDINATES = {
    "x": ("x-coordinate", "dimensions/x"),
    "y": ("y-coordinate", "dimensions/y"),
    "t": ("t-coordinate", "dimensions/time", "t"),
}
_MISSING = ("_FillValue", "missing_value")
_NOT_MEANT = 1e15  # a fill value this large marks missing values, as netCDF's 9.97e36 does
_SHOWN = 8
_CALLED = {"x": "x", "lon": "x", "longitude": "x", "y": "y", "lat": "y", "latitude": "y", "t": "t", "time": "t"}


class DatasetFacts(NamedTuple):
    """Facts about one dataset, or about those of all trajectories if each has its own."""

    shape: tuple[int, ...] | None  # None: it has no values at all
    dtype: np.dtype[Any]
    missing_filters: list[str]
    marks: Marks  # of missing values
    packed: tuple[float, float]  # netCDF's scale and offset, by which the values would have to be unpacked
    axes: tuple[str, ...]  # their names in the file, "" for one without a name
    varying: Varying | None = None
    members: tuple[str, ...] = ()  # names of the trajectories' own datasets
    odd_one: str | None = None  # what is odd about members of another shape or type


class Header(NamedTuple):
    """All that is read when a file is opened."""

    datasets: dict[str, DatasetFacts]
    found: str
    broken: dict[str, str]  # {dataset: where the link in its place leads}
    one_axis: bool  # an x-coordinate, and no y-coordinate
    third_axis: bool
    attributes: dict[str, float | None]
    given_frames: int | None
    coordinates: dict[str, Array | None]
    own: frozenset[str]  # axes whose coordinates have a row for each trajectory
    periodic: tuple[bool, bool] | None  # along x and y; None if the file does not tell
    others: list[Path]  # other files that hold values


def read_header(file: h5py.File, layout: FieldLayout, left_out: Collection[int] = ()) -> Header:
    """Read the header, passing on whatever h5py raises; trajectories that are left out may have any shape."""
    datasets = {}
    for name in layout.datasets:
        facts = _members(file, name, left_out) if "*" in name else _single(file, name)
        if facts is not None:
            datasets[name] = facts
    lacking = [name for name in layout.datasets if name not in datasets]
    links = {name: file.get(name, getlink=True) for name in lacking if name in file or _is_link(file, name)}
    found = {name: link for name, link in links.items() if not isinstance(link, h5py.HardLink)}
    given = _number(file, "given_frames")
    places = _places(file, datasets)
    coordinates, own = _coordinates(file, places, left_out)
    return Header(
        datasets=datasets,
        found=_datasets(file) if lacking else "",
        broken={name: _leads_to(file, link) for name, link in found.items()},
        one_axis=[_has_axis(file, axis, places) for axis in "xy"] == [True, False],
        third_axis=any(name in file for name in ("z-coordinate", "Vz", "dimensions/z")),
        attributes={name: _number(file, name) for name in ("eta", "zeta", "M")},
        given_frames=None if given is None else int(given),
        coordinates=coordinates,
        own=own,
        periodic=_periodic(file),
        others=sorted(_others(file, datasets)),
    )


def checked_axes(
    header: Header, path: Path, layout: FieldLayout, *, may_lack: bool
) -> tuple[tuple[int, int, int, int], dict[str, DatasetAxes]]:
    """Return (B, T, X, Y) and each dataset's axes, if the fields can be read; `may_lack`: some axes may be missing."""
    missing = [name for name in layout.datasets if name not in header.datasets]
    if missing:
        raise ValueError(_missing(header, path, layout, missing))
    shapes = {name: _checked(name, facts, path) for name, facts in header.datasets.items()}
    _check_same_trajectories(header, path)
    with _told(header, path, layout, shapes):
        complete = {
            name: layout.sizes(name, shape)
            for name, shape in shapes.items()
            if not may_lack or _is_complete(header.datasets[name], len(layout.letters(name)))
        }
        sizes = next(iter(complete.values()), None) or layout.sizes(*next(iter(shapes.items())))
        if any(each != sizes for each in complete.values()):
            raise ValueError(
                f"Expected the fields to have one shape (B, T, X, Y), but got "
                f"{ {name: tuple(each[letter] for letter in 'btxy') for name, each in complete.items()} }."
            )
        axes = {
            name: DatasetAxes(layout.axes_of(name, shape, header.datasets[name].varying, sizes), shape)
            for name, shape in shapes.items()
        }
        for name, each in axes.items():
            _check_called(name, header.datasets[name].axes, each.letters)
    trajectories, frames, x, y = (sizes[letter] for letter in "btxy")
    if 0 in (trajectories, frames, x, y):
        raise ValueError(
            f"Expected the fields of {path} to hold data, but got {trajectories} trajectories of {frames} frames of "
            f"{x} x {y} cells."
        )
    return (trajectories, frames, x, y), axes


def _check_same_trajectories(header: Header, path: Path) -> None:
    """Refuse patterns whose stars stand for different names: pairing these by number would mix trajectories."""
    stood = {
        pattern: set(_stars(pattern, facts.members)) for pattern, facts in header.datasets.items() if facts.members
    }
    every = set().union(*stood.values())
    for pattern, names in stood.items():
        lacking = sorted(every - names, key=number_order)
        if lacking:
            raise ValueError(
                f"Expected {' and '.join(f'`{each}`' for each in stood)} to be there for the same trajectories of "
                f"{path}, but there is no `{pattern.replace('*', lacking[0])}`. Complete the file, or name datasets "
                "whose names agree."
            )


def _stars(pattern: str, names: Iterable[str]) -> list[str]:
    """Return what the star of a pattern stands for in each name that fits it."""
    before, _, after = pattern.partition("*")
    return [
        name[len(before) : len(name) - len(after)]
        for name in names
        if len(name) >= len(before + after) and name.startswith(before) and name.endswith(after)
    ]


def lost_trajectories(file: h5py.File, header: Header, axes: Mapping[str, DatasetAxes], count: int) -> MadeUp:
    """Return the trajectories that HDF5 would make up, and why."""
    found: MadeUp = {}
    for name, facts in header.datasets.items():
        if facts.members:
            own = {
                number: "was never written" for number, member in enumerate(facts.members) if made_up(file[member], 0)
            }
        else:
            axis = axes[name].trajectory_axis
            own = made_up(file[name], axis or 0)
            if axis is None and own:  # all trajectories share it
                own = dict.fromkeys(range(count), next(iter(own.values())))
        for trajectory, reason in own.items():
            found.setdefault(trajectory, f"`{name}` {reason}")
    return found


def _others(file: h5py.File, datasets: Mapping[str, DatasetFacts]) -> set[Path]:
    """Return the other files that virtual datasets, raw values and links lie in."""
    found: set[Path] = set()
    for name, facts in datasets.items():
        for member in facts.members or (name,):
            dataset = file[member]
            found |= sources(dataset) | {Path(dataset.file.filename)}
    return found - {Path(file.filename)}


def _is_complete(facts: DatasetFacts, axes: int) -> bool:
    varies = facts.varying is None or (facts.varying.sample and facts.varying.time and all(facts.varying.space))
    return varies and facts.shape is not None and len(facts.shape) == axes


def _checked(name: str, facts: DatasetFacts, path: Path) -> tuple[int, ...]:
    if facts.packed != (1.0, 0.0):
        raise ValueError(
            f"Expected dataset `{name}` of {path} to hold values as they are, but they are packed (netCDF's "
            f"scale_factor and add_offset are {facts.packed[0]:g} and {facts.packed[1]:g}). Write them to a new file "
            "unpacked, as xarray's `open_dataset` reads them."
        )
    if facts.shape is None or not np.issubdtype(facts.dtype, np.floating):
        raise ValueError(
            f"Expected dataset `{name}` of {path} to hold floating-point numbers, but got {facts.dtype} of shape "
            f"{facts.shape}. Write the fields to a new file as float32."
        )
    if facts.odd_one is not None:
        raise ValueError(f"Expected all datasets `{name}` of {path} to be alike, but {facts.odd_one}")
    if facts.missing_filters:
        raise OSError(
            f"Expected the filters of dataset `{name}` of {path} to be installed, but {facts.missing_filters} are not. "
            "The file itself may be intact: install their plug-ins, for most of them `pip install hdf5plugin` and "
            "`import hdf5plugin`, or set HDF5_PLUGIN_PATH."
        )
    return facts.shape


@contextmanager
def _told(header: Header, path: Path, layout: FieldLayout, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Make errors about the axes name the file."""
    try:
        yield
    except ValueError as error:
        solid = next((name for name, shape in shapes.items() if len(shape) == len("btxyz")), None)
        if header.third_axis and solid is not None:
            raise ValueError(
                f"Expected {path} to hold 2-D fields, but dataset `{solid}` is of shape {shapes[solid]}: it is a 3-D "
                "file, which cannot be read here. Write slices of it to a file of 2-D fields."
            ) from error
        if header.one_axis and all(len(shape) < len(layout.letters(name)) for name, shape in shapes.items()):
            found = ", ".join(f"`{name}` {shape}" for name, shape in shapes.items())
            raise ValueError(
                f"Expected {path} to hold 2-D fields, but found {found}. With an x-coordinate and no y-coordinate it "
                "seems to hold 1-D fields, which cannot be read here."
            ) from error
        raise ValueError(f"{error} File: {path}.") from error


def _missing(header: Header, path: Path, layout: FieldLayout, missing: list[str]) -> str:
    said = f"Expected {path} to hold the datasets {list(layout.datasets)}, but {missing} are missing"
    if set(missing) <= set(header.broken):
        links = "".join(f" `{name}` is a link to {header.broken[name]}." for name in missing)
        return f"{said}:{links} Put what they lead to in its place, or correct the links."
    if header.one_axis and not any(
        facts.shape and len(facts.shape) >= len("btxy") for facts in header.datasets.values()
    ):
        return (
            f"{said}: found {header.found}. With an x-coordinate and no y-coordinate it seems to hold 1-D fields, "
            "which cannot be read here; of 2-D fields with other names, give `fields`."
        )
    return (
        f"{said}: found {header.found}. For a file with other names, give `fields`, a mapping of channels to datasets, "
        "each with all trajectories in it, or one for each, such as '*/data[0]' or 'u_*'."
    )


def _leads_to(file: h5py.File, link: object) -> str:
    """Describe where a broken link leads, and why it cannot be followed."""
    if not isinstance(link, h5py.ExternalLink):
        return f"`{getattr(link, 'path', '')}`, where there is no dataset"
    other = existing(Path(file.filename), link.filename, "HDF5_EXT_PREFIX")
    if other is None:
        return f"the file {link.filename}, which is missing"
    try:
        with h5py.File(other, "r"):
            return f"the file {link.filename}, which has no dataset `{link.path}`"
    except OSError as error:
        return f"the file {link.filename}, which cannot be read ({error})"


def _is_link(file: h5py.File, name: str) -> bool:
    return file.get(name, getlink=True, default=None) is not None


def _single(file: h5py.File, name: str) -> DatasetFacts | None:
    dataset = _get(file, name)
    if dataset is None:
        return None
    return _facts(dataset)._replace(varying=_varying(dataset))


def _facts(dataset: h5py.Dataset) -> DatasetFacts:
    filters = missing_filters(dataset)
    return DatasetFacts(dataset.shape, dataset.dtype, filters, _marks(dataset), _packed(dataset), _axes_called(dataset))


def _members(file: h5py.File, pattern: str, left_out: Collection[int]) -> DatasetFacts | None:
    """Return the datasets that a pattern such as "*/data" names, one per trajectory, as one with trajectories first."""
    before, _, after = pattern.partition("*")
    folder, _, begin = before.rpartition("/")
    group = file.get(folder or "/")
    stars = _stars(f"{begin}*{after.partition('/')[0]}", group) if isinstance(group, h5py.Group) else []
    names = [f"{before}{star}{after}" for star in sorted(stars, key=number_order)]
    found = {name: dataset for name in names if (dataset := _get(file, name)) is not None}
    if not found:
        return None
    kept = {number: dataset for number, dataset in enumerate(found.values()) if number not in left_out}
    first = next(iter((kept or found).values()))
    others = [number for number, each in kept.items() if (each.shape, each.dtype) != (first.shape, first.dtype)]
    odd = (
        f"`{kept[others[0]].name[1:]}` is of shape {kept[others[0]].shape} and {kept[others[0]].dtype}, and "
        f"`{first.name[1:]}` of shape {first.shape} and {first.dtype}. Leave the odd ones out (`skip`: "
        f"{listed(map(str, others))}), or read those of another shape from a file of their own."
        if others
        else None
    )
    facts = _facts(first)
    shape = None if first.shape is None else (len(found), *first.shape)
    return facts._replace(shape=shape, axes=("", *facts.axes), members=tuple(found), odd_one=odd)


def _axes_called(dataset: h5py.Dataset) -> tuple[str, ...]:
    """Return the axes' names according to labels and scales, such as netCDF's dimensions."""
    if not {"DIMENSION_LIST", "DIMENSION_LABELS"} & set(dataset.attrs):
        return ()
    named = [[dim.label, *(scale.name or "" for scale in dim.values())] for dim in dataset.dims]
    return tuple(next(filter(None, names), "").rsplit("/", 1)[-1].lower() for names in named)


def _check_called(dataset: str, called: tuple[str, ...], letters: str) -> None:
    """Refuse axes that the file calls by the name of another one."""
    known = [(_CALLED.get(name, letter), letter) for name, letter in zip(called, letters, strict=False)]
    if any(told != letter for told, letter in known):
        raise ValueError(
            f"Expected dataset `{dataset}` to have the axes ({', '.join(letters.upper())}), but the file calls them "
            f"{called}: give `fields`, and `axes` in that order, such as {''.join(told for told, _ in known)!r}."
        )


def _varying(dataset: h5py.Dataset) -> Varying | None:
    """Return what a dataset varies with according to The Well's attributes; None without these."""
    if not {"sample_varying", "time_varying"} <= set(dataset.attrs):
        return None
    number = "scalars" in dataset.name.split("/")
    space = np.ravel(dataset.attrs.get("dim_varying", [not number] * 2)).astype(bool).tolist()
    x, y = [*space, True, True][:2]
    return Varying(bool(dataset.attrs["sample_varying"]), bool(dataset.attrs["time_varying"]), (x, y))


def _marks(dataset: h5py.Dataset) -> Marks:
    """Return the marks of missing values that netCDF's attributes and HDF5's fill value name."""
    if dataset.shape is None or not np.issubdtype(dataset.dtype, np.floating):
        return Marks()
    named = [np.ravel(dataset.attrs[name]) for name in _MISSING if name in dataset.attrs]
    values = [float(value) for each in named if np.issubdtype(each.dtype, np.number) for value in each]
    fill = float(dataset.fillvalue)
    values += [fill] if abs(fill) >= _NOT_MEANT else []
    return Marks(tuple(value for value in values if math.isfinite(value)), fill if fill and fill == fill else None)


def _packed(dataset: h5py.Dataset) -> tuple[float, float]:
    scale, offset = (_number(dataset, name) for name in ("scale_factor", "add_offset"))
    return (1.0 if scale is None else scale), (0.0 if offset is None else offset)


def _get(file: h5py.File, name: str) -> h5py.Dataset | None:
    """Return a dataset, or None if it is not there; raise an error if it is there but damaged."""
    link = file.get(name, getlink=True)
    if link is None:
        return None
    found = file.get(name) if not isinstance(link, h5py.HardLink) else file[name]
    return found if isinstance(found, h5py.Dataset) else None


def _datasets(file: h5py.File) -> str:
    """List the first datasets of a file in words; some files hold a thousand."""
    found: list[str] = []

    def note(name: str, item: object) -> bool | None:
        if isinstance(item, h5py.Dataset):
            found.append(f"{name} {item.shape}")
        return True if len(found) > _SHOWN else None

    file.visititems(note)
    return ", ".join([*found[:_SHOWN], *(["..."] if len(found) > _SHOWN else [])]) or "none"


def _number(file: h5py.File | h5py.Dataset, name: str) -> float | None:
    value = np.asarray(file.attrs[name]) if name in file.attrs else np.empty(0)
    if value.size != 1 or not np.issubdtype(value.dtype, np.number):
        return None
    number = float(value.reshape(()))
    return number if math.isfinite(number) else None


def _has_axis(file: h5py.File, axis: str, places: Sequence[str]) -> bool:
    return any(name in file for name in (*_COORDINATES[axis], *(f"{place}/grid/{axis}" for place in places[:1])))


def _places(file: h5py.File, datasets: Mapping[str, DatasetFacts]) -> list[str]:
    """Return the group of each trajectory, or the group that holds the first dataset; none if that is the root.

    If no dataset is found, return the file's first group.
    """
    pattern, facts = next(iter(datasets.items()), ("", None))
    if facts is None:
        return list(islice(file, 1))
    if not facts.members:
        return [pattern.rpartition("/")[0]] if "/" in pattern else []
    start = pattern.index("*")
    ends = [member.find("/", start) for member in facts.members]
    return [member[:end] for member, end in zip(facts.members, ends, strict=True) if end >= 0]


def _coordinates(
    file: h5py.File, places: Sequence[str], left_out: Collection[int]
) -> tuple[dict[str, Array | None], frozenset[str]]:
    """Return the coordinates, of the file or else a row for each of PDEBench's groups, and the axes with such rows."""
    found, own = {axis: _coordinate(file, names) for axis, names in _COORDINATES.items()}, set()
    for axis in (axis for axis, values in found.items() if values is None):
        lines = [
            None if number in left_out else _line(file, f"{place}/grid/{axis}") for number, place in enumerate(places)
        ]
        shortest = min((len(line) for line in lines if line is not None), default=0)
        if shortest:
            found[axis] = np.stack([np.full(shortest, np.nan) if line is None else line[:shortest] for line in lines])
            own.add(axis)
    return found, frozenset(own)


def _line(file: h5py.File, name: str) -> Array | None:
    """Read a row of numbers without h5py's objects, which take three times as long: there may be thousands of rows."""
    try:
        dataset = h5py.h5d.open(file.id, name.encode())
    except (KeyError, OSError):  # there is none
        return None
    if len(dataset.shape or ()) != 1 or dataset.dtype.kind not in "fiu":
        return None
    line = np.empty(dataset.shape)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, line)
    return line


def _coordinate(file: h5py.File, names: Sequence[str]) -> Array | None:
    found = [dataset for name in names if (dataset := _get(file, name)) is not None]
    numbers = [each for each in found if each.shape and np.issubdtype(each.dtype, np.number) and each.dtype.kind != "c"]
    return numbers[0][...].astype(np.float64) if numbers and numbers[0].ndim <= 2 else None


def _periodic(file: h5py.File) -> tuple[bool, bool] | None:
    """Return whether x and y are periodic by the boundary conditions of a file of The Well; None without these."""
    group = file.get("boundary_conditions")
    if not isinstance(group, h5py.Group) or not len(group):
        return None
    kinds: dict[str, set[str]] = {"x": set(), "y": set()}
    for boundary in group.values():
        for axis in np.atleast_1d(boundary.attrs.get("associated_dims", [])).tolist():
            kinds.setdefault(_text(axis), set()).add(_text(boundary.attrs.get("bc_type", "")).lower())
    return kinds["x"] == {"periodic"}, kinds["y"] == {"periodic"}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
