import argparse
import fractions
import os
import pickle
import re
from collections import OrderedDict

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer

from lightning_farms.models import DPOT, load_weights, save_weights

SMALL = {
    "img_size": 8, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 3, "embed_dim": 8,
    "depth": 2, "n_blocks": 2, "modes": 1, "out_layer_dim": 4, "n_cls": 3,
}  # fmt: skip
VARIANTS = {
    "plain": {},
    "normalize": {"normalize": True, "mlp_ratio": 2.0},
    "mlp_silu": {"time_agg": "mlp", "act": "silu"},
    "more_out": {"out_timesteps": 3, "out_channels": 5, "in_channels": 4},
    "odd_sizes": {"img_size": 15, "patch_size": 5, "embed_dim": 56, "n_blocks": 7, "mlp_ratio": 61 / 56},
}


class _Wrapper(LightningModule):
    def __init__(self, network, hyper_parameters=None):
        super().__init__()
        self.network = network
        self.scale = torch.nn.Parameter(torch.ones(1))
        if hyper_parameters:
            self.save_hyperparameters(hyper_parameters)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def _model(seed=0, **changes):
    torch.manual_seed(seed)
    return DPOT(**(SMALL | changes))


def _released(model, /, **changes):
    """A checkpoint as the released training program writes it, with its names of the settings."""
    config = model.config
    args = argparse.Namespace(
        model="DPOT",
        res=config["img_size"],
        width=config["embed_dim"],
        n_layers=config["depth"],
        modes=config["modes"],
        act=config["act"],
        T_in=config["in_timesteps"],
        T_bundle=config["out_timesteps"],
        normalize=int(config["normalize"]),
        train_paths=["ns2d_fno_1e-5"],
        lr=1e-3,
        resume_path=None,
    )
    optimizer = torch.optim.Adam(model.parameters())
    return {"args": args, "model": model.state_dict(), "optimizer": optimizer.state_dict()} | changes


def _prefixed(state, prefix):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def _assert_same(first, second):
    assert first.config == second.config
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    size, frames, channels = first.img_size, first.in_timesteps, first.in_channels
    x = torch.randn(1, size, size, frames, channels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first(x).prediction, second(x).prediction)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_released_checkpoint_gives_the_same_network(tmp_path, variant, prefix):
    model = _model(**variant)
    torch.save(_released(model, model=_prefixed(model.state_dict(), prefix)), tmp_path / "model.pth")
    _assert_same(DPOT.from_checkpoint(tmp_path / "model.pth"), model)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_state_dict_under_any_known_key(tmp_path, key):
    model = _model(act="silu")
    torch.save({key: model.state_dict(), "args": model.config}, tmp_path / "model.pt")
    _assert_same(DPOT.from_checkpoint(tmp_path / "model.pt"), model)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_save_and_read_back(tmp_path, variant):
    model = _model(**variant)
    save_weights(model, tmp_path / "new" / "folder" / "model.pth")
    _assert_same(DPOT.from_checkpoint(str(tmp_path / "new" / "folder" / "model.pth")), model)
    other = _model(seed=1, **variant)
    assert not torch.equal(other.pos_embed, model.pos_embed)
    load_weights(other, tmp_path / "new" / "folder" / "model.pth")
    _assert_same(other, model)


