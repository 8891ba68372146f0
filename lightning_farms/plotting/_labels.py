"""Fitting many or long names to an axis."""


def thinned(count: int, room: int) -> list[int]:
    """Choose evenly spaced positions to label, the first among them."""
    step = max(1, -(-count // room))
    return list(range(0, count, step))


def shortened(name: str, width: int = 34) -> str:
    """Cut the middle out of a name that is too long; its two ends tell layers apart."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"
