"""Methods for computing the eigenvalues of Gram matrices, and the table by which one of them is chosen.

Nothing is timed during a run: the choice depends on the problem and on the installed packages, so that a run can be
repeated. The lines for GPUs follow public reports (pytorch issues 174674, 175585, 183806, 192483 and its pull request
175403) and were not measured on one by us; the lines for CPUs were, against PyTorch with MKL: SciPy's
on an AMD EPYC, Numba's on an Intel Xeon (Sapphire Rapids or later), where SciPy's alone is 0.9 to 1.4 times as fast.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.utils.dlpack
from torch import Tensor

from lightning_farms.functional import _lapack

Where = Literal["auto", "device", "host"]
"""Where eigenvalues of matrices on a device are computed: as the table decides, on the device, or on the host's CPU."""

DecompositionError = _lapack.DecompositionError
"""The error that PyTorch raises if a decomposition does not converge."""

PADDED_TO = 4
"""CPU copies of matrices are padded to multiples of this size, see :func:`lightning_farms.functional.esd`."""

LANES = 16
"""Number of matrices that go together in :attr:`Way.NUMBA`: in calls of fewer, each takes longer."""

MOST_MATRICES = 65_535
"""Largest number of matrices in one call on a device: cuSOLVER's batched routines refuse more."""

_MOST_ENTRIES = 2**31 - 1  # limit for one call: sizes of work spaces are 32-bit numbers in some of the routines
_HOST_BYTES = 2**26  # bytes of Gram matrices copied to the host at once, while the previous ones are decomposed


class Way(StrEnum):
    """Method by which the eigenvalues of a batch of Gram matrices are computed."""

    CPU = "cpu"
    """PyTorch's LAPACK, for matrices on the CPU."""
    SCIPY = "scipy"
    """SciPy's BLAS and LAPACK, for matrices on the CPU, one after another; only one half of each Gram matrix is
    formed."""
    NUMBA = "numba"
    """As :attr:`SCIPY`, but the eigenvalues of LAPACK's tridiagonal forms are found many at once, by a program that
    Numba compiles."""
    TORCH = "torch"
    """PyTorch's routine on the matrices' device."""
    CUPY = "cupy"
    """cuSOLVER's batched Jacobi routine through CuPy, on the matrices' device and the current stream."""
    HOST = "host"
    """LAPACK on the host, applied to copies in pinned memory, while the device goes on."""

    @property
    def by_scipy(self) -> bool:
        """Whether SciPy's routines form and decompose the Gram matrices, on the CPU, one after another."""
        return self in (Way.SCIPY, Way.NUMBA)

    __repr__ = str.__repr__


class Problem(NamedTuple):
    """All that the choice of a method depends on.

    Attributes:
        device: type of the device; ``"rocm"`` if PyTorch was built for AMD GPUs, which it calls ``"cuda"``.
        dtype: data type of the Gram matrices.
        size: number of rows of one Gram matrix.
        batch: number of Gram matrices.
        torch: major and minor version of PyTorch.
        differentiable: whether a gradient is recorded.
        one_blas_thread: whether the caller holds BLAS to one thread, see :func:`one_blas_thread`.
    """

    device: str
    dtype: torch.dtype
    size: int
    batch: int
    torch: tuple[int, int]
    differentiable: bool = False
    one_blas_thread: bool = False


class Rule(NamedTuple):
    """A line of the table: the first line whose conditions all hold, and whose method is available, is followed.

    Attributes:
        way: the method.
        because: the reason.
        device: type of the device; None for any.
        complex: whether the matrices are complex; None for either.
        smallest: least size.
        largest: greatest size.
        fewest: least number of matrices.
        since: first version of PyTorch to which it applies.
        differentiable: if True, the line applies only if a gradient is recorded.
        one_blas_thread: if True, the line applies only if BLAS is held to one thread.
    """

    way: Way
    because: str
    device: str | None = None
    complex: bool | None = None
    smallest: int = 0
    largest: float = math.inf
    fewest: int = 0
    since: tuple[int, int] = (0, 0)
    differentiable: bool = False
    one_blas_thread: bool = False

    def holds(self, problem: Problem) -> bool:
        """Whether all conditions hold for the problem."""
        return (
            self.device in (None, problem.device)
            and self.complex in (None, problem.dtype.is_complex)
            and self.smallest <= problem.size <= self.largest
            and problem.batch >= self.fewest
            and problem.torch >= self.since
            and problem.differentiable >= self.differentiable
            and problem.one_blas_thread >= self.one_blas_thread
        )


