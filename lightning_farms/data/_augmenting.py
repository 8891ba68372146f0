"""Choice of the symmetries that are exact for the flows of given files, from the files and the user's arguments."""

from collections.abc import Sequence
from typing import get_args

from lightning_farms.data.augmentation import Augment, Augmentation
from lightning_farms.data.fields._file_set import FileSet
from lightning_farms.data.fields._vectors import vector_pairs

Vectors = Sequence[Sequence[str]] | None


def check_augment(augment: str | None, vectors: Vectors, periodic: bool | None) -> None:
    """Refuse an unknown kind of augmentation, and `vectors` or `periodic` without `augment`."""
    if augment is not None and augment not in get_args(Augment):
        raise ValueError(f"Expected argument `augment` to be one of {list(get_args(Augment))}, but got {augment!r}.")
    for name, value in (("vectors", vectors), ("periodic", periodic)):
        if augment is None and value is not None:
            raise ValueError(f"Expected argument `{name}` to be left out without `augment`, but got {value}.")


def augmentation_of(
    augment: Augment, files: FileSet, *, vectors: Vectors, periodic: bool | None, seed: int
) -> Augmentation:
    """Return the symmetries that are exact on these files; raise an error if a requested kind has none."""
    along = files.periodic if periodic is None else (periodic, periodic)
    shifts = augment in ("shifts", "all")
    turned = augment in ("symmetries", "all")
    if shifts and (along is None or not any(along)):
        told = "their files do not tell" if along is None else "they are not periodic"
        raise ValueError(
            f"Expected flows on a periodic domain to shift them (`augment: {augment}`), but {told}: "
            f"{files.files[0].path}. Set `periodic` to true if they are, or `augment` to 'symmetries'."
        )
    if turned and max(files.strides) > 1 and (along is None or not all(along)):
        raise ValueError(
            f"Expected argument `stride` to be 1 to reflect flows (`augment: {augment}`) whose domain is not known to "
            f"be periodic, since the cells that are left do not lie alike to both sides, but got {max(files.strides)}. "
            "Set `periodic` to true if it is."
        )
    return Augmentation(
        shift_x=shifts and along is not None and along[0],
        shift_y=shifts and along is not None and along[1],
        flips=turned,
        turns=turned and files.is_square and (along is None or along[0] == along[1]),
        vectors=vector_pairs(files.files[0].fields, vectors) if turned else (),
        seed=seed,
    )
