"""Ranks as threads of one process, with a sum that waits for all: equal rows on every rank, and never a hang."""

import threading
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_farms.analysis import FARMS, Diagnostics, Ranks, Selection, WholeMatrix, analyze
from lightning_farms.analysis.ranks import owners

PATIENCE = 20.0  # seconds after which a rank that waits for another is taken to hang
RANK = threading.local()
EVERYTHING = Diagnostics(bootstrap=4, p_value=4, marchenko_pastur=True, twin=True)


def on_ranks(world_size, function):
    """What each rank's call returns or raises; the sum is a barrier that all have to reach."""
    barrier = threading.Barrier(world_size, timeout=PATIENCE)
    parts, results = [None] * world_size, [None] * world_size

    def run(rank):
        def collective_sum(tensor):
            assert (tensor.dtype, tensor.device.type) == (torch.float64, "cpu")
            parts[rank] = tensor.clone()
            barrier.wait()
            total = torch.stack(parts).sum(0)
            barrier.wait()
            return total

        RANK.number = rank
        try:
            results[rank] = function(Ranks(rank, world_size, collective_sum))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def reports_on_ranks(world_size, function):
    results = on_ranks(world_size, function)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(30, 60),
        nn.Conv2d(12, 24, 3),
        nn.Linear(3, 3),
        nn.Linear(30, 30),
        nn.Linear(50, 20).bfloat16(),
        nn.LSTM(16, 24),
        nn.Linear(30, 30, device="meta"),
        nn.Linear(24, 24),
    )
    net[7].weight.data[0, 0] = torch.nan
    return net


@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"diagnostics": EVERYTHING, "workers": 1},
        {"workspace": 1},
        {"method": WholeMatrix(fit="ks")},
        {"method": FARMS(1.0, 10, 3, compat="official")},
        {"selection": Selection(exclude=("0",))},
    ],
)
def test_rows_are_those_of_one_process(model, world_size, options):
    expected = list(analyze(model, **options))
    assert {row.status for row in expected} == {"ok", "skipped"}
    for report in reports_on_ranks(world_size, lambda ranks: analyze(model, ranks=ranks, **options)):
        assert list(report) == expected


def test_change_since_a_base(model):
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(30, 60), nn.Conv2d(12, 24, 3), nn.Linear(3, 3), nn.Linear(20, 30))
    expected = list(analyze(model, base=base))
    for report in reports_on_ranks(2, lambda ranks: analyze(model, base=base, ranks=ranks)):
        assert list(report) == expected


class Moody(nn.Module):
    """Cannot be read on rank 1: at all, or one of its two weights."""

    def __init__(self, at_all):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(20, 20)), nn.Parameter(torch.randn(20, 20))
        self.at_all = at_all

    def spectral_weights(self):
        bad = RANK.number == 1
        if bad and self.at_all:
            raise MemoryError("no room")
        yield "a", self.a.to(torch.int32) if bad else self.a, (self.a,)
        yield "b", self.b, (self.b,)


def test_a_weight_that_one_rank_cannot_read_is_skipped_on_all():
    model = nn.Sequential(nn.Linear(30, 60), Moody(at_all=False))
    first, second = reports_on_ranks(2, lambda ranks: analyze(model, ranks=ranks))
    assert [(row.name, row.status, row.alpha) for row in first if row.name != "1.a"] == [
        (row.name, row.status, row.alpha) for row in second if row.name != "1.a"
    ]
    for report in (first, second):
        assert report["1.a"].reason == "the weight could not be read on every rank"
        assert report["0"].status == report["1.b"].status == "ok"


def test_ranks_that_find_other_layers_all_say_so():
    model = nn.Sequential(nn.Linear(30, 60), Moody(at_all=True))
    for result in on_ranks(2, lambda ranks: analyze(model, ranks=ranks)):
        assert isinstance(result, RuntimeError)
        assert "find the same layers, but they differ" in str(result)


