"""Programs in processes of their own, forked off one that has imported what takes seconds.

Run as a module, this is the one that they are forked off: it reads jobs from stdin, and writes how they ended.
"""

import atexit
import functools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = (
    *("lightning.pytorch", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.utils.tensorboard"),
    *(f"lightning_farms.{room}" for room in ("balancing", "callbacks", "data", "models", "pruning")),
)


@functools.cache
def _server():
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd=ROOT, env=variables, start_new_session=True,
    )  # fmt: skip
    atexit.register(server.communicate)
    return server


def run_forked(*programs, folder, timeout=240, code=0, out="out{}.txt", err="err{}.txt"):
    """Run programs at once, each a module or a script with arguments, and its variables; all must end with that code.

    What they print is kept in the folder, by default that of the first in out0.txt and err0.txt.
    """
    jobs = []
    for number, (command, variables) in enumerate(programs):
        said = [str(folder / name.format(number)) for name in (out, err)]
        jobs.append({"command": [str(word) for word in command], "variables": variables, "said": said})
    server = _server()
    server.stdin.write(json.dumps(jobs) + "\n")
    server.stdin.flush()
    codes = None
    try:
        if select.select([server.stdout], [], [], timeout)[0]:
            codes = json.loads(server.stdout.readline() or "null")
    finally:
        if codes is None:  # too late, or interrupted: the next ones get a server of their own
            os.killpg(server.pid, signal.SIGKILL)
            _server.cache_clear()
    errors = "\n".join(path.read_text()[-3000:] for job in jobs if (path := Path(job["said"][1])).is_file())
    assert codes == [code] * len(jobs), f"{codes or f'no end in {timeout} s'}: {errors}"


def _forks(line):
    """Start the programs and tell how they ended; in a fork, its program."""
    children = []
    for job in json.loads(line):
        child = os.fork()
        if child == 0:
            return job
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.stdout.write(json.dumps(codes) + "\n")
    sys.stdout.flush()
    return None


def _main():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in IMPORTED:
            import_module(module)
    while line := sys.stdin.readline():
        if job := _forks(line):
            return _run(job)
    return None


def _run(job):
    """As `python -m module` or `python script` would; it ends as a program does, its functions for the end are run."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for end, path in enumerate(job["said"], start=1):
        with open(path, "w") as file:
            os.dup2(file.fileno(), end)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)  # buffered as becomes a file or a terminal
    os.environ.update(job["variables"])
    tempfile.tempdir = None
    sys.argv = job["command"]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
