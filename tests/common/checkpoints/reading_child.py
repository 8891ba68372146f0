"""A process that reads files one by one and says what came of each: run by test_fuzz.py."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import time
from pathlib import Path

import torch

from lightning_farms.cli import main
from lightning_farms.common.checkpoints import UnreadableTensor, open_checkpoint
from tests.common.checkpoints.mutants import OUTSIDE, original

torch.set_num_threads(1)
_LONG = 2.0  # seconds after which a file is not read once more
opened: list[str] = []
watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if watching and event == "open" and isinstance(arguments[0], (str, bytes)):
        path = arguments[0]
        opened.append(path if isinstance(path, str) else path.decode())


def read(path: Path) -> dict[str, object]:
    """Read every tensor: what is other than in the sound file, and the error."""
    try:
        tensors = open_checkpoint(path)
        names = list(tensors)
    except (ValueError, OSError) as error:
        return {"refused": str(error)}
    sound, other, unreadable = original(), [], []
    for name in names[:100]:
        try:
            tensor = tensors[name]
        except (UnreadableTensor, ValueError) as error:
            unreadable.append(str(error))
            continue
        if not tensor.is_meta and tensor.numel() and bool((tensor == OUTSIDE).any()):
            return {"crash": "it read outside the folder"}
        if tensor.is_meta:
            continue
        as_told = name in sound and tensor.dtype in (sound[name].dtype, torch.float32)
        if not as_told or not torch.equal(tensor.float(), sound[name].float()):
            other.append(name)
    return {"other": other, "unreadable": unreadable}


def analyse(path: Path) -> dict[str, object]:
    """As a shell user does: exit status and what was said."""
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["analyze", str(path), "--format", "csv"])
        except SystemExit as ended:
            status = ended.code
    return {"status": status, "said": err.getvalue()[-2000:], "rows": out.getvalue()[:2000]}


def report(path: Path) -> dict[str, object]:
    """Everything about one file."""
    global watching
    opened.clear()
    start = time.perf_counter()
    watching = True
    try:
        found = read(path)
        found |= analyse(path) if time.perf_counter() - start < _LONG else {}
    except BaseException as error:
        found = {"crash": f"{type(error).__name__}: {str(error)[:300]}"}
    watching = False
    seconds = time.perf_counter() - start
    return found | {"seconds": seconds, "opened": list(dict.fromkeys(opened)), "peak": _peak()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.addaudithook(_watch)
    report(Path(sys.argv[1]))  # what is imported late, and a first peak
    sys.stdout.write(json.dumps({"peak": _peak()}) + "\n")
    for argument in sys.argv[2:]:
        sys.stdout.write(json.dumps(report(Path(argument))) + "\n")
        sys.stdout.flush()
