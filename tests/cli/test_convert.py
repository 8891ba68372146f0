"""`lightning-farms convert` as a shell user meets it."""

import pytest
import torch

from lightning_farms.cli import main
from lightning_farms.models import DPOT, save_weights

SMALL = {
    "img_size": 8, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 3, "embed_dim": 8,
    "depth": 1, "n_blocks": 2, "modes": 1, "out_layer_dim": 4, "n_cls": 3, "act": "silu",
}  # fmt: skip


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A network, saved in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_FARMS_TRACEBACK", raising=False)
    torch.manual_seed(0)
    network = DPOT(**SMALL)
    save_weights(network, "model.pth")
    torch.save(network.state_dict(), "state.pt")
    return network


def _fails(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["convert", *args])
    return ended.value.code, capsys.readouterr().err


def test_there_and_back(model, capsys):
    main(["convert", "model.pth", "new/model.safetensors"])
    main(["convert", "new/model.safetensors", "back.pth"])
    out, err = capsys.readouterr()
    assert out == ""
    count = sum(parameter.numel() for parameter in model.parameters())
    assert err.splitlines()[0] == "The folder of OUT, 'new', is not there, and will be made."
    assert err.splitlines()[1].startswith(
        f"Written to new/model.safetensors: DPOT of {count:,} parameters in 31 tensors, "
    )
    assert err.splitlines()[2].endswith("modes=1, act=silu")
    back = DPOT.from_checkpoint("back.pth")
    assert back.config == model.config
    torch.testing.assert_close(back.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_existing_file_is_not_replaced_unasked(model, tmp_path, capsys):
    target = tmp_path / "old.pth"
    target.write_text("precious")
    code, err = _fails(capsys, "model.pth", "old.pth")
    assert (code, target.read_text()) == (1, "precious")
    assert "Expected OUT to be a new file, but 'old.pth' exists. Give --overwrite to replace it." in err
    main(["convert", "model.pth", "old.pth", "--overwrite"])
    assert DPOT.from_checkpoint("old.pth").config == model.config


def test_settings_that_the_file_does_not_say(model, capsys):
    code, err = _fails(capsys, "state.pt", "a.safetensors")
    assert code == 1
    assert "Expected --modes and --act to be given, as 'state.pt' does not say" in err
    main(["convert", "state.pt", "a.safetensors", "--modes=1", "--act=silu"])
    assert DPOT.from_checkpoint("a.safetensors").config == model.config


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["none.pth", "a.pth"], 1, "Expected the path to be an existing checkpoint file or a released size ('tiny', "),
        (["model.pth", "a.bin"], 2, "Expected OUT to end in .safetensors or .pth, but got 'a.bin'."),
        (["model.pth"], 2, "OUT"),
        (
            ["model.pth", "a.pth", "--act=sine"],
            2,
            "Expected --act to be one of 'gelu', 'silu', 'relu', 'tanh', but got 'sine'.",
        ),
        (["model.pth", "a.pth", "--modes=0"], 1, "Expected --modes to be an integer of at least 1, but got 0."),
        (["tiny", "a.pth", "--local_files_only", "--cache_dir=empty"], 1, "in the cache, as --local_files_only is set"),
        (["tiny", "a.pth", "--local_files_only", "--cache_dir=empty", "--revision=v1"], 1, "at revision 'v1'"),
    ],
)
def test_mistakes(model, capsys, args, code, message):
    ended, err = _fails(capsys, *args)
    assert ended == code
    assert message in err
    assert "Traceback" not in err


def test_folder_as_target(model, tmp_path, capsys):
    (tmp_path / "folder.pth").mkdir()
    code, err = _fails(capsys, "model.pth", "folder.pth", "--overwrite")
    assert code == 1
    assert "'folder.pth' is a folder." in err


def test_released_size_from_the_cache(model, tmp_path, capsys):
    """Settings that a released file does not say are known."""
    snapshot = tmp_path / "cache/models--hzk17--DPOT/snapshots/0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
    (snapshot / "model_Ti.pth").write_bytes((tmp_path / "state.pt").read_bytes())
    main(["convert", "Ti", "a.safetensors", "--local_files_only", "--cache_dir=cache"])
    config = DPOT.from_checkpoint("a.safetensors").config
    assert (config["modes"], config["act"]) == (32, "gelu")


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", "--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(text in out for text in ("IN OUT [options]", "tiny, small, medium, large,", "--overwrite", "released"))
