"""A tensor that cannot be read costs its own row, in a file and in a dictionary; buffers are no weights."""

import pytest
import torch
from torch import nn

from lightning_farms.analysis import (
    Selection,
    WholeMatrix,
    analyze,
    analyze_weights,
    checkpoint_weights,
    parameter_layers,
)


def matrix():
    torch.manual_seed(0)
    return torch.randn(32, 24)


CASES = {
    "meta": ({"a.weight": torch.empty(32, 24, device="meta")}, "meta device"),
    "no inputs": ({"a.weight": torch.zeros(8, 0, 3)}, "empty"),
    "recurrent without a state": ({"a.weight_hh_l0": torch.zeros(0, 0)}, "empty"),
    "mask": ({"a.weight_orig": matrix(), "a.weight_mask": torch.ones(16, 24)}, "could not be computed"),
    "norm": ({"a.weight_g": torch.ones(16, 1), "a.weight_v": matrix()}, "could not be computed"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stored", [True, False], ids=["file", "dictionary"])
def test_it_costs_its_own_row(tmp_path, case, stored):
    tensors, reason = CASES[case]
    source = {**tensors, "b.weight": matrix()}
    if stored:
        torch.save(source, tmp_path / "a.pt")
        source = tmp_path / "a.pt"
    first, second = analyze_weights(checkpoint_weights(source), WholeMatrix())
    assert (first.status, second.name, second.status) == ("skipped", "b", "ok")
    assert reason in first.reason
    assert [weight.unreadable for weight in checkpoint_weights(source)] == [True, False]


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage", "ignore:.*[Qq]uantiz")
def test_tensors_without_a_plain_shape_in_a_dictionary_cost_their_own_rows():
    state = {
        "a.weight": torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)]),
        "b.weight": torch.quantize_per_tensor(matrix(), 0.1, 0, torch.qint8),
        "c.weight": nn.LazyLinear(3).weight,
        "d.weight": matrix(),
    }
    found = analyze_weights(checkpoint_weights(state, Selection(min_size=4)))
    assert [row.name for row in found if row.status == "ok"] == ["d"]
    assert "quantised" in found["b"].reason


@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_tensors_are_made_dense(tmp_path, sparse):
    dense = matrix().relu()
    torch.save({"a.weight": sparse(dense)}, tmp_path / "a.pt")
    for source in ({"a.weight": sparse(dense)}, tmp_path / "a.pt"):
        [weight] = checkpoint_weights(source)
        assert torch.equal(weight.matrices[0], dense)


def test_tied_tensors_of_a_file_come_once(tmp_path):
    shared = matrix()
    torch.save({"embed.weight": shared, "head.weight": shared, "other.weight": matrix()}, tmp_path / "a.pt")
    assert [weight.name for weight in checkpoint_weights(tmp_path / "a.pt")] == ["head", "other"]


def test_of_tied_tables_the_first_comes(tmp_path):
    shared = matrix()
    state = {f"{name}.weight": shared for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")}
    torch.save(state, tmp_path / "a.pt")
    for source in (state, tmp_path / "a.pt"):
        assert [weight.name for weight in checkpoint_weights(source)] == ["shared"]


BUFFERS = "mel.fb rope.freqs_cos rope.sin_cached moco.queue vq.embed_avg stft.forward_basis head.anchors norm.data_mean"


def test_buffers_are_no_weights():
    state = {name: torch.randn(32, 24) for name in BUFFERS.split()}
    assert [weight.name for weight in checkpoint_weights({**state, "fc.weight": matrix()})] == ["fc"]


class Table(nn.Module):
    """A layer with a buffer of no usual name."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(32, 24))
        self.register_buffer("lookup", torch.randn(32, 24))


def test_a_model_saved_whole_tells_its_buffers(tmp_path):
    torch.save(nn.Sequential(Table()), tmp_path / "a.pt")
    assert [weight.name for weight in checkpoint_weights(tmp_path / "a.pt")] == ["0.own"]


def test_a_model_saved_whole_tells_parameters_that_are_called_like_buffers(tmp_path):
    model = Table()
    model.grid = nn.Parameter(torch.randn(12, 12))
    torch.save(model, tmp_path / "a.pt")
    assert {weight.name for weight in checkpoint_weights(tmp_path / "a.pt")} == {"own", "grid"}
    assert "grid" not in {weight.name for weight in checkpoint_weights(model.state_dict())}


class Experts(nn.Module):
    """Fused experts with biases of their own."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(12, 24, 32))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(12, 32))


def test_biases_of_fused_experts_belong_to_their_weight():
    model = nn.ModuleDict({"experts": Experts()})
    assert list(analyze(model).alphas) == ["experts.gate_up_proj"]
    assert set(parameter_layers(model).values()) == {"experts.gate_up_proj"}
    assert len(parameter_layers(model)) == 2
    assert [weight.name for weight in checkpoint_weights(model.state_dict())] == ["experts.gate_up_proj"]


def test_flattened_parameters_of_fsdp_and_packed_modules_say_what_they_are():
    state = {"_fsdp_wrapped_module._flat_param": torch.randn(4000)}
    [weight] = checkpoint_weights(state)
    assert "FULL_STATE_DICT" in weight.reason


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_modules_quantised_by_pytorch_have_a_row(tmp_path):
    packed = torch.quantize_per_tensor(torch.randn(8, 6), 0.1, 0, torch.qint8)
    torch.save({"fc._packed_params._packed_params": (packed, None)}, tmp_path / "a.pt")
    [weight] = checkpoint_weights(tmp_path / "a.pt")
    assert weight.reason.startswith("quantised")
