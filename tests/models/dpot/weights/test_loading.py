import copy
import pickle

import pytest
import torch

from lightning_farms.models import DPOT, LoadReport, load_weights, save_weights

SMALL = {
    "img_size": 8, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 3, "embed_dim": 8,
    "depth": 2, "n_blocks": 2, "modes": 1, "out_layer_dim": 4, "n_cls": 3,
}  # fmt: skip
PREFIXES = {
    "patch_embed": ("patch_embed.",),
    "pos_embed": ("pos_embed",),
    "blocks": ("blocks.",),
    "time_agg": ("time_agg_layer.",),
    "scale_feats": ("scale_feats_mu.", "scale_feats_sigma."),
    "cls_head": ("cls_head.",),
    "out": ("out_layer.",),
}


def _model(seed=0, **changes):
    torch.manual_seed(seed)
    return DPOT(**(SMALL | changes))


def _components(names):
    return {component for component, prefixes in PREFIXES.items() for name in names if name.startswith(prefixes)}


def _state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def saved(tmp_path):
    """A file and the network in it, with all components."""
    model = _model(normalize=True)
    save_weights(model, tmp_path / "model.pth")
    return tmp_path / "model.pth", model


def test_everything_is_reported(saved):
    path, model = saved
    other = _model(seed=1, normalize=True)
    report = load_weights(other, path)
    assert report == LoadReport(str(path), tuple(model.state_dict()), {}, {}, {})
    torch.testing.assert_close(_state(other), _state(model), rtol=0, atol=0)
    assert str(report) == (
        f"{path}: 47 tensors loaded, 0 adapted, 0 left at their initial values\n"
        "  loaded: pos_embed, patch_embed, blocks, scale_feats, cls_head, time_agg, out"
    )


@pytest.mark.parametrize("components", [*([name] for name in PREFIXES), ["blocks", "out"], list(PREFIXES)], ids=str)
def test_chosen_components(saved, components):
    path, model = saved
    other = _model(seed=1, normalize=True)
    before = _state(other)
    report = load_weights(other, path, components=components)
    prefixes = tuple(prefix for name in components for prefix in PREFIXES[name])
    for name, tensor in other.state_dict().items():
        chosen = name.startswith(prefixes)
        assert torch.equal(tensor, (model.state_dict() if chosen else before)[name])
        assert (name in report.loaded) == chosen
        assert (report.skipped.get(name) == "not among the components asked for") == (not chosen)
    assert report.unused == report.skipped


def test_chosen_components_from_a_network_of_other_sizes(saved):
    path, model = saved
    other = _model(seed=1, img_size=16, in_channels=5, in_timesteps=7, out_layer_dim=2)
    report = load_weights(other, path, components=["blocks"])
    assert torch.equal(other.blocks[1].mlp[0].weight, model.blocks[1].mlp[0].weight)
    assert _components(report.loaded) == {"blocks"}
    assert _components(report.skipped) == set(PREFIXES) - {"blocks", "scale_feats"}
    assert _components(report.unused) == set(PREFIXES) - {"blocks"}
    assert "  initial values: pos_embed, patch_embed, cls_head, time_agg, out (not among the components" in str(report)


def test_adapting_is_reported(saved):
    path, _ = saved
    other = _model(seed=1, img_size=16, n_cls=5)
    before = _state(other)
    report = load_weights(other, path, adapt=True)
    assert report.adapted == {"pos_embed": "2 x 2 patches resized bicubically to 4 x 4"}
    assert set(report.skipped) == {"cls_head.4.weight", "cls_head.4.bias"}
    assert all(torch.equal(other.state_dict()[name], before[name]) for name in report.skipped)
    assert str(report).splitlines()[2:] == [
        "  adapted: pos_embed (2 x 2 patches resized bicubically to 4 x 4)",
        "  initial values: cls_head.4.weight, cls_head.4.bias (3 classes in the file, 5 in the model)",
        "  in the file only: scale_feats_mu.weight, scale_feats_mu.bias, scale_feats_sigma.weight, "
        "scale_feats_sigma.bias (normalize=True in the file, False in the model)",
    ]
    assert set(report.loaded) | set(report.adapted) | set(report.skipped) == set(other.state_dict())


