"""Products of LoRA's factors, on classes with the structure of peft's and loralib's."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms.analysis import (
    FARMS,
    Diagnostics,
    Selection,
    WholeMatrix,
    analyze,
    analyze_weights,
    checkpoint_weights,
    layer_weights,
)

PRODUCTS, FACTORS = Selection(), Selection(low_rank_products=False)


def rows(model, selection=PRODUCTS):
    return {w.name: w for w in layer_weights(model, selection)}


class PeftLinear(nn.Module):
    def __init__(self, rank=2, adapters=("default", "other")):
        super().__init__()
        self.base_layer = nn.Linear(6, 5)
        self.lora_A = nn.ModuleDict({name: nn.Linear(6, rank, bias=False) for name in adapters})
        self.lora_B = nn.ModuleDict({name: nn.Linear(rank, 5, bias=False) for name in adapters})
        self.lora_embedding_A, self.lora_embedding_B = nn.ParameterDict(), nn.ParameterDict()
        self.lora_dropout = nn.ModuleDict({name: nn.Identity() for name in adapters})
        self.scaling = {name: 4.0 / rank for name in adapters}


def test_pefts_linear():
    model = nn.Sequential(PeftLinear())
    assert list(rows(model, FACTORS)) == [
        "0.base_layer",
        *(f"0.lora_{factor}.{adapter}" for factor in "AB" for adapter in ("default", "other")),
    ]
    found = rows(model)
    assert list(found) == ["0.lora.default", "0.lora.other", "0.base_layer"]
    layer, weight = model[0], found["0.lora.other"]
    x = torch.randn(6)
    expected = layer.scaling["other"] * layer.lora_B["other"](layer.lora_A["other"](x))
    torch.testing.assert_close(weight.matrices[0] @ x, expected.detach())
    assert (weight.kind, weight.shape, weight.reason, weight.rank) == ("low-rank product", (5, 6), "", 2)
    factors = [layer.lora_A["other"].weight, layer.lora_B["other"].weight]
    assert [id(p) for p in weight.parameters] == [id(p) for p in factors]


def test_a_product_can_be_the_only_kind():
    found = rows(nn.Sequential(PeftLinear()), Selection(kinds=("low-rank product",)))
    assert [name for name, weight in found.items() if not weight.reason] == ["0.lora.default", "0.lora.other"]


def test_pefts_convolution():
    class PeftConv2d(nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_A = nn.ModuleDict({"default": nn.Conv2d(6, 2, (3, 4), bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Conv2d(2, 5, 1, bias=False)})
            self.scaling = {"default": 0.5}

    layer = PeftConv2d()
    weight = rows(nn.Sequential(layer))["0.lora.default"]
    assert (weight.shape, weight.matrices.shape) == ((12, 5, 6), (12, 5, 6))
    x = torch.randn(1, 6, 5, 5)
    expected = 0.5 * layer.lora_B["default"](layer.lora_A["default"](x))
    kernel = weight.matrices.unflatten(0, (3, 4)).permute(2, 3, 0, 1)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel), expected.detach())


def test_pefts_embedding():
    class PeftEmbedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Embedding(9, 5)
            self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
            self.lora_embedding_A = nn.ParameterDict({"default": nn.Parameter(torch.randn(2, 9))})
            self.lora_embedding_B = nn.ParameterDict({"default": nn.Parameter(torch.randn(5, 2))})
            self.scaling = {"default": 3.0}

    layer = PeftEmbedding()
    found = rows(nn.Sequential(layer))
    assert list(found) == ["0.lora_embedding.default", "0.base_layer"]
    a, b = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    torch.testing.assert_close(found["0.lora_embedding.default"].matrices[0], (3.0 * b @ a).detach())


class LoralibLinear(nn.Linear):
    def __init__(self, rank=2):
        super().__init__(6, 5)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(rank, 6)), nn.Parameter(torch.randn(5, rank))
        self.scaling = 2.0


def test_loralibs_linear():
    model = nn.Sequential(LoralibLinear())
    assert list(rows(model, FACTORS)) == ["0", "0.lora_A", "0.lora_B"]
    found = rows(model)
    assert list(found) == ["0.lora", "0"]
    layer = model[0]
    torch.testing.assert_close(found["0.lora"].matrices[0], (2.0 * layer.lora_B @ layer.lora_A).detach())


def test_loralibs_merged_linear_has_a_product_for_each_part():
    class MergedLinear(nn.Linear):
        def __init__(self):
            super().__init__(6, 12)  # query, key and value of 4, two of them with factors of rank 3
            self.lora_A, self.lora_B = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(8, 3))
            self.scaling = 1.5

    layer = MergedLinear()
    weight = rows(nn.Sequential(layer))["0.lora"]
    with torch.no_grad():
        delta = nn.functional.conv1d(layer.lora_A.unsqueeze(0), layer.lora_B.unsqueeze(-1), groups=2).squeeze(0)
    torch.testing.assert_close(weight.matrices, 1.5 * delta.unflatten(0, (2, 4)))


@pytest.mark.parametrize("groups", [1, 2])
def test_loralibs_convolution(groups):
    class ConvLoRA(nn.Conv2d):
        def __init__(self):
            super().__init__(6, 4, 3, groups=groups)
            self.lora_A = nn.Parameter(torch.randn(2 * 3, 6 * 3))
            self.lora_B = nn.Parameter(torch.randn(4 // groups * 3, 2 * 3))
            self.scaling = 1.0

    layer = ConvLoRA()
    weight = rows(nn.Sequential(layer))["0.lora"]
    delta = (layer.lora_B @ layer.lora_A).view(layer.weight.shape).detach()
    assert weight.matrices.shape == (9 * groups, 4 // groups, 6 // groups)
    torch.testing.assert_close(weight.matrices[5], delta[: 4 // groups, :, 1, 2])


def test_half_precision_factors_are_multiplied_in_single():
    model = nn.Sequential(PeftLinear()).bfloat16()
    weight = rows(model)["0.lora.default"]
    a, b = model[0].lora_A["default"].weight, model[0].lora_B["default"].weight
    assert weight.matrices.dtype == torch.float32
    torch.testing.assert_close(weight.matrices[0], 2.0 * (b.float() @ a.float()).detach())


def test_autocast_does_not_round_the_product():
    model = nn.Sequential(PeftLinear())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = rows(model)["0.lora.other"]
    assert rounded.matrices.equal(rows(model)["0.lora.other"].matrices)


def test_a_factor_that_cannot_be_had_is_a_reason():
    class Broken(nn.Linear):
        @property
        def lora_A(self):
            raise OSError("not on this disk")

    weights = list(layer_weights(nn.Sequential(Broken(6, 5), nn.Linear(5, 4))))
    assert [weight.reason for weight in weights] == ["the weight could not be computed: OSError: not on this disk", ""]


def test_factors_that_do_not_fit_are_a_reason():
    layer = PeftLinear(adapters=("default",))
    layer.lora_B["default"] = nn.Linear(4, 5, bias=False)
    weight = rows(nn.Sequential(layer))["0"]
    assert weight.reason.startswith("the weight could not be computed: ")


class WideLinear(nn.Linear):
    def __init__(self, rank=12):
        super().__init__(64, 48)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(rank, 64)), nn.Parameter(torch.randn(48, rank))
        self.scaling = 0.5


def alpha_of_the_largest(matrices, count):
    values = np.linalg.svd(np.stack(matrices), compute_uv=False)[:, :count] ** 2
    tail = np.sort(values.ravel())[values.size // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


@pytest.mark.parametrize("method", [WholeMatrix(), FARMS()])
def test_zero_eigenvalues_of_a_product_are_left_out_of_the_fit(method):
    """Of a product of rank 12 more than half are zero in any case: a fit to all of them has no tail."""
    torch.manual_seed(0)
    layer = WideLinear()
    row = analyze(layer, method, selection=PRODUCTS, diagnostics=Diagnostics(marchenko_pastur=True, twin=True))["lora"]
    product = 0.5 * (layer.lora_B.double() @ layer.lora_A.double()).detach().numpy()
    windows = [product] if row.windows == 1 else [product[:, :48], product[:, -48:]]
    assert row.eigenvalue_count == 12 * len(windows)
    assert row.alpha == pytest.approx(alpha_of_the_largest(windows, 12), abs=1e-4)
    assert math.isnan(row.mp_variance)
    assert row.twin.eigenvalue_count == 48 * len(windows)
    assert row.twin.status == "ok"
    (stored,) = [w for w in checkpoint_weights(nn.Sequential(layer).state_dict(), PRODUCTS) if w.name == "0.lora"]
    assert next(iter(analyze_weights([stored], method))).alpha == pytest.approx(row.alpha, abs=1e-4)


def test_change_of_a_product_has_the_rank_of_both():
    torch.manual_seed(0)
    before, after = WideLinear(), WideLinear()
    row = analyze(after, WholeMatrix(), base=before, selection=PRODUCTS)["lora"]
    change = 0.5 * (after.lora_B @ after.lora_A - before.lora_B @ before.lora_A).detach().double().numpy()
    assert row.alpha == pytest.approx(alpha_of_the_largest([change], 24), abs=1e-4)


def test_factors_analysed_themselves_are_told_apart_from_weights():
    module = nn.Module()
    module.fc = nn.Linear(32, 32)
    module.fc.lora_A = nn.Parameter(torch.randn(16, 32))
    module.fc.lora_B = nn.Parameter(torch.randn(32, 16))
    of_model = {row.name: row.reason for row in analyze(module, selection=FACTORS)}
    of_file = {row.name: row.reason for row in analyze_weights(checkpoint_weights(module.state_dict(), FACTORS))}
    assert of_model == of_file
    assert {name for name, reason in of_file.items() if "a factor of a low-rank update" in reason} == {
        "fc.lora_A",
        "fc.lora_B",
    }
    assert not any("a factor" in row.reason for row in analyze(module))


@pytest.mark.parametrize("missing", ["lora_A", "lora_B"])
def test_a_factor_without_the_other_is_no_weight(missing):
    module = PeftLinear(rank=3)
    del getattr(module, missing)["other"]
    for weights in (layer_weights(module), checkpoint_weights(module.state_dict())):
        reasons = {weight.name: weight.reason for weight in weights}
        [(name, reason)] = [(name, reason) for name, reason in reasons.items() if reason]
        assert name == f"lora_{'AB'[missing == 'lora_A']}.other"
        assert "it is one factor of a low-rank update, and the other one is not beside it" in reason
        assert reasons.keys() - {name} == {"lora.default", "base_layer"}


def test_one_factor_may_be_of_several_products():
    torch.manual_seed(0)
    model = nn.Sequential(WideLinear(), WideLinear())
    model[1].lora_A = model[0].lora_A
    found = rows(model)
    assert {name for name, weight in found.items() if weight.kind == "low-rank product"} == {"0.lora", "1.lora"}
    torch.testing.assert_close(found["1.lora"].matrices[0], 0.5 * model[1].lora_B @ model[0].lora_A)
    assert not [name for name in found if "lora_" in name]
    assert rows(nn.ModuleList([model[0], model[0]])).keys() == rows(nn.ModuleList([model[0]])).keys()


class ParallelLinearAdapter(nn.Module):
    """As NeMo's, whose class has this name."""

    def __init__(self, activation):
        super().__init__()
        self.linear_in, self.linear_out = nn.Linear(40, 12, bias=False), nn.Linear(12, 30, bias=False)
        self.activation, self.alpha, self.dim = activation, 24, 12


