"""Measure `analyze` of a checkpoint of LLaMA-7B's shapes: python -m tests.benchmarks.bench_checkpoint [FOLDER] (Linux).

A safetensors file with random bfloat16 weights of LLaMA-7B's shapes, but of few of its 32 blocks and without tables, is
written to a temporary folder in FOLDER (0.8 GB for two blocks), analysed by `lightning-farms analyze` in a process of
its own with windows of --window that cover each matrix, and removed. Printed are the seconds, the CPU seconds of all
threads (on a machine with other work the time would have been half of that on two idle cores), and the peak of the
resident memory, with the pages of the file told apart: these are the system's to take back. What all 32 blocks and the
head of 32000 tokens would take is calculated: that many more windows, and a start that is measured on a tiny file.

Memory does not grow with blocks: weights are read one after the other. The process has a terminal of its own for its
progress bar, of which is printed what it said of its end at 20 %, 40 %, ... of it.
"""

import argparse
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from lightning_farms.analysis import FARMS

WIDTH, INSIDE, VOCABULARY, BLOCKS = 4096, 11008, 32000, 32
GIB = 2**30
_BAR = re.compile(r"(\d+)% (\d+):(\d\d):(\d\d) (\d+):(\d\d):(\d\d) left")
_EVERY = 0.05  # seconds between two looks at the memory


class Sign(NamedTuple):
    """What the bar showed: percent, the seconds since it came up, and those that it said were left."""

    percent: int
    elapsed: int
    left: int


class Run(NamedTuple):
    """A process that ran `analyze`: seconds, those of all CPUs, bytes of memory at their peaks, the bar, the result."""

    seconds: float
    cpu: float
    resident: int
    anonymous: int
    bar: list[Sign]
    out: str


def shapes(width: int = WIDTH, inside: int = INSIDE, blocks: int = 2) -> dict[str, tuple[int, int]]:
    """Of the matrices of some blocks, by LLaMA's names."""
    square = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    of_block = {f"self_attn.{name}_proj": shape for name, shape in square.items()}
    of_block |= {"mlp.gate_proj": (inside, width), "mlp.up_proj": (inside, width), "mlp.down_proj": (width, inside)}
    return {f"model.layers.{i}.{name}.weight": shape for i in range(blocks) for name, shape in of_block.items()}


def write(path: Path, matrices: dict[str, tuple[int, int]], seed: int = 0) -> None:
    """Random bfloat16 weights."""
    generator = torch.Generator().manual_seed(seed)
    empty = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in matrices.items()}
    save_file({name: each.normal_(0, 0.02, generator=generator) for name, each in empty.items()}, path)


def windows(matrices: dict[str, tuple[int, int]], window: int) -> int:
    """Of all matrices."""
    return sum(FARMS(window=window).windows(*shape, "linear").number for shape in matrices.values())


def analyse(path: Path, options: Sequence[str], threads: int = 2) -> Run:
    """Run the command on a terminal of its own, and watch it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lightning_farms", "analyze", str(path), *options]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "COLUMNS": "200",
        "TERM": "xterm-256color",
    }
    with tempfile.TemporaryFile("w+") as out:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=theirs, env=environment)
        os.close(theirs)
        shown: list[bytes] = []
        reader = threading.Thread(target=lambda: shown.extend(_read(ours)))
        reader.start()
        anonymous = _watched(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        reader.join()
        os.close(ours)
        text = b"".join(shown).decode(errors="replace")
        if process.returncode:
            raise RuntimeError(text)
        out.seek(0)
        return Run(seconds, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss, anonymous, signs(text), out.read())


def signs(shown: str) -> list[Sign]:
    """What a terminal showed of the bar, without repetitions."""
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    found = []
    for percent, *times in _BAR.findall(plain):
        hours, minutes, seconds, more_hours, more_minutes, more_seconds = map(int, times)
        elapsed = 3600 * hours + 60 * minutes + seconds
        found.append(Sign(int(percent), elapsed, 3600 * more_hours + 60 * more_minutes + more_seconds))
    return list(dict.fromkeys(found))


def _read(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # Linux's way to say that nobody writes any more
            return
        if not part:
            return
        yield part


def _watched(pid: int) -> int:
    """Peak of the memory that is not the file's, until the process ends, without taking its end from who waits."""
    most = 0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        most = max([most, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
        time.sleep(_EVERY)
    return most


def lines(run: Run, start: Run, args: argparse.Namespace) -> Iterator[str]:
    """What is printed: measured, calculated for the whole, and what the bar said of its end."""
    matrices = shapes(args.width, args.inside, args.blocks)
    yield f"{len(matrices)} matrices, windows of {args.window}, {args.threads} threads"
    yield f"  {run.seconds:.1f} s ({start.seconds:.1f} s of it the start), CPU {run.cpu:.1f} s ({start.cpu:.1f} s)"
    resident, anonymous, imports = (each / GIB for each in (run.resident, run.anonymous, start.anonymous))
    yield (
        f"  peak of resident memory {resident:.2f} GiB; without pages of files {anonymous:.2f} GiB (of it imports "
        f"{imports:.2f} GiB)"
    )
    here = windows(matrices, args.window)
    whole = windows(shapes(args.width, args.inside, BLOCKS) | {"lm_head": (VOCABULARY, args.width)}, args.window)
    seconds, cpu = (
        start_s + (run_s - start_s) / here * whole for run_s, start_s in zip(run[:2], start[:2], strict=True)
    )
    yield (
        f"  calculated for {BLOCKS} blocks and the head, {whole} windows for the {here} here: {seconds / 60:.1f} "
        f"minutes; CPU {cpu / 60:.1f} minutes, on {args.threads} cores without other work {cpu / args.threads / 60:.1f}"
    )
    for sign in at_percents(run.bar):
        yield (
            f"  the bar at {sign.percent} %: {sign.elapsed} s and {sign.left} s left, {sign.elapsed + sign.left} in all"
        )


def at_percents(bar: Sequence[Sign], every: int = 20) -> list[Sign]:
    """The first sign at or after each so many percent."""
    return [next(sign for sign in bar if sign.percent >= least) for least in range(every, 101, every)] if bar else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Write, measure, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where the temporary folder is made")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--inside", type=int, default=INSIDE)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        path, tiny = Path(name) / "model.safetensors", Path(name) / "tiny.safetensors"
        write(tiny, {"fc.weight": (32, 32)})
        start = analyse(tiny, [], args.threads)
        write(path, shapes(args.width, args.inside, args.blocks))
        run = analyse(path, ["--window", str(args.window)], args.threads)
    print(*lines(run, start, args), sep="\n")


if __name__ == "__main__":
    main()
