"""Spectra of many layers at once: the same bit for bit however the work is cut and shared; what fails; memory."""

import threading
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_farms.analysis import (
    FARMS,
    Diagnostics,
    LayerWeight,
    Selection,
    WholeMatrix,
    analyze,
    analyze_weights,
)
from lightning_farms.analysis._engine import decompose as decomposing
from lightning_farms.analysis._engine.decompose import decompose as decompose_by_groups
from lightning_farms.analysis._engine.plan import plan_layer
from lightning_farms.functional import _lapack, eigensolvers
from lightning_farms.functional.eigensolvers import Rule, Way
from lightning_farms.functional.spectrum import checked_esds

GIB = 2**30
BY_PYTORCH = (Rule(Way.CPU, "for a test"),)
ODD_SHAPES = [(7, 20), (11, 13), (13, 13), (16, 16), (33, 31), (31, 33), (65, 64), (100, 33), (33, 100), (129, 128)]


def outcomes(plans, **options):
    """Of all layers, in their order."""
    found = {key: each for group in decompose_by_groups(plans, **options) for key, each in group.items()}
    return {key: found[key] for key in plans}


def decompose(plans, **options):
    """Eigenvalues of the layers that were decomposed."""
    found = outcomes(plans, **options)
    return {key: each.eigenvalues for key, each in found.items() if not isinstance(each, Exception)}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def plan_of(*shape, method=FARMS(), dtype=torch.float32):
    matrices = torch.randn(*shape, dtype=dtype)
    return plan_layer(LayerWeight("w", "linear", shape[1:], matrices, ()), method)


def plans_of_all_kinds(method=FARMS()):
    plans = [plan_of(2, *shape, method=method) for shape in ODD_SHAPES]
    plans += [plan_of(1, 33, 33, method=method, dtype=torch.bfloat16), plan_of(5, 16, 32, method=method)]
    plans += [plan_of(2, 16, 16, method=method, dtype=torch.complex64)]
    plans += [plan_of(2, 16, 16, method=method, dtype=torch.float64)]
    return dict(enumerate(plans))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("method", [FARMS(), FARMS(2.0, 7, 4), WholeMatrix()])
def test_spectra_are_those_of_numpy_in_the_order_of_the_windows(method, quick):
    plans = plans_of_all_kinds(method)
    spectra = decompose(plans, quick=quick, workspace=GIB, workers=2)
    assert list(spectra) == list(plans)
    for key, plan in plans.items():
        matrices = plan.matrices
        height, width, row_starts, column_starts, _ = plan.windows
        values = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64).numpy()
        windows = [values[:, r : r + height, c : c + width] for r in row_starts for c in column_starts]
        expected = np.linalg.svd(np.stack(windows), compute_uv=False)[..., ::-1] ** 2
        assert spectra[key].dtype == torch.float64
        tolerance = 1e-5 * expected.max() if quick else 1e-12 * expected.max()
        np.testing.assert_allclose(spectra[key].numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("method", [FARMS(), WholeMatrix()])
def test_same_bits_however_the_work_is_shared(method, quick):
    plans = plans_of_all_kinds(method)
    expected = decompose(plans, quick=quick, workspace=GIB, workers=1)
    for workers in (1, 2, 3):
        for workspace in (1, 20_000, 300_000, GIB):
            got = decompose(plans, quick=quick, workspace=workspace, workers=workers)
            for key, values in expected.items():
                assert got[key].equal(values), (workers, workspace, key)


@pytest.mark.parametrize("quick", [False, True])
def test_same_bits_alone_as_together(quick):
    plans = plans_of_all_kinds()
    together = decompose(plans, quick=quick, workspace=GIB, workers=2)
    for key, plan in plans.items():
        alone = decompose({key: plan}, quick=quick, workspace=GIB, workers=2)
        assert alone[key].equal(together[key]), (key, plan.matrices.dtype, plan.matrices.shape)


@pytest.mark.parametrize("quick", [False, True])
def test_same_bits_for_any_storage(quick):
    """A weight may be a view into a larger tensor, or a transposed one, or lie off the boundary of 16 bytes."""
    for shape in ODD_SHAPES:
        plan = plan_of(2, *shape)
        (expected,) = decompose({0: plan}, quick=quick, workspace=GIB, workers=1).values()
        buffer = torch.zeros(2, shape[0] + 3, shape[1] + 5)
        buffer[:, 1:-2, 3:-2] = plan.matrices
        stored = torch.empty(shape[1], shape[0], 2)
        stored.copy_(plan.matrices.permute(2, 1, 0))
        flat = torch.cat([torch.zeros(1), plan.matrices.flatten()])
        for matrices in (buffer[:, 1:-2, 3:-2], stored.permute(2, 1, 0), flat[1:].view_as(plan.matrices)):
            (got,) = decompose({0: plan._replace(matrices=matrices)}, quick=quick, workspace=GIB, workers=1).values()
            assert got.equal(expected), shape


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(10, 40), st.integers(10, 40), st.sampled_from([1, 3])), min_size=1, max_size=5),
    st.data(),
)
def test_a_row_does_not_depend_on_the_other_layers(shapes, data):
    modules = [nn.Linear(m, n) if kernel == 1 else nn.Conv1d(m, n, kernel) for m, n, kernel in shapes]
    model = nn.Sequential(*modules)
    report = analyze(model, workers=data.draw(st.integers(1, 3)))
    chosen = data.draw(st.lists(st.sampled_from(range(len(modules))), min_size=1, unique=True))
    part = analyze(
        model, selection=Selection(include=tuple(map(str, chosen))), workspace=data.draw(st.integers(1, 10**6))
    )
    for index in chosen:
        assert part[str(index)] == report[str(index)]


