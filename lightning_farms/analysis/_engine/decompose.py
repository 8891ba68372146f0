"""Spectra of the windows of many layers: windows of one size share jobs, which fit the workspace, on all cores."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis._engine.compression import fewer_rows
from lightning_farms.analysis._engine.failures import attempted
from lightning_farms.analysis._engine.plan import Plan
from lightning_farms.analysis._engine.spectrum import Spectrum
from lightning_farms.functional.eigensolvers import LANES, PADDED_TO, Way, Where, one_blas_thread, problem_of, way_of
from lightning_farms.functional.spectrum import (
    CheckedSpectrum,
    checked_esds,
    esd_by_singular_values,
    promoted_type,
    working_type,
)
from lightning_farms.functional.submatrices import is_interleaved

_JOBS_A_WORKER = 32  # so that no worker is left alone with a long job at the end
_CHEAPEST_JOB = 2e6  # multiplications; a cheaper job costs more to hand over than to do
_JOBS_ON_A_DEVICE = 4  # jobs that share the workspace on an accelerator, where each is as large as fits
_SIDE_BY_SIDE = 2048  # rows up to which each worker decomposes a Gram matrix of its own; all workers share a larger one
_ONE_AT_A_TIME = threading.RLock()


class _Job(NamedTuple):
    """Windows of one size (layer, (w, m', n')), their cost in multiplications, the bytes they need, and the routine."""

    pieces: list[tuple[int, Tensor]]
    cost: float
    bytes: int
    way: Way

    @property
    def device(self) -> torch.device:
        """Device of the windows."""
        return self.pieces[0][1].device

    @property
    def for_all_workers(self) -> bool:
        """Whether all CPU workers do this job together."""
        return _for_all_workers(self.way, min(self.pieces[0][1].shape[-2:]))

    @property
    def for_one_worker(self) -> bool:
        """Whether a single CPU worker does this job, while the others do other jobs."""
        return _for_workers(self.way) and not self.for_all_workers


_Outcome = list[CheckedSpectrum | Exception]
"""The spectrum of each piece of a job, or the error that it raised."""


def decompose(
    plans: dict[int, Plan], *, quick: bool, workspace: int, workers: int, where: Where = "auto"
) -> Generator[dict[int, Spectrum | Exception]]:
    """Yield the eigenvalues of many layers' windows, or the error that one of a layer's windows raised.

    Layers whose windows have the same size come together, as soon as the workers have finished them: the next ones
    are decomposed while the caller uses these.

    On the CPU a window of at most 2048 rows or columns is decomposed by one thread. Its result is bit for bit the
    same for any number of workers, and whichever windows share a job with it. Larger windows are decomposed one after
    another, each by all workers: the result is bit for bit the same for the same number of workers.
    """
    with one_thread_each():
        plans = {key: compressed(plan, quick) for key, plan in plans.items()}
    for jobs, outcomes in _run(_jobs(plans, quick, workspace, workers, where), quick, workspace, workers):
        yield _of_group(jobs, outcomes, plans)


def _of_group(jobs: list[_Job], outcomes: list[_Outcome], plans: dict[int, Plan]) -> dict[int, Spectrum | Exception]:
    parts: dict[int, list[CheckedSpectrum]] = defaultdict(list)
    errors: dict[int, Exception] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        for (key, _), part in zip(job.pieces, outcome, strict=True):
            if isinstance(part, Exception):
                errors.setdefault(key, part)
            else:
                parts[key].append(part)
    complete = [key for key in parts if key not in errors]
    return errors | {key: attempted(_of_layer, parts[key], plans[key], jobs[0].way) for key in complete}


def decompose_again(plan: Plan) -> Spectrum:
    """Compute the spectrum of one layer by another routine, window by window, in float64 on the CPU."""
    with one_thread_each(), torch.no_grad():
        return _of_layer([esd_by_singular_values(window) for window in _views(plan, 1)], plan)


def _of_layer(parts: list[CheckedSpectrum], plan: Plan, way: Way = Way.CPU) -> Spectrum:
    eigenvalues, *errors = _together(parts)
    blocks: Tensor = eigenvalues[:, -plan.spectrum_size :].unflatten(0, (plan.windows.number, -1))
    sum_error, squares_error = (error.amax() for error in errors)
    return Spectrum(blocks, sum_error, squares_error, way)


def _together(parts: list[CheckedSpectrum]) -> CheckedSpectrum:
    return CheckedSpectrum(*(torch.cat(each) for each in zip(*parts, strict=True)))


def compressed(plan: Plan, quick: bool) -> Plan:
    """Shorten one side of matrices whose rank is known to be low; their windows keep their eigenvalues."""
    side, size = plan.compressed_side, plan.compressed_size
    if side is None or plan.matrices.device.type == "mps":  # MPS has no float64
        return plan
    dtype = working_type(plan.matrices.dtype, quick=quick)
    if side == "rows":
        few, windows = fewer_rows(plan.matrices, size), plan.windows._replace(height=size)
    else:
        few, windows = fewer_rows(plan.matrices.mT, size).mT, plan.windows._replace(width=size)
    return plan._replace(matrices=few.to(dtype), windows=windows)


# ---- cutting -------------------------------------------------------------------------------------------------------


def _jobs(plans: dict[int, Plan], quick: bool, workspace: int, workers: int, where: Where) -> list[list[_Job]]:
    """Return a list of jobs for each size of windows, in the layers' order; layers of one size share jobs."""
    groups: dict[tuple[object, ...], dict[int, Plan]] = defaultdict(dict)
    for key, plan in plans.items():
        matrices, windows = plan.matrices, plan.windows
        groups[matrices.device, promoted_type(matrices.dtype), windows.height, windows.width][key] = plan
    routed = [(group, _way(list(group.values()), quick, where)) for group in groups.values()]
    shared = sum(plan.cost for group, way in routed if _for_workers(way) for plan in group.values())
    dearest = max(_CHEAPEST_JOB, shared / (workers * _JOBS_A_WORKER))
    return [list(_group_jobs(group, way, quick, workspace, dearest, workers)) for group, way in routed]