def test_saved_file_is_in_the_released_format(tmp_path):
    model = _model()
    save_weights(model, tmp_path / "model.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(content) == {"model", "args"}
    assert list(content["model"]) == list(model.state_dict())
    args = content["args"]
    assert (args.res, args.width, args.n_layers, args.T_in, args.T_bundle, args.modes) == (8, 8, 2, 3, 1, 1)


def test_save_replaces_the_file_and_leaves_no_other(tmp_path):
    target = tmp_path / "model.pth"
    target.write_bytes(b"old")
    save_weights(_model(), target)
    assert os.listdir(tmp_path) == ["model.pth"]
    assert DPOT.from_checkpoint(target).config["embed_dim"] == 8


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "model.pth"
    save_weights(_model(), target)
    before = target.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(_model(seed=1), target)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pth"]


def test_plain_state_dict_needs_modes_and_act(tmp_path):
    model = _model(act="silu")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    _assert_same(DPOT.from_checkpoint(tmp_path / "state.pt", modes=1, act="silu"), model)
    with pytest.warns(UserWarning, match=r"does not tell modes and act, so that the model has modes=32, act='gelu'"):
        guessed = DPOT.from_checkpoint(tmp_path / "state.pt")
    assert (guessed.config["modes"], guessed.config["act"]) == (32, "gelu")
    with pytest.warns(UserWarning, match=r"does not tell act, so that the model has act='gelu'"):
        DPOT.from_checkpoint(tmp_path / "state.pt", modes=1)


def test_saved_setting_without_a_value_counts_as_unsaid(tmp_path):
    model = _model()
    torch.save(_released(model, args=argparse.Namespace(modes=1, act=None)), tmp_path / "model.pth")
    with pytest.warns(UserWarning, match=r"does not tell act, so that the model has act='gelu'"):
        _assert_same(DPOT.from_checkpoint(tmp_path / "model.pth"), model)


@pytest.mark.parametrize("nested", [False, True])
def test_lightning_checkpoint(tmp_path, nested):
    model = _model(act="silu")
    config = dict(model.config)
    hyper_parameters = {"network": {"class_path": "DPOT", "init_args": config}} if nested else config
    wrapper = _Wrapper(model, hyper_parameters)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(wrapper)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    _assert_same(DPOT.from_checkpoint(tmp_path / "last.ckpt"), model)
    other = _model(seed=1, act="silu")
    load_weights(other, tmp_path / "last.ckpt")
    _assert_same(other, model)


def test_keywords_win(tmp_path):
    model = _model()
    save_weights(model, tmp_path / "model.pth")
    loaded = DPOT.from_checkpoint(tmp_path / "model.pth", modes=5, act="relu")
    assert loaded.config == model.config | {"modes": 5, "act": "relu"}
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_loading_leaves_the_random_numbers_alone_and_owns_its_weights(tmp_path):
    save_weights(_model(), tmp_path / "model.pth")
    before = torch.get_rng_state()
    loaded = DPOT.from_checkpoint(tmp_path / "model.pth")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in loaded.parameters())
    loaded(torch.zeros(1, 8, 8, 3, 2)).prediction.sum().backward()