def test_nemos_adapters_in_models_and_files():
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear_qkv": nn.ModuleDict({"adapter": ParallelLinearAdapter(nn.Identity())})})
    product = (
        model["linear_qkv"]["adapter"].linear_out.weight @ model["linear_qkv"]["adapter"].linear_in.weight
    ).detach()
    state = {f"decoder.{name}": value for name, value in model.state_dict().items()}
    older = {f"x.{name.replace('linear_qkv.adapter', 'lora_kqv_adapter')}": v for name, v in model.state_dict().items()}
    [of_model] = layer_weights(model)
    [of_file], [of_older] = checkpoint_weights(state), checkpoint_weights(older)
    names = ["linear_qkv.adapter.lora", "decoder.linear_qkv.adapter.lora", "x.lora_kqv_adapter.lora"]
    assert [weight.name for weight in (of_model, of_file, of_older)] == names
    torch.testing.assert_close(of_model.matrices[0], 2 * product)
    torch.testing.assert_close(of_file.matrices[0], product)
    torch.testing.assert_close(of_older.matrices[0], product)
    assert {weight.rank for weight in (of_model, of_file, of_older)} == {12}


def test_adapters_with_a_function_between_their_layers_are_weights():
    model = nn.ModuleDict({"adapter_layer": nn.ModuleDict({"adapter_1": ParallelLinearAdapter(nn.SiLU())})})
    for weights in (layer_weights(model), checkpoint_weights({f"x.{k}": v for k, v in model.state_dict().items()})):
        assert [(weight.kind, weight.reason) for weight in weights] == [("linear", "")] * 2