@pytest.fixture
def live(monkeypatch):
    """Bytes of the Gram matrices that are decomposed at one time, the most of them, and the calls."""
    lock, state = threading.Lock(), {"now": 0, "most": 0, "calls": 0}
    eigvalsh = torch.linalg.eigvalsh

    def counted(matrices, **options):
        needed = matrices.numel() * matrices.element_size()
        with lock:
            state["now"] += needed
            state["calls"] += 1
            state["most"] = max(state["most"], state["now"])
        try:
            return eigvalsh(matrices, **options)
        finally:
            with lock:
                state["now"] -= needed

    monkeypatch.setattr(torch.linalg, "eigvalsh", counted)
    return state


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("quick", [False, True])
def test_workspace_bounds_what_is_copied_at_one_time(live, quick, workers):
    plans = {i: plan_of(9, 32, 64) for i in range(12)}
    total = sum(plan.matrices.numel() * 4 for plan in plans.values())
    decompose(plans, quick=quick, workspace=GIB, workers=workers)
    calls = live["calls"]
    live.update(most=0, calls=0)
    workspace = total // 6
    decompose(plans, quick=quick, workspace=workspace, workers=workers)
    assert live["most"] <= workspace
    assert live["calls"] >= calls
    live.update(most=0, calls=0)
    decompose(plans, quick=quick, workspace=1, workers=workers)
    assert live["most"] == 32 * 32 * (4 if quick else 8)  # one window at a time, though it needs more
    assert live["calls"] == 12 * 9 * 2
    assert live["now"] == 0


class Allocated(TorchDispatchMode):
    """Most bytes at one time of the tensors that are made within it, by this thread."""

    def __init__(self):
        super().__init__()
        self.most, self._bytes = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        def storages(values):
            return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]

        result = function(*args, **(kwargs or {}))
        known = {storage.data_ptr() for storage in storages((args, kwargs))} | set(self._bytes)
        for storage in storages(result):
            address = storage.data_ptr()
            if address and address not in known:
                self._bytes[address] = storage.nbytes()
                weakref.finalize(storage, self._bytes.pop, address, None)
        self.most = max(self.most, sum(self._bytes.values()))
        return result


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_workspace_bounds_all_copies_gram_matrices_and_decompositions(dtype, quick):
    plans = {i: plan_of(1, 33, 200, method=WholeMatrix(), dtype=dtype) for i in range(900)}
    workspace = 40 * plans[0].matrices.nbytes
    with Allocated() as allocated:
        spectra = decompose(plans, quick=quick, workspace=workspace, workers=1).values()
    assert 0.8 * workspace < allocated.most <= workspace + 3 * sum(each.nbytes for each in spectra)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_workspace_bounds_what_is_worked_on_one_by_one(dtype, interleaved):
    plan = plan_of(30, 260, 270, method=WholeMatrix(), dtype=dtype)
    if interleaved:
        apart = plan.matrices.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        plan = plan._replace(matrices=apart)
    workspace = 20 * plan.matrices.numel() // 30 * 4
    with Allocated() as allocated:
        (spectra,) = outcomes({0: plan}, quick=True, workspace=workspace, workers=1).values()
    assert spectra.way is Way.NUMBA
    assert allocated.most <= workspace + 3 * spectra.eigenvalues.nbytes
    (expected,) = outcomes({0: plan}, quick=True, workspace=GIB, workers=3).values()
    assert spectra.eigenvalues.equal(expected.eigenvalues)