RULES: tuple[Rule, ...] = (
    Rule(Way.CPU, "no other way has a gradient", device="cpu", differentiable=True),
    Rule(
        Way.NUMBA,
        "1.2 to 2.0 times as fast as PyTorch's, at 1024 and more 1.0 to 1.6",
        device="cpu",
        smallest=96,
        largest=2048,
        one_blas_thread=True,
    ),
    Rule(
        Way.SCIPY,
        "1.2 to 2.0 times as fast as PyTorch's, at 2048 1.0 to 1.5",
        device="cpu",
        smallest=256,
        largest=2048,
        one_blas_thread=True,
    ),
    Rule(
        Way.SCIPY,
        "1.2 to 1.6 times as fast as PyTorch's",
        device="cpu",
        complex=True,
        smallest=96,
        largest=2048,
        one_blas_thread=True,
    ),
    Rule(Way.CPU, "the matrices are there", device="cpu"),
    Rule(Way.TORCH, "no other way has a gradient", differentiable=True),
    Rule(Way.HOST, "batches of complex64 came back wrong (issue 192483)", device="cuda", complex=True),
    Rule(Way.TORCH, "batched in all versions, up to 32 x 32", device="cuda", largest=32),
    Rule(Way.TORCH, "batched for all sizes (pull request 175403)", device="cuda", since=(2, 12)),
    Rule(Way.CUPY, "PyTorch before 2.12 goes one by one (issues 174674, 175585)", device="cuda", fewest=2),
    Rule(Way.HOST, "one by one, and slow (issues 174674, 175585, 183806)", device="cuda"),
    Rule(Way.TORCH, "nothing is known of other devices"),
)
"""The table. With ``where="device"`` the lines that lead to the host are skipped."""


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold SciPy's BLAS to one thread in the whole process, as :attr:`Way.SCIPY` assumes.

    Only one caller at a time may use it, and has to leave it in the thread in which it entered; other threads may
    compute meanwhile. Without SciPy or threadpoolctl nothing is done; a limit that the program has set by
    threadpoolctl in another thread stays.

    Example:
        >>> with one_blas_thread():
        ...     gram_eigenvalues(torch.eye(2)[None], Way.CPU)
        tensor([[1., 1.]])
    """
    with _lapack.one_blas_thread():
        yield


def check_where(where: str) -> None:
    """Raise an error unless the argument is a valid :data:`Where`.

    Args:
        where: the value to check.

    Raises:
        ValueError: the value is not one of :data:`Where`.

    Example:
        >>> check_where("host")
    """
    if where not in get_args(Where):
        raise ValueError(f"Expected argument `where` to be one of {get_args(Where)}, but got {where!r}.")


def problem_of(
    device: torch.device,
    dtype: torch.dtype,
    size: int,
    batch: int,
    *,
    grad: bool = False,
    one_blas_thread: bool = False,
) -> Problem:
    """Describe a problem, together with the running version of PyTorch, as :func:`way_of` needs it.

    Args:
        device: device of the Gram matrices.
        dtype: data type of the Gram matrices.
        size: number of rows of one Gram matrix.
        batch: number of Gram matrices.
        grad: whether a gradient is recorded.
        one_blas_thread: whether the caller holds BLAS to one thread.

    Returns:
        The problem.

    Example:
        >>> problem_of(torch.device("cpu"), torch.float32, 64, 10)[:4]
        ('cpu', torch.float32, 64, 10)
    """
    major, minor = str(torch.__version__).split(".")[:2]
    kind = "rocm" if device.type == "cuda" and torch.version.hip is not None else device.type
    return Problem(kind, dtype, size, batch, (int(major), int(minor)), grad, one_blas_thread)


def way_of(problem: Problem, where: Where = "auto") -> Way:
    """Choose the method for a problem by the table.

    Args:
        problem: description of the Gram matrices.
        where: ``"auto"``: the table; ``"device"``: the table without the host; ``"host"``: the host. Without effect on
            matrices that are on the CPU.

    Returns:
        The method; CuPy's and SciPy's only if these can be imported.

    Raises:
        ValueError: ``where`` is out of range.

    Example:
        >>> problem = Problem("cuda", torch.float32, size=64, batch=500, torch=(2, 13))
        >>> way_of(problem), way_of(problem, "host"), way_of(problem._replace(device="cpu"), "host")
        ('torch', 'host', 'cpu')
    """
    check_where(where)
    if where == "host" and problem.device != "cpu":
        return Way.HOST
    fitting = (rule.way for rule in RULES if rule.holds(problem) and not (where == "device" and rule.way is Way.HOST))
    return next(way for way in fitting if _exists(way))


def _exists(way: Way) -> bool:
    if way is Way.SCIPY:
        return _lapack.available()
    if way is Way.NUMBA:
        return _lapack.has_numba()
    return way is not Way.CUPY or _cupy() is not None


def gram_eigenvalues(upper: Tensor, way: Way) -> Tensor:
    """Compute the eigenvalues of Hermitian matrices, reading their upper triangles only.

    At most :data:`MOST_MATRICES` are handed over at once. Only :attr:`Way.CPU` and :attr:`Way.TORCH` have a
    gradient. The results are not checked here; see :func:`lightning_farms.functional.checked_esd`.

    Args:
        upper: (..., k, k), real or complex, in single or double precision.
        way: the method; not :attr:`Way.SCIPY` or :attr:`Way.NUMBA`, which form the Gram matrices themselves.

    Returns:
        (..., k), real, ascending, in the precision of the matrices and on their device.

    Raises:
        ValueError: the method is :attr:`Way.SCIPY` or :attr:`Way.NUMBA`.
        ImportError: CuPy was asked for and is not installed.
        torch.linalg.LinAlgError: the decomposition does not converge, or CuPy's fails.

    Example:
        >>> gram_eigenvalues(torch.tensor([[[2.0, 1.0], [0.0, 2.0]]]), Way.HOST)
        tensor([[1., 3.]])
    """
    if way is Way.CPU:
        return _by_torch(upper)
    if way.by_scipy:
        raise ValueError("SciPy's way forms the Gram matrices itself: see checked_esd.")
    solve = {Way.TORCH: _by_torch, Way.CUPY: _by_cupy, Way.HOST: _on_host}[way]
    size = upper.shape[-1]
    most = max(1, min(MOST_MATRICES, _MOST_ENTRIES // size**2))
    parts = [solve(part) for part in upper.reshape(-1, size, size).split(most)]
    return torch.cat(parts).reshape(upper.shape[:-1])


def _by_torch(upper: Tensor) -> Tensor:
    """PyTorch's routine, which is LAPACK's on the CPU."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(upper, UPLO="U")
    return eigenvalues