def test_half_precision_checkpoint_loads_into_float32(tmp_path):
    model = _model()
    torch.save(_released(model, model=model.bfloat16().state_dict()), tmp_path / "model.pth")
    loaded = DPOT.from_checkpoint(tmp_path / "model.pth")
    assert loaded.pos_embed.dtype == torch.float32
    assert torch.equal(loaded.pos_embed, model.pos_embed.float())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"in_timesteps": 5},
            r"1 of other shape \(time_agg_layer\.w: \(3, 8, 8\) in the file, \(5, 8, 8\) in the model",
        ),
        (
            {"n_cls": 7},
            r"2 of other shape \(cls_head\.4\.weight: \(3, 8\) in the file, \(7, 8\) in the model; cls_head",
        ),
        ({"depth": 3}, r"12 missing from the file \(blocks\.2\.norm1\.weight; .*\.\.\.\)"),
        ({"depth": 1}, r"12 unknown to the model \(blocks\.1\.norm1\.weight; .*\.\.\.\)"),
        ({"normalize": True}, r"4 missing from the file \(scale_feats_mu\.weight; "),
        ({"time_agg": "mlp"}, r"1 unknown to the model \(time_agg_layer\.gamma\)"),
        ({"embed_dim": 16}, r"of other shape \(pos_embed: \(1, 8, 2, 2\) in the file, \(1, 16, 2, 2\) in the model"),
    ],
)
def test_contradicting_keyword_names_the_tensors(tmp_path, overrides, message):
    save_weights(_model(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message + r".*Use DPOT\.from_checkpoint"):
        DPOT.from_checkpoint(tmp_path / "model.pth", **overrides)
    other = _model(seed=1, **overrides)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(other, tmp_path / "model.pth")
    torch.testing.assert_close(dict(other.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "value"), [("act", "silu"), ("modes", 2)])
def test_load_weights_warns_of_another_function(tmp_path, name, value):
    save_weights(_model(), tmp_path / "model.pth")
    other = _model(**{name: value})
    with pytest.warns(UserWarning, match=f"was saved with {name}=.*, but the model was built with {name}={value!r}"):
        load_weights(other, tmp_path / "model.pth")


def test_unknown_keyword_is_refused(tmp_path):
    save_weights(_model(), tmp_path / "model.pth")
    with pytest.raises(TypeError, match="width"):
        DPOT.from_checkpoint(tmp_path / "model.pth", width=8)


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="existing checkpoint file, but got " + re.escape(repr(str(path)))):
            DPOT.from_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path, share, legacy):
    path = tmp_path / "model.pth"
    torch.save(_released(_model()), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"is damaged, cut short or of another format.*copy or download it again"):
        DPOT.from_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"not a checkpoint", b"\x89HDF\r\n\x1a\n" + bytes(500), b"{}", bytes(range(256)) * 16]
)
def test_file_of_another_format(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged, cut short or of another format|is an HDF5 file"):
        DPOT.from_checkpoint(tmp_path / "model.pth")


class _Harmful:
    """Would create a file while being unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_left_out_and_not_run(tmp_path, legacy):
    harm = tmp_path / "harm"
    content = _released(_model(), extra=_Harmful(str(harm)))
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=not legacy)
    loaded = DPOT.from_checkpoint(tmp_path / "model.pth").state_dict()
    torch.testing.assert_close(dict(loaded), dict(_model().state_dict()), rtol=0, atol=0)
    assert not harm.exists()


def test_objects_that_are_not_plain_are_left_out(tmp_path):
    torch.save(_released(_model(), extra=fractions.Fraction(1, 3)), tmp_path / "model.pth")
    DPOT.from_checkpoint(tmp_path / "model.pth")
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump({"pos_embed": fractions.Fraction(1, 3)}, file)
    with pytest.raises(ValueError, match="Expected argument `path`"):
        DPOT.from_checkpoint(tmp_path / "plain.pkl")


def test_namespace_is_not_left_among_the_admitted_classes(tmp_path):
    save_weights(_model(), tmp_path / "model.pth")
    DPOT.from_checkpoint(tmp_path / "model.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": torch.nn.Linear(2, 2).state_dict()}, "holds no tensor `pos_embed`"),
        ({"epoch": 3}, "holds no tensor `pos_embed`"),
        ([torch.zeros(2)], "a checkpoint that holds a dictionary, but .* holds a list"),
        ({"pos_embed": torch.zeros(1, 8, 2, 2)}, "is of another network .*patch_embed.proj.0.weight"),
        ({"pos_embed": torch.zeros(1, 5, 8)}, "is of another network"),
    ],
)
def test_checkpoint_of_another_network(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        DPOT.from_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("build", [DPOT.from_checkpoint, DPOT.from_pretrained])
@pytest.mark.parametrize("key", ["depth", "n_layers"])
def test_a_file_without_its_last_block(tmp_path, build, key):
    """Its shapes alone are those of a complete network of less depth."""
    state = {name: value for name, value in _model().state_dict().items() if not name.startswith("blocks.1.")}
    torch.save({"model": state, "args": {"act": "gelu", "modes": 1, key: 2}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="to hold the 2 blocks that its settings tell, but it holds 1: some"):
        build(tmp_path / "model.pth")


def test_two_networks_in_one_file(tmp_path):
    state = _model().state_dict()
    torch.save({"state_dict": _prefixed(state, "network.") | _prefixed(state, "ema.")}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"holds 2 of them, under \['network\.', 'ema\.'\]"):
        DPOT.from_checkpoint(tmp_path / "last.ckpt")


def test_positions_that_are_not_square(tmp_path):
    state = _model().state_dict() | {"pos_embed": torch.zeros(1, 8, 2, 4)}
    torch.save(state, tmp_path / "state.pt")
    with pytest.warns(UserWarning, match="does not tell modes and act"):
        model = DPOT.from_checkpoint(tmp_path / "state.pt")
    assert model.img_size == (2 * model.config["patch_size"], 4 * model.config["patch_size"])


def test_command_line_builds_from_a_checkpoint(tmp_path):
    save_weights(_model(act="silu"), tmp_path / "model.pth")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=torch.nn.Module)
    given = ["--network=lightning_farms.models.DPOT.from_checkpoint", f"--network.path={tmp_path / 'model.pth'}"]
    network = parser.instantiate(parser.parse_args([*given, "--network.modes=4"])).network
    assert network.config == DPOT(**SMALL, act="silu").config | {"modes": 4}
    with pytest.raises(Exception, match="modes"):
        parser.parse_args([*given, "--network.modes=many"])


@pytest.mark.parametrize("itself", [False, True])
def test_settings_nested_without_end_are_one_message(tmp_path, itself):
    nested = {}
    if itself:
        nested["a"] = nested
    else:
        for _ in range(80):
            nested = {"a": nested}
    torch.save({"model": _model().state_dict(), "args": nested}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth' is damaged.* nested more than 64 deep"):
        DPOT.from_checkpoint(tmp_path / "model.pth")