def _way(plans: list[Plan], quick: bool, where: Where) -> Way:
    """Choose one routine for all Gram matrices of layers with one window size, however they are cut into jobs."""
    device, dtype = plans[0].matrices.device, working_type(plans[0].matrices.dtype, quick=quick)
    if device.type == "mps":  # esd hands MPS matrices to the CPU
        return Way.CPU
    problem = problem_of(device, dtype, plans[0].gram_size, _window_count(plans), one_blas_thread=True)
    return way_of(problem, where)


def _window_count(plans: Iterable[Plan]) -> int:
    return sum(plan.windows.number * len(plan.matrices) for plan in plans)


def _for_workers(way: Way) -> bool:
    return way.by_scipy or way in (Way.CPU, Way.HOST)


def _for_all_workers(way: Way, size: int) -> bool:
    """Whether all workers share one matrix: by its size alone, so that a layer's numbers do not depend on others."""
    return way in (Way.CPU, Way.HOST) and size > _SIDE_BY_SIDE


def _group_jobs(
    plans: dict[int, Plan], way: Way, quick: bool, workspace: int, dearest: float, workers: int
) -> Iterator[_Job]:
    plan = next(iter(plans.values()))
    matrices = plan.matrices
    cost = plan.cost / _window_count([plan])
    double = matrices.dtype in (torch.float64, torch.complex128)
    size = _window_bytes(plan, 8 if double else 4, 4 if quick and not double else 8)
    if _for_all_workers(way, plan.gram_size):
        fitting = most = 1
    elif _for_workers(way):
        fitting = max(1, int(workspace / size))
        together = min(LANES, math.ceil(_window_count(plans.values()) / workers)) if way is Way.NUMBA else 1
        most = min(fitting, max(together, int(dearest / cost)))
    else:
        fitting = most = max(1, int(workspace / _JOBS_ON_A_DEVICE / size))
    pieces: list[tuple[int, Tensor]] = []
    queued = 0
    for key, each in plans.items():
        together = min(fitting, len(each.matrices)) if is_interleaved(each.matrices) else 1
        for views in _views(each, max(most, together)):
            if pieces and queued + len(views) > most:
                yield _Job(pieces, queued * cost, queued * size, way)
                pieces, queued = [], 0
            pieces.append((key, views))
            queued += len(views)
    yield _Job(pieces, queued * cost, queued * size, way)


def _window_bytes(plan: Plan, joined: int, working: int) -> int:
    """Return the bytes of one window's joined and padded copies, Gram matrix, and the decomposition's copy of that."""
    height, width = (size + -size % PADDED_TO for size in (plan.windows.height, plan.windows.width))
    entries, squared = height * width, min(height, width) ** 2
    return (2 if plan.matrices.is_complex() else 1) * ((joined + working) * entries + 2 * working * squared)


