"""Which channels are the components of a vector, as far as their names and datasets tell."""

from collections.abc import Mapping, Sequence

from lightning_farms.data.fields._layout import FieldSource, parse_field

Pairs = tuple[tuple[int, int], ...]

_STEMS = ("v", "vel", "velocity", "u", "m", "mom", "momentum", "f", "force")
_VECTOR_GROUP = "t1_fields"  # The Well's
_PSEUDOSCALARS = ("vorticity", "vor", "curl", "rotation", "stream_function", "streamfunction")
_PERHAPS_PSEUDOSCALARS = ("w", "omega", "psi")
_REMEDY = (
    "Say which channels are a vector's x- and y-component, such as `vectors: [[vx, vy]]`, or `vectors: []` where there "
    "is none; or set `augment` to 'shifts', which turns nothing."
)


def vector_pairs(fields: Mapping[str, str], vectors: Sequence[Sequence[str]] | None) -> Pairs:
    """Return the channels of each vector's x- and y-component; raise an error if they cannot be recognised.

    Example:
        >>> vector_pairs({"density": "density", "Vx": "Vx", "Vy": "Vy"}, None)
        ((1, 2),)
    """
    names = list(fields)
    for name in names:
        doubted = _PSEUDOSCALARS if vectors is not None else (*_PSEUDOSCALARS, *_PERHAPS_PSEUDOSCALARS)
        if name.lower() in doubted:
            raise ValueError(
                f"Expected argument `augment` to be 'shifts' for channel {name!r}, whose sign changes in a reflection "
                f"if it is a vorticity. {'' if name.lower() in _PSEUDOSCALARS else _REMEDY}".rstrip()
            )
    if vectors is not None:
        check_pairs(vectors, names)
        return tuple((names.index(x), names.index(y)) for x, y in vectors)
    sources = [parse_field(text) for text in fields.values()]
    found = {**_by_dataset(sources), **_by_name(names)}
    pairs = {pair for pair in found.values() if None not in pair}
    _check_told(names, sources, found)
    return tuple(sorted((x, y) for x, y in pairs if x is not None and y is not None))


def check_pairs(vectors: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """Refuse anything but pairs of channels in which each channel occurs at most once."""
    flat = [name for pair in vectors for name in pair]
    if any(len(pair) != 2 for pair in vectors) or len(set(flat)) < len(flat) or not set(flat) <= set(names):
        raise ValueError(
            f"Expected argument `vectors` to be pairs of the channels {list(names)}, each at most once, but got "
            f"{[list(pair) for pair in vectors]}."
        )


Found = dict[str, tuple[int | None, int | None]]


def _by_name(names: Sequence[str]) -> Found:
    """Return {stem: channels of its x- and y-component} for the stems that mean a vector."""
    found: Found = {}
    for number, name in enumerate(names):
        stem, axis = _stem(name)
        if axis in ("x", "y") and stem in _STEMS:
            x, y = found.get(stem, (None, None))
            found[stem] = (number, y) if axis == "x" else (x, number)
    return found


def _by_dataset(sources: Sequence[FieldSource]) -> Found:
    """Return {dataset: channels of its two components} for the datasets that are vectors."""
    found: Found = {}
    for number, (dataset, component) in enumerate(sources):
        *groups, last = dataset.split("/")
        if len(component) == 1 and component[0] < 2 and (_VECTOR_GROUP in groups or last.lower() in _STEMS):
            x, y = found.get(dataset, (None, None))
            found[dataset] = (number, y) if component[0] == 0 else (x, number)
    return found


def _check_told(names: Sequence[str], sources: Sequence[FieldSource], found: Found) -> None:
    known = {number for pair in found.values() for number in pair}
    halves = [names[x if y is None else y] for x, y in found.values() if (x is None) != (y is None)]  # type: ignore[index]
    if halves:
        raise ValueError(f"Expected both components of a vector to be channels, but got {halves} alone. {_REMEDY}")
    tensors = [name for name, (_, component) in zip(names, sources, strict=True) if len(component) > 1]
    if tensors:
        raise ValueError(
            f"Expected argument `augment` to be 'shifts' with components of tensors, {tensors}, which are not turned."
        )
    open_questions = _unnamed(names, sources, known)
    if open_questions:
        raise ValueError(
            f"Expected the names of the channels to tell vectors from scalars, but {open_questions} may be either. "
            f"{_REMEDY}"
        )


def _unnamed(names: Sequence[str], sources: Sequence[FieldSource], known: set[int | None]) -> list[str]:
    """Return two channels that may be the components of an unknown vector, none if there are no such channels."""
    rest = [number for number in range(len(names)) if number not in known]
    for a in rest:
        for b in rest:
            (stem, axis), (other, across) = _stem(names[a]), _stem(names[b])
            alike = stem == other and (axis, across) == ("x", "y")
            if alike or (names[a].lower(), names[b].lower()) == ("u", "v"):
                return [names[a], names[b]]
    for dataset in dict.fromkeys(source.dataset for source in sources):
        own = [number for number, source in enumerate(sources) if source.dataset == dataset]
        components = sorted(sources[number].component for number in own)
        if components == [(0,), (1,)] and set(own) <= set(rest):
            return [names[number] for number in own]
    return []


def _stem(name: str) -> tuple[str, str]:
    """Split the name of a component into its beginning and its axis."""
    return name[:-1].rstrip("_- ").lower(), name[-1:].lower()