# ---- CuPy ----------------------------------------------------------------------------------------------------------


def _cupy() -> ModuleType | None:
    """CuPy, or None if it is not installed or does not load, for instance because CUDA's libraries are missing."""
    try:
        import cupy
    except Exception:
        return None
    module: ModuleType = cupy
    return module


def _by_cupy(upper: Tensor) -> Tensor:
    """CuPy's routine, which reads torch's memory; sorting copies the result to torch's, so that CuPy's is freed."""
    cupy = _cupy()
    if cupy is None:
        raise ImportError('Eigenvalues by CuPy need the package: pip install "lightning-farms[gpu]"')
    with _current_stream(cupy, upper.device):
        try:
            found = cupy.linalg.eigvalsh(cupy.from_dlpack(upper.detach().contiguous()), UPLO="U")
        except MemoryError:
            raise
        except Exception as error:  # CUSOLVERError and others, which have no common type
            raise DecompositionError(f"CuPy's decomposition failed. {type(error).__name__}: {error}") from error
        return torch.utils.dlpack.from_dlpack(found).sort(-1).values


@contextmanager
def _current_stream(cupy: Any, device: torch.device) -> Iterator[None]:  # noqa: ANN401
    """Let CuPy work on torch's current stream of a device, so that neither has to wait for the other."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.current_stream(device)
    index = stream.device.index
    with cupy.cuda.Device(index), cupy.cuda.ExternalStream(stream.cuda_stream, index):
        yield


# ---- the host ------------------------------------------------------------------------------------------------------


class _Copy(NamedTuple):
    """Matrices on the host, and the event that tells that they have arrived."""

    matrices: Tensor
    arrived: torch.cuda.Event | None

    def decomposed(self, size: int) -> Tensor:
        """The largest ``size`` eigenvalues of each matrix."""
        if self.arrived is not None:
            self.arrived.synchronize()  # waits for this copy only, and without the interpreter's lock
        return _by_torch(self.matrices)[..., -size:]


def _on_host(upper: Tensor) -> Tensor:
    """LAPACK on the host, slice by slice: while one is decomposed, the next is copied and the device goes on."""
    size = upper.shape[-1]
    most = max(1, _HOST_BYTES // (size**2 * upper.element_size()))
    waiting: deque[_Copy] = deque()
    found: list[Tensor] = []
    with torch.cuda.device(upper.device) if upper.device.type == "cuda" else nullcontext():
        for part in upper.detach().split(most):
            waiting.append(_copied(part))
            if len(waiting) > 1:
                found.append(waiting.popleft().decomposed(size))
        found += [each.decomposed(size) for each in waiting]
        return _back(torch.cat(found), upper.device)


def _copied(matrices: Tensor) -> _Copy:
    """Start a copy to pinned memory on the current stream, padded with zeros like the CPU's matrices."""
    above = -matrices.shape[-1] % PADDED_TO
    if above:
        matrices = torch.nn.functional.pad(matrices, (above, 0, above, 0))
    if matrices.device.type != "cuda":
        return _Copy(matrices.to("cpu"), None)
    pinned = torch.empty(matrices.shape, dtype=matrices.dtype, device="cpu", pin_memory=True)
    pinned.copy_(matrices, non_blocking=True)
    arrived = torch.cuda.Event(blocking=True)  # a waiting thread leaves its core to others
    arrived.record(torch.cuda.current_stream(matrices.device))
    return _Copy(pinned, arrived)


def _back(eigenvalues: Tensor, device: torch.device) -> Tensor:
    """Move the eigenvalues to the device without waiting for it."""
    if device.type != "cuda":
        return eigenvalues.to(device)
    return eigenvalues.pin_memory().to(device, non_blocking=True)