def test_adapting_chosen_components(saved):
    path, _ = saved
    other = _model(seed=1, img_size=16, normalize=True, in_timesteps=5)
    report = load_weights(other, path, components=["pos_embed", "blocks"], adapt=True)
    assert set(report.adapted) == {"pos_embed"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 16}, r"of other shape \(pos_embed: \(1, 8, 2, 2\) in the file, \(1, 16, 2, 2\) in the model"),
        ({"depth": 3}, r"12 missing from the file \(blocks\.2\.norm1\.weight"),
        ({"time_agg": "mlp", "in_timesteps": 4}, r"1 unknown to the model \(time_agg_layer\.gamma\)"),
        ({"patch_size": 2}, r"of other shape \(patch_embed\.proj\.0\.weight"),
        ({"out_layer_dim": 8, "out_channels": 3, "in_channels": 3}, r"of other shape \(out_layer\.0\.weight"),
    ],
)
def test_what_cannot_be_adapted_is_refused(saved, changes, message):
    other = _model(seed=1, normalize=True, **changes)
    before = _state(other)
    with pytest.raises(ValueError, match=message):
        load_weights(other, saved[0], adapt=True)
    torch.testing.assert_close(_state(other), before, rtol=0, atol=0)


@pytest.mark.parametrize("components", [["time_agg_layer"], ["blocks", "head"], [], "blocks"])
def test_wrong_components(saved, components):
    with pytest.raises(ValueError, match="`components` to be a list of one or more of patch_embed, pos_embed, blocks"):
        load_weights(_model(normalize=True), saved[0], components=components)


def test_incomplete_component(tmp_path):
    state = _state(_model())
    del state["blocks.1.norm2.bias"]
    torch.save({"model": state, "args": None}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"1 missing from the file \(blocks\.1\.norm2\.bias\)"):
        load_weights(_model(), tmp_path / "model.pth", components=["blocks"])
    assert len(load_weights(_model(), tmp_path / "model.pth", components=["out"]).loaded) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weight: (100 * weight).to(torch.int8),
            r"tensors are of another kind: blocks\.1\.mlp\.2\.weight \(int8\)",
        ),
        (lambda weight: weight.to(torch.float8_e4m3fn), r"of another kind: .* \(float8_e4m3fn\)"),
        (lambda weight: weight.to(torch.complex64), r"of another kind: .* \(complex64\)"),
        (lambda weight: 1e300 * weight.double(), "to be finite, but these tensors"),
    ],
)
def test_numbers_that_are_no_weights_of_the_model(tmp_path, change, message):
    model = _model()
    state = _state(model)
    state["blocks.1.mlp.2.weight"] = change(state["blocks.1.mlp.2.weight"])
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(model, tmp_path / "model.pth")


@pytest.mark.parametrize(("modes", "warned"), [(2, False), (32, False), (1, True)])
def test_modes_beyond_the_grid_are_the_same(tmp_path, modes, warned, recwarn):
    save_weights(_model(modes=8), tmp_path / "model.pth")
    load_weights(_model(modes=modes), tmp_path / "model.pth")
    assert [str(warning.message)[-50:] for warning in recwarn] == (
        ["modes=8, but the model was built with modes=1."[-50:]] if warned else []
    ) or (warned and len(recwarn) == 1)


def test_unknown_file_or_name():
    with pytest.raises(FileNotFoundError, match=r"or a released size \('tiny', .*'huge'\), but got 'tinny'"):
        load_weights(_model(), "tinny")


def test_report_can_be_copied_and_pickled(saved):
    report = load_weights(_model(normalize=True), saved[0])
    assert copy.deepcopy(report) == report == pickle.loads(pickle.dumps(report))
