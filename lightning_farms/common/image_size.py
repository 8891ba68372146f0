"""The size of a field in cells: the side of a square, or both sides."""

from __future__ import annotations

ImageSize = int | tuple[int, int]


def plain_size(img_size: ImageSize) -> ImageSize:
    """The side of a square, or both sides of another field, as YAML and JSON may give them (a list).

    Example:
        >>> plain_size((64, 64)), plain_size((64, 32))
        (64, (64, 32))
    """
    if not isinstance(img_size, (tuple, list)):
        return img_size
    if len(img_size) != 2:
        raise ValueError(f"Expected argument `img_size` to be one number, or two (along x, y), but got {img_size}.")
    along_x, along_y = img_size
    return along_x if along_x == along_y else (along_x, along_y)


def sides(img_size: ImageSize) -> tuple[int, int]:
    """Cells along x and y.

    Example:
        >>> sides(64)
        (64, 64)
    """
    return img_size if isinstance(img_size, tuple) else (img_size, img_size)
