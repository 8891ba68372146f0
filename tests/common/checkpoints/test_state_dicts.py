"""Which of several state dicts in a file is taken, and how another is asked for."""

import datetime
import types
import warnings

import numpy
import pytest
import torch

from lightning_farms.analysis import open_checkpoint
from lightning_farms.common.checkpoints import UnreadableTensor, read_stored


def net(seed=0):
    torch.manual_seed(seed)
    return {"fc.weight": torch.randn(8, 6), "fc.bias": torch.randn(8)}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(8, 6)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}

CLEAR = {
    "under one unusual key": ({"ema_state_dict": net(), "step": torch.tensor(3)}, ["fc.weight", "fc.bias"]),
    "not under the first key": ({"state_dict": {}, "model": net()}, ["fc.weight", "fc.bias"]),
    "metadata under the first": ({"state_dict": {"epoch": 3}, "model_state_dict": net()}, ["fc.weight", "fc.bias"]),
    "deeper": ({"model": {"lm": {"encoder": net()}}}, ["lm.encoder.fc.weight", "lm.encoder.fc.bias"]),
    "two below one key": (
        {"model": {"a": {"w": torch.ones(2, 2)}, "b": {"w": torch.ones(2, 2)}}},
        ["a.w", "b.w"],
    ),
    "of an application": ({"app": {"model": net(), "optim": {"a": {"exp_avg": torch.ones(8, 6)}}}}, list(net())),
    "an optimizer beside it": (
        {"net": net(), "optimizer": {"state": {0: {"exp_avg": torch.ones(8, 6)}}}, "rng_state": torch.ones(9)},
        ["fc.weight", "fc.bias"],
    ),
    "an optimizer of any name beside it": ({"net": net(), "o": OPTIMIZER, "deeper": {"o": OPTIMIZER}}, list(net())),
    "parts of a model called like what a program keeps": (
        {"model": {"rescaler": net(), "scheduler_embed": net(), "random_proj": net(), "args": net()}},
        [f"{part}.{name}" for part in ("rescaler", "scheduler_embed", "random_proj", "args") for name in net()],
    ),
    "an optimizer within a usual key": (
        {"model": {"net": net(), "optimizer_state": {"m": {"w": torch.ones(2, 2)}}}},
        ["net.fc.weight", "net.fc.bias"],
    ),
    "what programs keep, by many names": (
        {"net": net()}
        | {
            name: {"a": torch.ones(3, 3)}
            for name in (
                "netG_optim",
                "optimizerD_state_dict",
                "lr_schedulers",
                "grad_scaler",
                "amp_scaler",
                "cuda_rng_state",
                "random_state",
                "python_random_states",
                "hyperparameters",
                "GradScaler",
                "LRScheduler",
                "sched",
                "scaler_state_dict",
            )
        },
        ["fc.weight", "fc.bias"],
    ),
    "far down": (
        {"params": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": net()}}}}}}}}}}},
        ["a.b.c.d.e.f.g.h.i.j.fc.weight", "a.b.c.d.e.f.g.h.i.j.fc.bias"],
    ),
    "itself, with extra state": ({**net(), "_extra_state": {"x": torch.ones(2, 2)}}, ["fc.weight", "fc.bias"]),
}


@pytest.mark.parametrize("case", CLEAR)
def test_what_is_clear(tmp_path, case):
    content, names = CLEAR[case]
    torch.save(content, tmp_path / "a.pt")
    assert list(open_checkpoint(tmp_path / "a.pt")) == names


SEVERAL = {
    "two": {"generator": net(), "discriminator": net(1)},
    "two and a table": {"generator": net(), "discriminator": net(1), "centroids": torch.ones(30, 40)},
    "the same twice": {"actor": net(), "critic": net(), "log_alpha": torch.tensor(0.0)},
    "two, of which one is called like a scaler": {"generator": net(), "upscaler": net(1)},
    "two, of which one is random": {"predictor": net(), "random_target": net(1)},
    "a list": {"nets": 3, "generator": net(), "others": [net(1), {"w": torch.ones(2, 2)}]},
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_are_listed_with_sizes(tmp_path, case):
    torch.save(SEVERAL[case], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"argument `key`.*\(2 tensors, 56 numbers\), ") as error:
        open_checkpoint(tmp_path / "a.pt")
    for name in SEVERAL[case]:
        if name not in ("log_alpha", "nets", "centroids"):
            assert name in str(error.value)


def test_a_key_names_one(tmp_path):
    torch.save({"model": net(), "ema": net(1), "swa": {"averaged": net(2)}}, tmp_path / "a.pt")
    for key, seed in ((None, 0), ("model", 0), ("ema", 1), ("swa.averaged", 2), ("swa", 2)):
        prefix = "averaged." if key == "swa" else ""
        tensor = open_checkpoint(tmp_path / "a.pt", key=key)[prefix + "fc.weight"]
        assert torch.equal(tensor, net(seed)["fc.weight"])
    stored = read_stored(tmp_path / "a.pt")
    assert stored.taken == "model"
    assert stored.others == {"ema": (2, 56), "swa.averaged": (2, 56)}
    with pytest.raises(ValueError, match=r"but got 'emma'; there are model \(2 tensors, 56 numbers\), ema"):
        open_checkpoint(tmp_path / "a.pt", key="emma")


def test_empty_stand_ins_have_a_remedy(tmp_path):
    torch.save({"module": {name: torch.empty(0) for name in net()}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"are empty, as DeepSpeed ZeRO-3 leaves them.*zero_to_fp32\.py"):
        open_checkpoint(tmp_path / "a.pt")


def test_averages_that_a_callback_alone_holds_are_listed(tmp_path):
    torch.save({"callbacks": {"EMA": {"weights": net()}}, "epoch": 1}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"argument `key` .*callbacks\.EMA\.weights \(2 tensors, 56 numbers\)"):
        open_checkpoint(tmp_path / "a.ckpt")
    assert list(open_checkpoint(tmp_path / "a.ckpt", key="callbacks.EMA.weights")) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("holder", [OPTIMIZER, {"optimizer": OPTIMIZER}, {"optimizer_states": [OPTIMIZER], "epoch": 1}])
def test_the_state_of_an_optimizer_alone_is_no_checkpoint(tmp_path, holder):
    torch.save(holder, tmp_path / "optimizer.bin")
    with pytest.raises(ValueError, match=r"holds the state of an optimizer\. Give the model's file"):
        open_checkpoint(tmp_path / "optimizer.bin")


def test_tensors_in_a_list_are_named_by_their_places(tmp_path):
    """As torch_ema keeps its averages."""
    torch.save({"decay": 0.9, "shadow_params": [torch.ones(3, 2), torch.zeros(4)]}, tmp_path / "a.pt")
    assert {name: tuple(tensor.shape) for name, tensor in open_checkpoint(tmp_path / "a.pt").items()} == {
        "0": (3, 2),
        "1": (4,),
    }


def test_arrays_of_numpy_and_a_tensor_alone_have_their_remedies(tmp_path):
    torch.save({"model": {"w": numpy.ones((3, 2))}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"arrays of NumPy.* torch\.from_numpy"):
        open_checkpoint(tmp_path / "a.pt")
    torch.save(torch.ones(3, 2), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"holds a Tensor\. Save it under a name"):
        open_checkpoint(tmp_path / "a.pt")


def test_a_nested_tensor_costs_its_own_row_only(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors is in prototype stage", category=UserWarning)
        nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])
        torch.save({"a": nested, "b": torch.ones(3, 2)}, tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    assert torch.equal(opened["b"], torch.ones(3, 2))
    with pytest.raises(UnreadableTensor, match="nested, of several shapes"):
        opened["a"]


def test_objects_whose_tensors_are_read_are_not_named_as_left_out(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU())
    held = types.SimpleNamespace(net=net())
    content = {"model": model, "ema": held, "since": datetime.timedelta(1), "opt": torch.optim.SGD(model.parameters())}
    torch.save(content, tmp_path / "whole.pt")
    stored = read_stored(tmp_path / "whole.pt")
    assert (list(stored.tensors), list(stored.others)) == (["0.weight", "0.bias"], ["ema.net"])
    assert stored.left_out == {"datetime.timedelta": 1, "torch.optim.sgd.SGD": 1}
    assert read_stored(tmp_path / "whole.pt", key="ema.net").left_out == stored.left_out
