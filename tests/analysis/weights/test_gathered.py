"""Sharded weights (FSDP2, tensor parallelism) are gathered one module at a time and put back."""

import gc

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from torch.nn.utils import parametrizations, prune

from lightning_farms.analysis import Selection, layer_weights, parameter_layers
from tests.analysis.weights.sharded_run import SELECTION, make_model
from tests.forked import run_forked


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.fixture
def gathered(monkeypatch):
    """Shapes of what was gathered."""
    shapes = []
    original = DTensor.full_tensor

    def full_tensor(self, **options):
        shapes.append(tuple(self.shape))
        return original(self, **options)

    monkeypatch.setattr(DTensor, "full_tensor", full_tensor)
    return shapes


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(6, 5)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})


class ProductOfChildren(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False)

    def spectral_weights(self):
        yield "product", self.second.weight @ self.first.weight, (self.first.weight, self.second.weight)


MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)),
    "convolution": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "recurrent": lambda: nn.LSTM(4, 3, num_layers=2),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(6, 5)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 5)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(6, 5), "weight", 0.5),
    "low rank": LowRank,
    "children": ProductOfChildren,
    "complex": lambda: nn.ParameterDict({"w": nn.Parameter(torch.randn(3, 4, 5, dtype=torch.complex64))}),
}


@pytest.mark.parametrize("name", MODELS)
def test_sharded_weights_are_those_of_the_plain_model(name, mesh):
    model = MODELS[name]()
    selection = Selection(low_rank_products=True)
    expected = [(w.name, w.kind, w.shape, w.reason, w.matrices.clone()) for w in layer_weights(model, selection)]
    names = {p: n for n, p in model.named_parameters()}
    owners = {names[p]: layer for p, layer in parameter_layers(model).items()}
    fully_shard(model, mesh=mesh)
    sharded = dict(model.named_parameters())
    assert all(isinstance(p, DTensor) for p in sharded.values())
    found = list(layer_weights(model, selection))
    assert [(w.name, w.kind, w.shape, w.reason) for w in found] == [row[:4] for row in expected]
    for weight, (*_, matrices) in zip(found, expected, strict=True):
        assert type(weight.matrices) is torch.Tensor
        torch.testing.assert_close(weight.matrices, matrices, rtol=0, atol=0)
        assert all(any(p is own for own in sharded.values()) for p in weight.parameters)
    for weight, row in zip(layer_weights(model, selection, values=False), found, strict=True):
        assert weight.matrices.is_meta
        assert weight.matrices.shape == row.matrices.shape
        assert (weight.name, weight.shape, weight.reason) == (row.name, row.shape, row.reason)
    assert {n: parameter_layers(model)[p] for n, p in sharded.items() if p in parameter_layers(model)} == owners
    assert all(p is sharded[n] for n, p in model.named_parameters())


def test_nothing_is_gathered_for_shapes_or_for_what_is_left_out(mesh, gathered):
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 6), nn.Linear(6, 4), nn.LayerNorm(4))
    fully_shard(model, mesh=mesh)
    list(layer_weights(model, values=False))
    parameter_layers(model)
    assert gathered == []
    list(layer_weights(model, Selection(exclude=("1",))))
    assert gathered == [(4, 6), (4,)]


@pytest.fixture
def without_what_was_there():
    """A function that lets the garbage collector, and what it lists, pass over all objects that are there."""
    yield gc.freeze
    gc.unfreeze()


def test_one_modules_full_tensors_at_a_time(mesh, monkeypatch, without_what_was_there):
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)), nn.LSTM(16, 16, bias=False))
    fully_shard(model, mesh=mesh)

    def storages():
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) is nn.Parameter or type(o) is torch.Tensor]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.device.type == "cpu"}

    before = storages()
    without_what_was_there()  # a million objects to look through
    held = []

    def full_tensor(self):
        held.append(len(storages() - before))
        return self.to_local().clone()  # in one process a shard is the whole: a copy tells them apart

    monkeypatch.setattr(DTensor, "full_tensor", full_tensor)
    weights = layer_weights(model)
    for index in range(4):
        weight = next(weights)
        assert weight.name == str(index)
        assert len(storages() - before) == 1
        del weight
    names = [weight.name for weight in weights]
    assert names == [f"4.weight_{side}_l0.{gate}" for side in ("ih", "hh") for gate in "ifgo"]
    assert held == [0, 0, 0, 0, 0, 1]  # nothing of the module before; the last module has two
    assert storages() - before == set()


def test_everything_is_put_back_after_an_error(mesh):
    class Failing(nn.Linear):
        def spectral_weights(self):
            if self.weight.is_meta:
                raise RuntimeError("no values, no weight")
            raise ValueError("not today")

    model = nn.Sequential(Failing(4, 4), nn.Linear(4, 4))
    fully_shard(model, mesh=mesh)
    before = dict(model.named_parameters())
    failed, good = layer_weights(model)
    assert failed.reason == "the weight could not be computed: ValueError: not today"
    assert good.reason == ""
    assert [w.reason for w in layer_weights(model, values=False)] == [
        "the weight could not be computed: RuntimeError: no values, no weight",
        "",
    ]
    assert all(p is before[name] for name, p in model.named_parameters())


def test_what_needs_values_is_gathered_although_its_shape_is_not_known(mesh):
    class Chosen(nn.Linear):
        def spectral_weights(self):
            yield "w", self.weight if self.weight.sum().item() != 0 else self.weight.mT, (self.weight,)

    model = nn.Sequential(Chosen(4, 3))
    fully_shard(model, mesh=mesh)
    (weight,) = layer_weights(model)
    assert (weight.reason, weight.matrices.shape) == ("", (1, 3, 4))


def test_a_layer_that_is_sharded_by_hand(mesh):
    model = nn.Sequential(nn.Linear(6, 4))
    weight = model[0].weight.detach().clone()
    model[0].weight = nn.Parameter(distribute_tensor(weight, mesh, [Shard(1)]))
    (found,) = layer_weights(model)
    torch.testing.assert_close(found.matrices[0], weight, rtol=0, atol=0)
    assert found.parameters == tuple(model[0].parameters())


def test_two_processes_find_what_one_finds(tmp_path):
    run_forked(*((("tests.analysis.weights.sharded_run", rank, tmp_path), {}) for rank in "01"), folder=tmp_path)
    model = make_model()
    expected = {w.name: w.matrices for w in layer_weights(model, SELECTION) if not w.reason}
    layers = parameter_layers(model)
    for rank in (0, 1):
        results = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert list(results["matrices"]) == list(results["shapes"]) == list(expected)
        for name, matrices in expected.items():
            assert torch.equal(results["matrices"][name], matrices), name
            assert results["shapes"][name] == matrices.shape
        assert results["owners"] == {name: layers[p] for name, p in model.named_parameters()}
        assert results["unchanged"]
        assert results["local"]["convolution.weight"] == (4 - rank, 5, 3, 3)
        assert results["local"]["tensor_parallel.weight"] == (4, 10)
