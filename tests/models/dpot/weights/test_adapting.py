import numpy as np
import pytest
import torch

from lightning_farms.models import DPOT
from lightning_farms.models.dpot.weights.adapting import adapt_tensors

SMALL = {
    "img_size": 8, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 3, "embed_dim": 16,
    "depth": 2, "n_blocks": 2, "modes": 2, "out_layer_dim": 4, "n_cls": 3,
}  # fmt: skip
GIVEN = 5  # frames and channels of the largest input


def _model(seed=0, **changes):
    torch.manual_seed(seed)
    return DPOT(**(SMALL | changes))


def _adapted(model, **changes):
    """The network of other sizes, with everything that fits, and what was done."""
    other = _model(seed=1, **model.config | changes)
    adapted = adapt_tensors(model.state_dict(), model.config, other.config)
    other.load_state_dict(adapted.tensors, strict=not adapted.left_out)
    return other, adapted


def _fields(frames, channels):
    return torch.randn(2, 8, 8, frames, channels, generator=torch.Generator().manual_seed(2))


def _cubic(distance, a=-0.75):
    """Cubic convolution kernel of Keys (1981), with the parameter that PyTorch documents."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def _interpolation(old, new):
    """Matrix (new, old) that resamples cell averages on the same interval, the outermost ones repeated beyond it."""
    matrix = np.zeros((new, old))
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[row, min(max(tap, 0), old - 1)] += _cubic(place - tap)
    return matrix


@pytest.mark.parametrize(("old", "new"), [(16, 8), (4, 6), (5, 16), (3, 1), (1, 4)])
@pytest.mark.parametrize("wider", [0, 3])
def test_positions_are_resized_bicubically(old, new, wider):
    config = DPOT(**SMALL).config | {"patch_size": 1}
    positions = torch.randn(1, 3, old, old)
    size = (new, new + wider) if wider else new
    adapted = adapt_tensors({"pos_embed": positions}, config | {"img_size": old}, config | {"img_size": size})
    expected = _interpolation(old, new) @ positions.double().numpy() @ _interpolation(old, new + wider).T
    np.testing.assert_allclose(adapted.tensors["pos_embed"], expected, rtol=0, atol=1e-5)
    assert adapted.changes == {"pos_embed": f"{old} x {old} patches resized bicubically to {new} x {new + wider}"}


def test_positions_constants_and_ramps():
    config = DPOT(**SMALL).config | {"patch_size": 1}
    ramp = (torch.arange(16) + 0.5) / 16
    positions = torch.stack((torch.ones(16, 16), ramp.expand(16, 16), ramp[:, None].expand(16, 16)))[None]
    adapted = adapt_tensors({"pos_embed": positions}, config | {"img_size": 16}, config | {"img_size": 24})
    constant, columns, rows = adapted.tensors["pos_embed"][0]
    torch.testing.assert_close(constant, torch.ones(24, 24))
    finer = (torch.arange(24) + 0.5) / 24
    # with a = -0.75 ramps come out with ripples of some hundredths of a cell's step (with a = -0.5 they would be exact)
    torch.testing.assert_close(columns[:, 3:-3], finer[3:-3].expand(24, 18), rtol=0, atol=0.05 / 16)
    torch.testing.assert_close(rows, columns.T)


@pytest.mark.parametrize("changes", [{}, {"normalize": True}, {"time_agg": "mlp"}])
def test_equal_sizes_are_left_alone(changes):
    model = _model(**changes)
    state = model.state_dict()
    adapted = adapt_tensors(state, model.config, model.config)
    assert (adapted.changes, adapted.left_out) == ({}, {})
    assert all(adapted.tensors[name] is tensor for name, tensor in state.items())


def _newest(x, frames):
    return x[:, :, :, -frames:]


def _with_ones(x, channels):
    return torch.cat((x, torch.ones(*x.shape[:-1], channels - x.shape[-1])), dim=-1)


def _without_time(model):
    """Make the stem blind to the time coordinate."""
    with torch.no_grad():
        model.patch_embed.proj[0].weight[:, -1] = 0


def _smooth_in_time(model):
    """Keep the cosines of the time aggregation away from zero."""
    with torch.no_grad():
        model.time_agg_layer.gamma.clamp_(max=1.2)


def _few_units(model):
    """Let all but the 11 hidden units of two output channels be silent."""
    with torch.no_grad():
        model.patch_embed.proj[2].weight[:, [0, *range(4, 7)]] = 0


# what is built, made, asked for; how the old network is to be given an input of the new sizes, and what of its
# prediction is to be found in the new one's
SAME_FUNCTION = {
    "more_frames": (
        {"time_agg": "mlp"}, None, {"in_timesteps": 5}, lambda x: _newest(x, 3), lambda y: y,
    ),
    "more_frames_cosine": ({}, _smooth_in_time, {"in_timesteps": 5}, lambda x: _newest(x, 3), lambda y: y),
    "from_one_frame": (
        {"in_timesteps": 1}, _smooth_in_time, {"in_timesteps": 3}, lambda x: _newest(x, 1), lambda y: y,
    ),
    "fewer_frames": (
        {"time_agg": "mlp"}, _without_time, {"in_timesteps": 2},
        lambda x: torch.cat((x[:, :, :, :1], x), dim=3), lambda y: y,
    ),
    "fewer_frames_cosine": (
        {"in_timesteps": 4}, lambda m: (_without_time(m), _smooth_in_time(m)), {"in_timesteps": 2},
        lambda x: x[:, :, :, [0, 0, 0, 1]], lambda y: y,
    ),
    "one_frame": (
        {"in_timesteps": 3}, _without_time, {"in_timesteps": 1}, lambda x: x.expand(-1, -1, -1, 3, -1), lambda y: y,
    ),
    "more_channels": ({}, None, {"in_channels": 5}, lambda x: x[..., :2], lambda y: y),
    "fewer_channels": ({"in_channels": 4}, None, {"in_channels": 2}, lambda x: _with_ones(x, 4), lambda y: y),
    "more_predicted": (
        {}, None, {"out_channels": 4}, lambda x: x,
        lambda y: torch.cat((y, torch.zeros_like(y)), dim=-1),
    ),
    "fewer_predicted": ({"out_channels": 3}, _few_units, {"out_channels": 2}, lambda x: x, lambda y: y[..., :2]),
    "more_frames_predicted": (
        {"out_timesteps": 2}, None, {"out_timesteps": 4}, lambda x: x, lambda y: y[:, :, :, [0, 1, 1, 1]],
    ),
    "fewer_frames_predicted": (
        {"out_timesteps": 3}, None, {"out_timesteps": 2}, lambda x: x, lambda y: y[:, :, :, :2],
    ),
    "normalize_fewer_channels": (
        {"normalize": True, "in_channels": 3, "out_channels": 3}, _few_units, {"in_channels": 2, "out_channels": 2},
        lambda x: _with_ones(x, 3), lambda y: y[..., :2],
    ),
    "classes": ({}, None, {"n_cls": 7}, lambda x: x, lambda y: y),
    "all_at_once": (
        {"time_agg": "mlp"}, None,
        {"in_timesteps": 5, "in_channels": 3, "out_channels": 3, "out_timesteps": 2, "n_cls": 1},
        lambda x: _newest(x, 3)[..., :2],
        lambda y: torch.cat((y, torch.zeros_like(y[..., :1])), dim=-1).expand(-1, -1, -1, 2, -1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME_FUNCTION.values(), ids=SAME_FUNCTION)
def test_function_is_kept(case):
    built, prepare, asked, given, expected = case
    model = _model(**built)
    if prepare is not None:
        prepare(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other, adapted = _adapted(model, **asked)
    x = _fields(other.in_timesteps, other.in_channels)
    torch.testing.assert_close(other(x).prediction, expected(model(given(x)).prediction), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert not adapted.changes.keys() & adapted.left_out.keys()


def test_normalised_statistics_of_new_channels_have_no_weight():
    model = _model(normalize=True)
    other, _ = _adapted(model, in_channels=3, out_channels=3)
    x = _fields(3, 3)
    statistics = torch.cat((x.mean((1, 2, 3)), x.std((1, 2, 3))), dim=1)
    for name in ("scale_feats_mu", "scale_feats_sigma"):
        new, old = getattr(other, name), getattr(model, name)
        torch.testing.assert_close(new(statistics), old(statistics[:, [0, 1, 3, 4]]))


def test_cosines_near_zero_are_not_divided_by():
    model = _model(embed_dim=64, in_timesteps=4)
    other, _ = _adapted(model, in_timesteps=6)
    cosines = torch.cos(torch.linspace(0, 1, 6)[:, None] * other.time_agg_layer.gamma)[2:]
    attenuation = (cosines.abs() / 0.1).clamp(max=1)[..., None]
    assert 0.01 < (attenuation < 1).float().mean() < 0.1
    kernel = other.time_agg_layer.kernel()
    torch.testing.assert_close(kernel[2:], attenuation * model.time_agg_layer.kernel(), rtol=1e-3, atol=1e-5)
    assert not kernel[:2].any()


def test_strongest_hidden_units_are_kept():
    model = _model(out_channels=3)
    first, second = model.patch_embed.proj[0], model.patch_embed.proj[2]
    weak = [1, 5, 8, 14]
    with torch.no_grad():
        first.weight[weak[:2]] = 0
        first.bias[weak[:2]] = 0
        second.weight[:, weak[2:]] *= 1e-3
    other, adapted = _adapted(model, out_channels=2)
    kept = [unit for unit in range(15) if unit not in weak]
    assert torch.equal(other.patch_embed.proj[0].weight, first.weight[kept])
    assert torch.equal(other.patch_embed.proj[2].weight, second.weight[:, kept])
    assert adapted.changes["patch_embed.proj.2.weight"] == "15 -> 11 hidden units: the strongest are kept"


def test_what_is_added_learns():
    model = _model()
    other, _ = _adapted(model, in_timesteps=5, in_channels=4, out_channels=4, out_timesteps=2)
    other(_fields(5, 4)).prediction.square().sum().backward()
    stem, following = other.patch_embed.proj[0], other.patch_embed.proj[2]
    head = other.out_layer[4].weight.grad.unflatten(0, (2, 4))
    new_parts = [
        stem.weight.grad[:11, 2:4], following.weight.grad[:, 11:], other.time_agg_layer.w.grad[:2], head[1, :2],
    ]  # fmt: skip
    assert all(part.abs().amax() > 0 for part in new_parts)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"img_size": 12}, {"pos_embed"}),
        ({"in_timesteps": 4}, {"time_agg_layer.w", "patch_embed.proj.0.weight", "patch_embed.proj.0.bias"}),
        ({"in_channels": 3}, {"patch_embed.proj.0.weight"}),
        ({"in_channels": 1}, {"patch_embed.proj.0.weight", "patch_embed.proj.0.bias"}),
        ({"out_timesteps": 2}, {"out_layer.4.weight", "out_layer.4.bias"}),
        ({"n_cls": 4}, set()),
    ],
)
def test_only_what_must_be_is_changed(changes, names):
    model = _model()
    _, adapted = _adapted(model, **changes)
    assert set(adapted.changes) == names
    assert all(adapted.tensors[name] is tensor for name, tensor in adapted.tensors.items() if name not in names)
    assert set(adapted.left_out) == ({"cls_head.4.weight", "cls_head.4.bias"} if "n_cls" in changes else set())


@pytest.mark.parametrize("saved", [False, True])
def test_normalisation_in_one_only(saved):
    model = _model(normalize=saved)
    adapted = adapt_tensors(model.state_dict(), model.config, model.config | {"normalize": not saved})
    assert len(adapted.left_out) == 4
    assert set(adapted.left_out.values()) == {f"normalize={saved} in the file, {not saved} in the model"}
    assert not any(name.startswith("scale_feats") for name in adapted.tensors)


def test_half_precision_is_adapted_in_single():
    model = _model().bfloat16()
    adapted = adapt_tensors(model.state_dict(), model.config, model.config | {"img_size": 16, "in_timesteps": 5})
    assert {adapted.tensors[name].dtype for name in adapted.changes} == {torch.float32}