def fails_on(predicate, exception, monkeypatch):
    """Have the decomposition of Gram matrices fail."""
    eigvalsh = torch.linalg.eigvalsh

    def failing(matrices, **options):
        if predicate(matrices):
            raise exception
        return eigvalsh(matrices, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", failing)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_layer_that_fails_is_missing_and_the_others_are_there(monkeypatch, workers):
    plans = {i: plan_of(1, 16, 16) for i in range(80)}  # several share a job
    expected = decompose(plans, quick=True, workspace=GIB, workers=workers)
    plans[3].matrices[0, 0, 0] = 1e6
    fails_on(lambda matrices: matrices.abs().amax() > 1e10, torch.linalg.LinAlgError("no"), monkeypatch)
    got = decompose(plans, quick=True, workspace=GIB, workers=workers)
    assert sorted(got) == [i for i in range(80) if i != 3]
    for key, values in got.items():
        assert values.equal(expected[key])


def test_a_layer_of_which_one_window_fails_is_missing(monkeypatch):
    plans = {0: plan_of(1, 16, 64), 1: plan_of(1, 16, 64)}
    plans[0].matrices[0, 0, 63] = 1e6
    fails_on(lambda matrices: matrices.abs().amax() > 1e10, torch.linalg.LinAlgError("no"), monkeypatch)
    assert list(decompose(plans, quick=False, workspace=1, workers=1)) == [1]


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("workers", [1, 2])
def test_other_errors_cost_their_layer_and_the_threads_are_given_back(monkeypatch, workers):
    plans = {i: plan_of(1, 40 + i, 40) for i in range(6)}
    plans[0].matrices[0, 0, 0] = 1e6
    fails_on(lambda matrices: matrices.abs().amax() > 1e10, RuntimeError("out of memory"), monkeypatch)
    running = threading.active_count()
    got = outcomes(plans, quick=True, workspace=30_000, workers=workers)
    assert str(got.pop(0)) == "out of memory"
    assert sorted(got) == [1, 2, 3, 4, 5]
    assert not any(isinstance(each, Exception) for each in got.values())
    assert torch.get_num_threads() == 3
    assert threading.active_count() == running


def test_float32_overflow_of_one_layer_spoils_no_other():
    """Their windows share a job, and a Gram matrix of 1e40 is infinite in float32."""
    weights = [LayerWeight(str(i), "linear", (20, 20), torch.randn(1, 20, 20), ()) for i in range(4)]
    weights[2] = weights[2]._replace(matrices=weights[2].matrices * 1e25)
    report = analyze_weights(weights)
    for weight in weights:
        assert list(analyze_weights([weight])) == [report[weight.name]]
        assert report[weight.name].status == "ok"


def test_nothing_to_do():
    assert decompose({}, quick=True, workspace=1, workers=2) == {}


def test_a_worker_keeps_its_one_thread_when_another_thread_sets_more(monkeypatch):
    """It is set before a worker first asks for the number, in a parallel operation: its job begins with autocast."""
    found, started, changed, autocast = [], threading.Event(), threading.Event(), torch.autocast

    def late(*args, **options):
        if threading.current_thread().name.startswith("spectra"):
            started.set()
            changed.wait(10)
            found.append(torch.get_num_threads())
        return autocast(*args, **options)

    def set_more():
        started.wait(10)
        torch.set_num_threads(3)
        changed.set()

    monkeypatch.setattr(torch, "autocast", late)
    monkeypatch.setattr(eigensolvers, "RULES", BY_PYTORCH)
    before = torch.get_num_threads()
    thread = threading.Thread(target=set_more)
    thread.start()
    decompose({i: plan_of(1, 100, 100) for i in range(2)}, quick=True, workspace=GIB, workers=2)
    thread.join()
    torch.set_num_threads(before)
    assert found == [1, 1]


def test_all_workers_decompose_a_large_window_together(monkeypatch):
    """A circulant matrix has the squared Fourier coefficients of its first row as eigenvalues of its Gram matrix."""
    assert not decomposing._for_all_workers(Way.CPU, 2048)
    assert decomposing._for_all_workers(Way.CPU, 2049)
    monkeypatch.setattr(decomposing, "_SIDE_BY_SIDE", 250)
    monkeypatch.setattr(eigensolvers, "RULES", BY_PYTORCH)
    row = torch.randn(252)
    circulant = row[(torch.arange(252) - torch.arange(252)[:, None]) % 252]
    large = plan_layer(LayerWeight("w", "linear", (252, 252), circulant[None], ()), WholeMatrix())
    plans = {0: plan_of(1, 60, 60), 1: large, 2: plan_of(1, 60, 60)}
    threads, eigvalsh = {}, torch.linalg.eigvalsh

    def noted(matrices, **options):
        threads.setdefault(matrices.shape[-1], set()).add(torch.get_num_threads())
        return eigvalsh(matrices, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", noted)
    before = torch.get_num_threads()
    together = [decompose(plans, quick=True, workspace=GIB, workers=2) for _ in range(2)]
    assert threads == {60: {1}, 252: {2}}
    assert torch.get_num_threads() == before
    alone = decompose({1: large}, quick=True, workspace=GIB, workers=2)
    by_one = decompose(plans, quick=True, workspace=GIB, workers=1)
    assert threads == {60: {1}, 252: {1, 2}}
    expected = np.sort(np.abs(np.fft.fft(row.double().numpy())) ** 2)
    for spectra in (*together, by_one):
        np.testing.assert_allclose(spectra[1].flatten().numpy(), expected, rtol=0, atol=1e-5 * expected.max())
        assert spectra[0].equal(by_one[0])
    assert together[0][1].equal(together[1][1])
    assert together[0][1].equal(alone[1])


def test_after_an_error_no_further_job_is_begun(monkeypatch):
    """Ctrl-C arrives in the thread that waits for the results: what is queued must not be computed first."""
    begun, failed = [], threading.Event()

    def interrupted(matrices, **options):
        begun.append(matrices.shape)
        if matrices.shape[-1] == 184:
            failed.set()
            raise KeyboardInterrupt
        failed.wait(10)
        time.sleep(0.05)
        return torch.zeros(matrices.shape[:-1])

    monkeypatch.setattr(torch.linalg, "eigvalsh", interrupted)
    monkeypatch.setattr(eigensolvers, "RULES", BY_PYTORCH)
    plans = {i: plan_of(1, 184 - 4 * i, 184 - 4 * i) for i in range(40)}
    with pytest.raises(KeyboardInterrupt):
        decompose(plans, quick=True, workspace=GIB, workers=2)
    assert len(begun) < 10


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_half_precision_complex_numbers_are_analysed_as_single():
    half = torch.randn(1, 16, 16, dtype=torch.complex64).to(torch.complex32)
    reports = [
        list(
            analyze_weights([LayerWeight("w", "parameter", (16, 16), matrices, ())], diagnostics=Diagnostics(twin=True))
        )
        for matrices in (half, half.to(torch.complex64))
    ]
    assert reports[0] == reports[1]
    assert reports[0][0].status == "ok"


def test_groups_come_while_others_are_decomposed_the_dearest_first(monkeypatch):
    looked_at, waited = threading.Event(), []

    def waiting(pieces, **options):
        if pieces[0].shape[-1] == 20:
            waited.append(looked_at.wait(10))
        return checked_esds(pieces, **options)

    monkeypatch.setattr(decomposing, "checked_esds", waiting)
    plans = {0: plan_of(1, 20, 20), 1: plan_of(1, 100, 100), 2: plan_of(1, 20, 20), 3: plan_of(1, 100, 100)}
    keys = []
    for group in decompose_by_groups(plans, quick=True, workspace=GIB, workers=2):
        keys.append(sorted(group))
        looked_at.set()
    assert keys == [[1, 3], [0, 2]]
    assert waited
    assert all(waited)


@pytest.mark.usefixtures("three_threads")
def test_who_stops_between_groups_gets_the_threads_back():
    plans = {0: plan_of(1, 20, 20), 1: plan_of(1, 100, 100)}
    running = threading.active_count()
    groups = decompose_by_groups(plans, quick=True, workspace=GIB, workers=2)
    next(groups)
    groups.close()
    assert torch.get_num_threads() == 3
    assert threading.active_count() == running
    assert sorted(decompose(plans, quick=True, workspace=GIB, workers=2)) == [0, 1]


def test_windows_share_calls_where_many_at_once_are_cheaper(monkeypatch):
    """Each worker has one call, and no call has more windows than go together."""
    calls, gram_spectra = [], _lapack.gram_spectra

    def noted(batches, *args, **options):
        calls.append(sum(map(len, batches)))
        return gram_spectra(batches, *args, **options)

    monkeypatch.setattr(decomposing, "_CHEAPEST_JOB", 1.0)
    monkeypatch.setattr(_lapack, "gram_spectra", noted)
    for count, workers, expected in ((12, 1, [12]), (13, 2, [6, 7]), (3, 4, [1, 1, 1]), (40, 1, [8, 16, 16])):
        plans = {i: plan_of(1, 96, 96) for i in range(count)}
        spectra = decompose(plans, quick=True, workspace=GIB, workers=workers)
        assert sorted(calls) == expected
        assert all(spectra[i].equal(decompose({i: plans[i]}, quick=True, workspace=1, workers=1)[i]) for i in plans)
        calls.clear()
