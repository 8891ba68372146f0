import pytest
import torch
from torch import nn

from lightning_farms.optim import layerwise_param_groups


def test_groups_by_layer_in_order_of_appearance():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2), nn.Linear(2, 1))
    layer_of = {p: "2" for p in model[2].parameters()} | {p: "0" for i in (0, 1) for p in model[i].parameters()}
    groups = layerwise_param_groups(model.named_parameters(), layer_of)
    assert [(g["name"], len(g["params"])) for g in groups] == [("base/0", 4), ("base/2", 2), ("base", 2)]
    held = [p for g in groups for p in g["params"]]
    assert len(held) == 8
    assert all(any(p is q for q in held) for p in model.parameters())
    optimizer = torch.optim.AdamW(groups, lr=0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5] * 3


def test_no_rest_group_when_every_parameter_has_a_layer_and_duplicates_count_once():
    weight = nn.Parameter(torch.zeros(2))
    groups = layerwise_param_groups([("a", weight), ("tied", weight)], {weight: "a"})
    assert len(groups) == 1
    assert groups[0]["name"] == "base/a"
    assert len(groups[0]["params"]) == 1


def test_names_are_unique_whatever_layers_are_called():
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups = layerwise_param_groups([("a", one), ("b", two)], {one: "base"})
    assert [g["name"] for g in groups] == ["base/base", "base"]


def test_nothing_to_group():
    with pytest.raises(ValueError, match="`named_parameters` to be at least one parameter, but got none"):
        layerwise_param_groups([], {})
