"""Check of whether a call is still running."""

import sys
from types import FrameType


def is_running(frame: FrameType) -> bool:
    """Whether the frame is that of a (direct or indirect) caller."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None:
        if caller is frame:
            return True
        caller = caller.f_back
    return False