@pytest.fixture
def decomposed(monkeypatch):
    """Traces of the matrices that each rank decomposes, by which they are known; rank None is no rank."""
    found, eigvalsh = {rank: set() for rank in (None, 0, 1, 2)}, torch.linalg.eigvalsh

    def recorded(matrices, **options):
        found[RANK.number] |= set(matrices.diagonal(dim1=-2, dim2=-1).sum(-1).flatten().tolist())
        return eigvalsh(matrices, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", recorded)
    RANK.number = None
    return found


def fails_on(rank, error, monkeypatch, name="eigvalsh"):
    """Have every decomposition of one rank fail."""
    eigvalsh = getattr(torch.linalg, name)

    def failing(matrices, **options):
        if RANK.number == rank:
            raise error
        return eigvalsh(matrices, **options)

    monkeypatch.setattr(torch.linalg, name, failing)


def test_work_is_shared(model, decomposed):
    analyze(model, workers=1)
    reports_on_ranks(2, lambda ranks: analyze(model, ranks=ranks, workers=1))
    assert decomposed[0]
    assert decomposed[1]
    assert not decomposed[0] & decomposed[1]
    assert decomposed[0] | decomposed[1] == decomposed[None]


@pytest.mark.parametrize("world_size", [1, 3])
def test_eigenvalues_are_those_of_rank_zero(model, world_size):
    expected = analyze(model, keep_eigenvalues=True)
    first, *others = reports_on_ranks(world_size, lambda ranks: analyze(model, keep_eigenvalues=True, ranks=ranks))
    for row in expected:
        assert first[row.name] == row
        if row.status == "ok":
            assert first[row.name].eigenvalues.equal(row.eigenvalues)
    for other in others:
        assert list(other) == list(expected)
        assert all(row.eigenvalues is None for row in other)


@pytest.mark.parametrize("action", ["always", "error"])
def test_an_analysis_that_raises_on_one_rank_is_a_reason_on_all(model, monkeypatch, decomposed, action):
    """Also where warnings are errors: the rank that warns must have reached the sum."""
    reports_on_ranks(3, lambda ranks: analyze(model, ranks=ranks, workers=1))
    expected = {row.name: row for row in analyze(model, workers=1)}
    names = set()  # of the layers of rank 1
    for name in expected:
        decomposed[None].clear()
        analyze(model, selection=Selection(include=(name,)), workers=1)
        if decomposed[None] & decomposed[1]:
            names.add(name)
    assert names
    fails_on(1, RuntimeError("out of memory"), monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        results = on_ranks(3, lambda ranks: analyze(model, ranks=ranks, workers=1))
    if action == "error":
        assert isinstance(results.pop(1), UserWarning)
    else:
        assert [str(w.message) for w in caught] == ["The analysis failed on this rank: RuntimeError: out of memory"]
    for report in results:
        broken = [row for row in report if row.reason.startswith("out of memory; ")]
        assert {row.name for row in broken if expected[row.name].status == "ok"} == names
        assert {row.status for row in broken} == {"skipped"}
        for row in report:
            assert row in broken or row == expected[row.name]
        assert any(row.status == "ok" for row in report)


def test_a_decomposition_that_fails_on_one_rank_is_a_reason_on_all(model, monkeypatch):
    expected = {row.name: row for row in analyze(model)}
    fails_on(0, torch.linalg.LinAlgError("did not converge"), monkeypatch)
    fails_on(0, torch.linalg.LinAlgError("did not converge"), monkeypatch, "svdvals")
    first, second = reports_on_ranks(2, lambda ranks: analyze(model, ranks=ranks, workers=1))
    assert list(first) == list(second)
    failed = [row.name for row in first if row.reason == "the eigenvalue decomposition failed"]
    assert failed
    for row in first:
        if row.name not in failed:
            assert row == expected[row.name]


def test_arguments_are_checked_before_any_rank_waits(model):
    for result in on_ranks(2, lambda ranks: analyze(model, ranks=ranks, workspace=0)):
        assert isinstance(result, ValueError)
    for result in on_ranks(2, lambda ranks: analyze(model, ranks=ranks, selection=Selection(include=("haed",)))):
        assert isinstance(result, ValueError)


def test_equal_costs_are_shared_by_name():
    assert owners({"b": 1.0, "c": 1.0, "a": 1.0}, 2) == {"a": 0, "b": 1, "c": 0}


COSTS = st.dictionaries(st.text(max_size=3), st.floats(0.0, 1e12), max_size=12)


@settings(max_examples=50, deadline=None)
@given(COSTS, st.integers(1, 5))
def test_every_layer_has_one_owner_whatever_the_order(costs, world_size):
    found = owners(costs, world_size)
    assert found.keys() == costs.keys()
    assert set(found.values()) <= set(range(world_size))
    assert owners(dict(reversed(costs.items())), world_size) == found


@settings(max_examples=50, deadline=None)
@given(COSTS, st.integers(1, 5))
def test_no_rank_has_much_more_than_its_share(costs, world_size):
    found = owners(costs, world_size)
    load = [sum(cost for name, cost in costs.items() if found[name] == rank) for rank in range(world_size)]
    at_least = max(sum(costs.values()) / world_size, max(costs.values(), default=0.0))
    # what was given last to the fullest rank was no more than all that others had, and no dearer than the dearest
    assert (
        max(load) <= sum(costs.values()) / world_size + max(costs.values(), default=0.0) * (1 - 1 / world_size) + 1e-3
    )
    assert max(load) >= at_least * (1 - 1e-12)
