import warnings
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_farms.analysis import open_checkpoint
from lightning_farms.models import DPOT, convert_checkpoint, save_weights

SMALL = {
    "img_size": 8, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 3, "embed_dim": 8,
    "depth": 2, "n_blocks": 2, "modes": 1, "out_layer_dim": 4, "n_cls": 3, "act": "silu",
}  # fmt: skip
_STATUS = Path("/proc/self/status")


def _model(seed=0, **changes):
    torch.manual_seed(seed)
    return DPOT(**(SMALL | changes))


@pytest.fixture
def saved(tmp_path):
    """A file and the network in it."""
    model = _model()
    save_weights(model, tmp_path / "model.pth")
    return tmp_path / "model.pth", model


def test_file_as_it_is(saved):
    path, model = saved
    before = torch.get_rng_state()
    loaded = DPOT.from_pretrained(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (len(loaded.load_report.loaded), loaded.load_report.skipped) == (len(model.state_dict()), {})
    assert DPOT.from_checkpoint(path).load_report == loaded.load_report
    assert model.load_report is None


SIZES = {
    "img_size": {"img_size": 16},
    "rectangle": {"img_size": (16, 12)},
    "frames": {"in_timesteps": 5, "out_timesteps": 2},
    "channels": {"in_channels": 4, "out_channels": 3},
    "fewer": {"in_timesteps": 1, "in_channels": 1, "out_channels": 1, "img_size": 4},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_other_sizes_just_work(saved, sizes):
    path, model = saved
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = DPOT.from_pretrained(path, **sizes)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn
    assert loaded.config == model.config | sizes
    assert loaded.load_report.adapted
    assert torch.equal(loaded.blocks[1].filter.w1, model.blocks[1].filter.w1)
    size = loaded.img_size if isinstance(loaded.img_size, tuple) else (loaded.img_size, loaded.img_size)
    x = torch.randn(2, *size, loaded.in_timesteps, loaded.in_channels)
    prediction = loaded(x).prediction
    assert prediction.isfinite().all()
    prediction.sum().backward()


def test_what_gets_initial_values_is_warned_of(saved):
    path, model = saved
    torch.manual_seed(3)
    with pytest.warns(
        UserWarning, match=r"Not everything.*\n.*\n.*cls_head.4.bias \(3 classes in the file, 5 in the"
    ) as w:
        loaded = DPOT.from_pretrained(path, n_cls=5)
    assert w[0].filename == __file__
    fresh = _model(seed=3, n_cls=5)
    assert torch.equal(loaded.cls_head[4].weight, fresh.cls_head[4].weight)
    assert torch.equal(loaded.cls_head[2].weight, model.cls_head[2].weight)


@pytest.mark.parametrize("others", [{}, {"n_cls": 5, "normalize": True}], ids=["equal", "others that do not fit"])
def test_components_leave_the_rest_initial(saved, others):
    path, model = saved
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = DPOT.from_pretrained(path, components=["blocks", "pos_embed"], **others)
    assert set(loaded.load_report.skipped.values()) == {"not among the components asked for"}
    fresh = _model(seed=3, **others)
    for name, tensor in loaded.state_dict().items():
        source = model if name.startswith(("blocks.", "pos_embed")) else fresh
        assert torch.equal(tensor, source.state_dict()[name])


def test_subclass(saved):
    class Special(DPOT):
        pass

    assert type(Special.from_pretrained(saved[0])) is type(Special.from_checkpoint(saved[0])) is Special


def test_contradicting_sizes_are_refused(saved):
    with pytest.raises(ValueError, match=r"of other shape \(pos_embed: \(1, 8, 2, 2\) in the file, \(1, 16, 2, 2\)"):
        DPOT.from_pretrained(saved[0], embed_dim=16)


def test_command_line_builds_from_a_file(saved):
    path, model = saved
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=torch.nn.Module)
    given = ["--network=lightning_farms.models.DPOT.from_pretrained", f"--network.path={path}"]
    given += ["--network.components=[blocks, out]", "--network.img_size=12"]
    network = parser.instantiate(parser.parse_args(given)).network
    assert network.config == model.config | {"img_size": 12}
    assert torch.equal(network.out_layer[4].weight, model.out_layer[4].weight)


@pytest.mark.skipif(not _STATUS.exists(), reason="needs Linux's account of memory")
def test_large_files_are_mapped_and_not_read(tmp_path):
    """Behind the tensors is an optimizer's state of which no page may be touched."""
    model = _model()
    optimizer = {"state": torch.zeros(24 * 2**20)}
    torch.save({"model": model.state_dict(), "args": None, "optimizer": optimizer}, tmp_path / "model.pth")
    del optimizer
    before = _resident()
    loaded = DPOT.from_pretrained(tmp_path / "model.pth", modes=1, act="silu")
    assert _resident() - before < 32 * 2**20  # the file has 96 MiB
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def _resident():
    lines = _STATUS.read_text().splitlines()
    (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kilobytes * 2**10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversion_keeps_everything(tmp_path, dtype):
    model = _model().to(dtype)
    lightning = {"state_dict": {f"network.{name}": tensor for name, tensor in model.state_dict().items()}}
    torch.save(lightning | {"hyper_parameters": model.config, "optimizer_states": [{}]}, tmp_path / "last.ckpt")
    converted = convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "a.safetensors")
    assert converted.tensors == len(model.state_dict())
    assert converted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert converted.config == model.config
    convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        stored = dict(open_checkpoint(tmp_path / name))
        assert {tensor.dtype for tensor in stored.values()} == {dtype}
        torch.testing.assert_close(stored, dict(model.state_dict()), rtol=0, atol=0)
        assert DPOT.from_checkpoint(tmp_path / name).config == model.config


def test_conversion_in_place(saved):
    path, model = saved
    convert_checkpoint(path, path)
    torch.testing.assert_close(DPOT.from_checkpoint(path).state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "message"), [({}, "arguments `modes` and `act` to be given"), ({"act": "silu"}, "argument `modes` to be")]
)
def test_conversion_writes_no_guesses(tmp_path, given, message):
    torch.save(_model().state_dict(), tmp_path / "state.pt")
    with pytest.raises(ValueError, match=message + ".*, as .*does not say what the network was trained with"):
        convert_checkpoint(tmp_path / "state.pt", tmp_path / "a.safetensors", **given)
    assert not (tmp_path / "a.safetensors").exists()
    assert convert_checkpoint(tmp_path / "state.pt", tmp_path / "a.pth", modes=1, act="silu").config == _model().config


def test_incomplete_network_is_not_converted(tmp_path):
    state = _model().state_dict()
    del state["blocks.1.norm2.bias"]
    torch.save({"model": state, "args": {"modes": 1, "act": "silu"}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"1 missing from the file \(blocks\.1\.norm2\.bias\)"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")
