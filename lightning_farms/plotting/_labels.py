"""Fitting many or long names to an axis."""


def thinned(count: int, room: int) -> list[int]:
    """Choose evenly spaced positions to label, the first among them.

    Args:
        count: How many positions there are.
        room: How many labels fit, at least 1.

    Returns:
        At most `room` indices, 0, s, 2 s, ... with the least step s that fits.

    Example:
        >>> thinned(5, 10), thinned(10, 4)
        ([0, 1, 2, 3, 4], [0, 3, 6, 9])
    """
    step = max(1, -(-count // room))
    return list(range(0, count, step))


def shortened(name: str, width: int = 34) -> str:
    """Cut the middle out of a name that is too long; its two ends tell layers apart.

    Args:
        name: A layer's name.
        width: The number of characters to keep to, at least 3.

    Returns:
        The name, at most `width` characters long.

    Example:
        >>> shortened("model.layers.0.self_attn.q_proj", 16)
        'model.la….q_proj'
    """
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"
