"""A process that runs subcommands one by one where they cannot write, each in a child of its own.

Jobs come as JSON on stdin: arguments, folder, bytes that a file may have, what stdout is, and
what the system refuses. Used by test_writing.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import sys
import warnings
from importlib import import_module

MODULES = (
    *(f"lightning_farms.cli.{name}" for name in ("analyze.command", "check", "convert", "download", "evaluate")),
    *(f"lightning_farms.cli.{name}" for name in ("perplexity", "prune.command", "simulate", "train.command")),
    "transformers.models.llama.modeling_llama",
    "matplotlib.backends.backend_agg",
)


def run(job: dict[str, object]) -> dict[str, object]:
    """Exit status, and what was said."""
    out, err, loaded = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _in_child(job, out, err, loaded[1])
    for end in (out[1], err[1], loaded[1]):
        os.close(end)
    if job["stdout"] == "closed":
        os.close(out[0])
    texts = {end: b"" for end in (out[0], err[0], loaded[0]) if not (end == out[0] and job["stdout"] == "closed")}
    left = set(texts)
    while left:
        for end in select.select(list(left), [], [])[0]:
            piece = os.read(end, 2**16)
            texts[end] += piece
            if not piece:
                left.remove(end)
                os.close(end)
    _, status = os.waitpid(child, 0)
    for module in texts[loaded[0]].decode().split():  # the next child has them
        with contextlib.suppress(Exception):
            import_module(module)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "out": texts.get(out[0], b"").decode(),
        "err": texts[err[0]].decode(),
    }


def _in_child(job: dict[str, object], out: tuple[int, int], err: tuple[int, int], loaded: int) -> None:
    status, before = 0, set(sys.modules)
    os.dup2(out[1], 1)
    os.dup2(err[1], 2)
    for end in (*out, *err):
        os.close(end)
    if job["stdout"] == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    try:
        os.chdir(str(job["folder"]))
        if job["most"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(str(job["most"])),) * 2)
        if job.get("fault"):
            _break(str(job["at"]), getattr(errno, str(job["fault"])), str(job["folder"]))
        from lightning_farms.cli import main

        sys.argv = ["lightning-farms"]
        main(list(job["arguments"]))  # type: ignore[call-overload]
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:  # what Python prints of it
        status = 70
        os.write(2, f"Traceback: {type(error).__name__}: {error}".encode())
    try:
        sys.stdout.flush()
    except OSError:
        os.write(2, b"Exception ignored, as Python says when it closes stdout")
    os.write(loaded, "\n".join(set(sys.modules) - before).encode())
    os._exit(status)


def _break(at: str, number: int, folder: str) -> None:
    """Let the system refuse what is written in a folder: when a file is opened, or when it is to be on the disk."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    def opened(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(arguments[0], (str, bytes)) else ""
            if path.startswith(folder):
                raise OSError(number, os.strerror(number), path)

    if at == "fsync":
        os.fsync = refuse  # type: ignore[assignment]
    else:
        sys.addaudithook(opened)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for module in MODULES:
        import_module(module)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
