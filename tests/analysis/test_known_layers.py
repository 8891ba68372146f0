"""Frozen weights are decomposed once, and again as soon as a bit of them has changed, by whatever way."""

import pytest
import torch
from torch import nn

from lightning_farms import analyze
from lightning_farms.analysis import FARMS, Diagnostics, KnownLayers, WholeMatrix
from lightning_farms.analysis._engine.fingerprint import fingerprints, sums_of_bits


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 32)).requires_grad_(False)


def test_frozen_layers_are_decomposed_once(decomposed):
    model, known = net(), KnownLayers()
    model[1].requires_grad_(True)
    first = analyze(model, known=known)
    before = sum(decomposed)
    decomposed.clear()
    assert list(analyze(model, known=known)) == list(first) == list(analyze(model))
    assert len(known) == 1
    assert 0 < sum(decomposed) - before < before  # without anything known all, with it the trained one


def by_data(weight):
    weight.data[3, 5] += 0.5


def by_memory(weight):
    weight.detach().numpy()[0, 0] = 2.0


def by_storage(weight):
    weight.untyped_storage()[17] ^= 1


def by_signs(weight):
    weight.data[:2, :2].neg_()


def by_exchange(weight):
    weight.data[[0, 1]] = weight.data[[1, 0]]


def by_replacement(weight):
    weight.data = weight.data.t().contiguous()


WRITES = [by_data, by_memory, by_storage, by_signs, by_exchange, by_replacement]


@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_noticed(write, decomposed):
    model, known = net(), KnownLayers()
    analyze(model, known=known)
    decomposed.clear()
    write(model[0].weight)
    found = analyze(model, known=known)
    assert decomposed
    assert list(found) == list(analyze(model))


@pytest.mark.parametrize("write", WRITES[:-1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_sums_of_bits_tell_weights_apart(write, dtype):
    weight = torch.randn(1, 48, 48, dtype=torch.float32).to(dtype)
    before, copy = sums_of_bits(weight), weight.clone()
    assert sums_of_bits(copy).equal(before)
    if write is by_memory:
        copy[0, 0, 0] += 1
    else:
        write(copy[0])
    assert not (sums_of_bits(copy) == before).any()


def test_sums_of_bits_are_those_of_integers():
    """Against Python's integers, in parts and over rows that do not fit into one."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, 5, generator=generator)

    def noise(index, seed):
        mask = 2**64 - 1
        signed = lambda x: x - 2**64 if x >= 2**63 else x  # noqa: E731
        x = ((index + 1) * 0x9E3779B97F4A7C15 + seed) & mask
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = ((x ^ (signed(x) >> shift) & mask) * factor) & mask
        return x ^ (signed(x) >> 31) & mask

    rows = weight.flatten(0, 1).view(torch.int32).tolist()
    for seed, found in zip((0x243F6A8885A308D3, 0x13198A2E03707344), sums_of_bits(weight).tolist(), strict=True):
        expected = sum(noise(i, seed) * noise(j, ~seed) * x for i, row in enumerate(rows) for j, x in enumerate(row))
        assert found % 2**64 == expected % 2**64


def test_a_layout_in_memory_is_not_a_value():
    weight = torch.randn(1, 6, 8)
    turned = weight.mT.contiguous().mT
    assert fingerprints({0: weight}) == fingerprints({0: turned})
    assert sums_of_bits(weight).equal(sums_of_bits(turned))


@pytest.mark.parametrize(
    "other",
    [{"method": WholeMatrix()}, {"diagnostics": Diagnostics(marchenko_pastur=True)}, {"keep_eigenvalues": True}],
)
def test_another_question_is_answered_anew(other, decomposed):
    model, known = net(), KnownLayers()
    analyze(model, FARMS(), known=known)
    decomposed.clear()
    found = analyze(model, known=known, **other)
    assert decomposed
    assert list(found) == list(analyze(model, **other))


def test_eigenvalues_are_kept_where_they_are_asked_for(decomposed):
    model, known = net(), KnownLayers()
    first = analyze(model, known=known, keep_eigenvalues=True)
    decomposed.clear()
    again = analyze(model, known=known, keep_eigenvalues=True)
    assert not decomposed
    assert all(a.eigenvalues.equal(b.eigenvalues) for a, b in zip(first, again, strict=True))


def test_a_failure_is_not_kept(monkeypatch):
    model, known = net(), KnownLayers()
    model[0].weight.data[0, 0] = torch.nan
    assert analyze(model, known=known)["0"].status == "skipped"
    assert len(known) == 1
    model[0].weight.data[0, 0] = 0.0
    assert analyze(model, known=known)["0"].status == "ok"


def test_where_nothing_can_be_recognised_all_is_decomposed(monkeypatch):
    model, known = net(), KnownLayers()
    monkeypatch.setattr("hashlib.sha256", lambda data: 1 / 0)
    assert list(analyze(model, known=known)) == list(analyze(model))
    assert len(known) == 0