def _views(plan: Plan, most: int) -> Iterator[Tensor]:
    """Yield views (at most ``most``, m', n') of every window, with all matrices at one window's place together."""
    windows = plan.windows
    for row in windows.row_starts:
        for column in windows.column_starts:
            block = plan.matrices[:, row : row + windows.height, column : column + windows.width]
            yield from block.split(most)


# ---- doing ---------------------------------------------------------------------------------------------------------


def _run(
    groups: list[list[_Job]], quick: bool, workspace: int, workers: int
) -> Iterator[tuple[list[_Job], list[_Outcome]]]:
    """Yield each group of jobs with the outcomes of its jobs; the workers share the jobs that run on the CPU.

    The workers start with the most expensive jobs. Groups come in this order, too, after those that are not shared. The
    matrices of a device that are decomposed on the host belong to the shared jobs: while one worker decomposes, the
    device forms the Gram matrices of another worker's job. All workers use the streams that are current here.
    """
    together = [jobs for jobs in groups if jobs[0].for_all_workers]
    others = [jobs for jobs in groups if not jobs[0].for_all_workers]
    shared = [job for jobs in others for job in jobs if job.for_one_worker]
    budget = _Budget(workspace)
    streams = _current_streams(groups)

    def work(job: _Job) -> _Outcome:
        with budget.of(job.bytes), torch.no_grad(), _on(streams[job.device]):
            return _spectra([views for _, views in job.pieces], quick, job.way)

    of_blas = one_blas_thread if any(job.way.by_scipy for job in shared) else nullcontext
    side_by_side = min(workers, len(shared)) if len(shared) > 1 else 1
    with one_thread_each(), of_blas(), _pool(side_by_side) if side_by_side > 1 else nullcontext() as pool:
        dearest_first = sorted(shared, key=lambda job: -job.cost)
        running = {id(job): pool.submit(work, job) for job in dearest_first} if pool else {}
        for jobs in sorted(others, key=lambda jobs: (id(jobs[0]) in running, -jobs[0].cost)):
            yield jobs, [running[id(job)].result() if id(job) in running else work(job) for job in jobs]
    for jobs in together:
        with _intra_op_threads(workers):
            outcomes = [work(job) for job in jobs]
        yield jobs, outcomes


def _current_streams(groups: list[list[_Job]]) -> dict[torch.device, torch.cuda.Stream | None]:
    devices = {jobs[0].device for jobs in groups}
    return {device: torch.cuda.current_stream(device) if device.type == "cuda" else None for device in devices}


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Make another thread's stream current in this thread, which would otherwise use the default stream."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _spectra(pieces: list[Tensor], quick: bool, way: Way) -> _Outcome:
    """Compute the spectra of pieces together or, if that fails (for lack of memory or otherwise), in smaller jobs."""
    found = attempted(_joint_spectra, pieces, quick, way)
    if not isinstance(found, Exception):
        return found
    if len(pieces) > 1:
        return [_spectra([piece], quick, way)[0] for piece in pieces]
    windows = pieces[0].split(1)
    return [attempted(_one_by_one, windows, quick, way) if len(windows) > 1 else found]


def _joint_spectra(pieces: list[Tensor], quick: bool, way: Way) -> _Outcome:
    joined = checked_esds(pieces, quick=quick, where=way)
    parts = (each.split([len(piece) for piece in pieces]) for each in joined)
    return [CheckedSpectrum(*each) for each in zip(*parts, strict=True)]


def _one_by_one(windows: Sequence[Tensor], quick: bool, way: Way) -> CheckedSpectrum:
    return _together([checked_esds([window], quick=quick, where=way) for window in windows])


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Provide a pool of threads with one intra-op thread each; after an error or Ctrl-C it starts no further job."""
    pool = ThreadPoolExecutor(workers, "spectra", _settle_on_one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _settle_on_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread that has not asked yet takes on what another thread sets later


class _Budget:
    """Bytes shared by threads: a job waits until its bytes are free, and one that needs too many waits for all."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def of(self, needed: int) -> Iterator[None]:
        needed = min(needed, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


def one_thread_each() -> AbstractContextManager[None]:
    """Use one intra-op thread for a while, so that results do not depend on the number of threads."""
    return _intra_op_threads(1)


@contextmanager
def _intra_op_threads(number: int) -> Iterator[None]:
    """Set the number of this thread's intra-op threads for a while; threads take turns.

    PyTorch keeps one setting for each thread. Until a thread first asks for it (a parallel operation asks, too), it is
    the last setting that any thread made; from then on it is the thread's own. If two threads were in here at a time,
    the second could therefore find the 1 that the first has set, and leave it behind.
    """
    with _ONE_AT_A_TIME:
        threads = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
