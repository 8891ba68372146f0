import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils.flop_counter import FlopCounterMode

from lightning_farms.models import DPOT, DPOTConfig, DPOTOutput
from lightning_farms.models.dpot._layers import TimeAggregation
from tests.models.dpot.plain_dpot import plain_forward

# Shapes and outputs of the released program: reference/other.json, key "dpot"; the recipe that fills the weights too.
_BLOCK = """norm1.weight:E norm1.bias:E filter.w1:2,K,W,W filter.b1:2,K,W filter.w2:2,K,W,W filter.b2:2,K,W
    norm2.weight:E norm2.bias:E mlp.0.weight:H,E,1,1 mlp.0.bias:H mlp.2.weight:E,H,1,1 mlp.2.bias:E"""

CASES = {
    "plain": {
        "config": {
            "img_size": 20, "patch_size": 5, "in_channels": 3, "out_channels": 3, "in_timesteps": 6,
            "out_timesteps": 1, "embed_dim": 32, "depth": 2, "n_blocks": 4, "modes": 32, "mlp_ratio": 1,
            "out_layer_dim": 16, "n_cls": 5, "normalize": False,
        },
        "parameters": 32214,
        "before_blocks": """pos_embed:1,32,4,4 patch_embed.proj.0.weight:18,6,5,5 patch_embed.proj.0.bias:18
            patch_embed.proj.2.weight:32,18,1,1 patch_embed.proj.2.bias:32""",
        "after_blocks": """cls_head.0.weight:32,32 cls_head.0.bias:32 cls_head.2.weight:32,32 cls_head.2.bias:32
            cls_head.4.weight:5,32 cls_head.4.bias:5 time_agg_layer.w:6,32,32 time_agg_layer.gamma:1,32
            out_layer.0.weight:32,16,5,5 out_layer.0.bias:16 out_layer.2.weight:16,16,1,1 out_layer.2.bias:16
            out_layer.4.weight:3,16,1,1 out_layer.4.bias:3""",
        "mean": 0.06973171593221196,
        "norm": 4.852475605074341,
        "head": [-0.012622515, 0.11995579, 0.11156569, 0.011063405, 0.092027985, 0.068233483],
        "tail": [-0.036730811, 0.17295326, 0.15863633, -0.05148888, -0.01723518, 0.20125154],
        "logits": [
            -0.31502241, 0.037548475, 0.1491477, -0.073604204, -0.093465805,
            -0.24618438, -0.021883368, 0.11131433, -0.12044106, -0.026492849,
        ],
    },
    "normalize": {
        "config": {
            "img_size": 32, "patch_size": 4, "in_channels": 4, "out_channels": 4, "in_timesteps": 10,
            "out_timesteps": 2, "embed_dim": 48, "depth": 3, "n_blocks": 6, "modes": 3, "mlp_ratio": 2,
            "out_layer_dim": 8, "n_cls": 12, "normalize": True,
        },
        "parameters": 75559,
        "before_blocks": """pos_embed:1,48,8,8 patch_embed.proj.0.weight:19,7,4,4 patch_embed.proj.0.bias:19
            patch_embed.proj.2.weight:48,19,1,1 patch_embed.proj.2.bias:48""",
        "after_blocks": """scale_feats_mu.weight:48,8 scale_feats_mu.bias:48 scale_feats_sigma.weight:48,8
            scale_feats_sigma.bias:48 cls_head.0.weight:48,48 cls_head.0.bias:48 cls_head.2.weight:48,48
            cls_head.2.bias:48 cls_head.4.weight:12,48 cls_head.4.bias:12 time_agg_layer.w:10,48,48
            time_agg_layer.gamma:1,48 out_layer.0.weight:48,8,4,4 out_layer.0.bias:8 out_layer.2.weight:8,8,1,1
            out_layer.2.bias:8 out_layer.4.weight:8,8,1,1 out_layer.4.bias:8""",
        "mean": -0.027912255503313332,
        "norm": 49.637406824461095,
        "head": [0.3010048, -0.22296669, -0.7085759, 0.22386922, 0.78383839, -0.220734],
        "tail": [-0.44433042, 0.16334794, 0.41782582, 0.040374421, -0.18062016, 0.039388809],
        "logits": [
            -0.67229474, 0.24559383, -0.90275383, -0.17460208, 0.16111124, -0.042883784,
            0.031916887, -0.10760503, -0.39332858, -0.2438899, 0.35880801, -0.099948481,
            -0.62000519, 0.22712606, -0.86666673, -0.2030333, 0.17648593, -0.020637214,
            0.037564285, -0.11001161, -0.39309517, -0.24298128, 0.38410902, -0.082612641,
        ],
    },
    "mlp_silu": {
        "config": {
            "img_size": 24, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 4,
            "out_timesteps": 1, "embed_dim": 16, "depth": 1, "n_blocks": 2, "modes": 8, "mlp_ratio": 1,
            "out_layer_dim": 8, "n_cls": 3, "normalize": False, "time_agg": "mlp", "act": "silu",
        },
        "parameters": 6608,
        "before_blocks": """pos_embed:1,16,6,6 patch_embed.proj.0.weight:11,5,4,4 patch_embed.proj.0.bias:11
            patch_embed.proj.2.weight:16,11,1,1 patch_embed.proj.2.bias:16""",
        "after_blocks": """cls_head.0.weight:16,16 cls_head.0.bias:16 cls_head.2.weight:16,16 cls_head.2.bias:16
            cls_head.4.weight:3,16 cls_head.4.bias:3 time_agg_layer.w:4,16,16 out_layer.0.weight:16,8,4,4
            out_layer.0.bias:8 out_layer.2.weight:8,8,1,1 out_layer.2.bias:8 out_layer.4.weight:2,8,1,1
            out_layer.4.bias:2""",
        "mean": -0.03472342895211492,
        "norm": 5.236163566404441,
        "head": [0.037542947, -0.17895918, 0.25176325, -0.0060537239, 0.026229259, -0.058841638],
        "tail": [-0.061310019, -0.15136831, 0.017198572, -0.12351955, -0.12129784, -0.14032198],
        "logits": [-0.14971067, -0.046781123, -0.044335831, -0.13601029, -0.048684902, -0.064529471],
    },
}  # fmt: skip

SMALL = {
    "img_size": 8, "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 3, "embed_dim": 8,
    "depth": 2, "n_blocks": 2, "modes": 2, "out_layer_dim": 4, "n_cls": 3,
}  # fmt: skip


def _expected_shapes(case):
    config = case["config"]
    embed_dim, blocks = config["embed_dim"], config["n_blocks"]
    sizes = {"E": embed_dim, "K": blocks, "W": embed_dim // blocks, "H": embed_dim * config["mlp_ratio"]}
    entries = case["before_blocks"].split()
    entries += [f"blocks.{index}.{entry}" for index in range(config["depth"]) for entry in _BLOCK.split()]
    entries += case["after_blocks"].split()
    named = (entry.split(":") for entry in entries)
    return [(name, tuple(sizes.get(size) or int(size) for size in shape.split(","))) for name, shape in named]


def _fill(model):
    """Give every tensor the reference's values: entry k of the names in order from RandomState(100 + k)."""
    filled = {}
    for index, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        values = np.random.RandomState(100 + index).standard_normal(tensor.shape)
        if tensor.ndim > 1:
            values = values / np.sqrt(np.prod(tensor.shape[1:]))
        else:
            values = 0.1 * values + name.endswith(("norm1.weight", "norm2.weight"))
        filled[name] = torch.from_numpy(values).float()
    model.load_state_dict(filled)
    return model


def _reference_input(config):
    size = config["img_size"]
    shape = (2, *(size if isinstance(size, tuple) else (size, size)), config["in_timesteps"], config["in_channels"])
    return torch.from_numpy(np.random.RandomState(50).standard_normal(shape)).float()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_state_dict_names_shapes_and_order_are_the_reference(case):
    model = DPOT(**case["config"])
    assert [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()] == _expected_shapes(case)
    assert sum(parameter.numel() for parameter in model.parameters()) == case["parameters"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_are_the_reference(case):
    config = case["config"]
    model = _fill(DPOT(**config))
    with torch.no_grad():
        prediction, logits = model(_reference_input(config))
    assert prediction.shape == (2, *prediction.shape[2:0:-1], config["out_timesteps"], config["out_channels"])
    flat = prediction.double().flatten()
    for got, expected in (
        (flat.mean(), case["mean"]),
        (flat.norm(), case["norm"]),
        (flat[:6], case["head"]),
        (flat[-6:], case["tail"]),
        (logits.flatten().double(), case["logits"]),
    ):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


# Sizes of the released networks: reference/other.json, key "dpot_released_sizes".
@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        ({}, 7_534_643, 67),
        ({"embed_dim": 1024, "depth": 6, "n_blocks": 8}, 30_801_459, 91),
        ({"embed_dim": 1024, "depth": 12, "n_blocks": 8, "mlp_ratio": 4}, 122_125_875, 163),
    ],
    ids=["tiny", "small", "medium"],
)
def test_released_sizes(config, parameters, tensors):
    with torch.device("meta"):
        model = DPOT(**config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors


@pytest.mark.parametrize(
    "config",
    [
        *(case["config"] for case in CASES.values()),
        {**CASES["plain"]["config"], "img_size": (10, 25)},
        {**CASES["normalize"]["config"], "img_size": (32, 12)},  # 3 modes of 8 rows and 3 columns
    ],
    ids=[*CASES, "wide", "high"],
)
def test_outputs_and_gradients_equal_the_plain_formulation(config):
    model = _fill(DPOT(**config)).double()
    x = _reference_input(config).double()
    results = []
    for forward in (model, lambda frames: plain_forward(model, frames)):
        model.zero_grad()
        frames = x.clone().requires_grad_()
        prediction, logits = forward(frames)
        (prediction.square().sum() + logits.square().sum()).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((prediction.detach(), logits.detach(), frames.grad, gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    assert all(gradient.abs().max() > 0 for gradient in results[0][3].values())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float32_gradients_are_those_of_float64(case):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        model = _fill(DPOT(**case["config"])).to(dtype)
        prediction, logits = model(_reference_input(case["config"]).to(dtype))
        (prediction.square().sum() + logits.square().sum()).backward()
        gradients.append({name: parameter.grad.double() for name, parameter in model.named_parameters()})
    for name, exact in gradients[1].items():
        assert (gradients[0][name] - exact).norm() < 1e-5 * exact.norm(), name


def test_tiny_takes_no_more_products_than_counted_by_hand():
    """Multiplications of a forward pass: full width is reached once for all frames, few frequencies are computed."""
    batch, frames, patches, pixels = 4, 10, 16 * 16, 128 * 128
    hidden, width, out = 4 * 8 + 3, 512, 32
    stem = batch * patches * frames * (4 * 8 * 8) * hidden + batch * patches * frames * hidden * width
    once = 2 * 16 * 8 * hidden + frames * (hidden + 1) * width**2 + patches * width**2  # coordinates, fold, positions
    transforms = 2 * batch * width * (16 * 18 * 16 + 9 * 32 * 32)
    block = transforms + 2 * batch * (16 * 9) * 4 * 256**2 + 2 * batch * patches * width**2
    head = batch * (2 * width**2 + width * 12)
    painting = batch * patches * width * 8 * 8 * out + batch * pixels * out * (out + 4)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        DPOT()(torch.zeros(batch, 128, 128, frames, 4))
    assert counter.get_total_flops() == 2 * (stem + once + 4 * block + head + painting)


def test_normalised_network_is_equivariant_to_units():
    """Standardised input: with features modulated by a constant, a y = s x + m gives a prediction s y + m."""
    model = _fill(DPOT(**SMALL, normalize=True)).double()
    for layer in (model.scale_feats_mu, model.scale_feats_sigma):
        layer.weight.data.zero_()
    x = _reference_input(SMALL).double()
    shift, scale = torch.tensor([3.0, -1.0]).double(), torch.tensor([5.0, 0.5]).double()
    expected = model(x).prediction * scale + shift
    torch.testing.assert_close(model(x * scale + shift).prediction, expected, rtol=1e-4, atol=1e-5)


def test_time_aggregation_equals_its_sum():
    torch.manual_seed(0)
    layer = TimeAggregation(4, 8).double()
    features = torch.randn(2, 4, 8, 3, 5, dtype=torch.float64)
    w, gamma, x = layer.w.detach().numpy(), layer.gamma.detach().numpy()[0], features.numpy()
    expected = np.zeros((2, 8, 3, 5))
    for t in range(4):
        for i in range(8):
            for j in range(8):
                expected[:, j] += w[t, i, j] * math.cos(t / 3 * gamma[i]) * x[:, t, i]
    torch.testing.assert_close(layer(features).detach(), torch.from_numpy(expected))


def test_initial_values():
    torch.manual_seed(0)
    model = DPOT(embed_dim=64)
    gamma = model.time_agg_layer.gamma
    assert gamma[0, 0].item() == 2**-10
    assert gamma[0, -1].item() == 2**10
    ratios = gamma[0, 1:] / gamma[0, :-1]
    torch.testing.assert_close(ratios, torch.full((63,), 2 ** (20 / 63)))
    assert model.time_agg_layer.w.std().item() == pytest.approx(1 / (10 * 8), rel=0.02)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("normalize", [False, True])
def test_trains_under_bfloat16_autocast(normalize):
    torch.manual_seed(0)
    model = DPOT(**SMALL, normalize=normalize)
    x = _reference_input(SMALL)
    target = torch.stack([x[..., -1, 0] * 0.5, x[..., -1, 1]], dim=-1).unsqueeze(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction, logits = model(x)
            loss = (prediction - target).square().mean() + 0.0 * logits.sum()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_bfloat16_autocast_stays_close_to_float32():
    model = _fill(DPOT(**SMALL))
    x = _reference_input(SMALL)
    with torch.no_grad():
        expected = model(x).prediction
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = model(x).prediction.float()
    assert (prediction - expected).norm() < 0.03 * expected.norm()


def test_bfloat16_parameters_stay_close_to_float32():
    model = _fill(DPOT(**SMALL))
    x = _reference_input(SMALL)
    with torch.no_grad():
        expected = model(x).prediction
        prediction = model.bfloat16()(x.bfloat16()).prediction
    assert prediction.dtype == torch.bfloat16
    assert (prediction.float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own use
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph(backend):
    model = _fill(DPOT(**SMALL, normalize=True))
    x = _reference_input(SMALL)
    results = []
    for forward in (model, torch.compile(model, backend=backend, fullgraph=True)):
        model.zero_grad()
        prediction, logits = forward(x)
        (prediction.square().sum() + logits.square().sum()).backward()
        results.append((prediction.detach(), logits.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_copies_and_pickles_compute_the_same():
    model = _fill(DPOT(**SMALL))
    x = _reference_input(SMALL)
    expected = model(x).prediction
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x).prediction, expected)


def test_input_is_not_changed_and_repeats_give_the_same():
    model = DPOT(**SMALL, normalize=True)
    x = _reference_input(SMALL)
    before = x.clone()
    first, second = model(x), model(x)
    assert isinstance(first, DPOTOutput)
    assert torch.equal(x, before)
    assert torch.equal(first.prediction, second.prediction)


def test_config_rebuilds_the_network_and_is_a_copy():
    model = DPOT(**SMALL, normalize=True, time_agg="mlp", act="silu")
    twin = DPOT(**model.config)
    twin.load_state_dict(model.state_dict())
    x = _reference_input(SMALL)
    assert torch.equal(twin(x).prediction, model(x).prediction)
    model.config["depth"] = 7
    assert copy.deepcopy(model).config == twin.config


def test_config_type_lists_the_arguments():
    parameters = inspect.signature(DPOT).parameters
    assert list(DPOTConfig.__annotations__) == list(parameters)
    assert DPOT(**SMALL).config == {name: SMALL.get(name, p.default) for name, p in parameters.items()}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"img_size": 10}, ValueError, "`img_size` to be a multiple of `patch_size`, but got 10 and 4"),
        ({"img_size": (8, 10)}, ValueError, r"`img_size` to be a multiple of `patch_size`, but got \(8, 10\) and 4"),
        ({"img_size": (8, 8, 4)}, ValueError, r"`img_size` to be one number, or two \(along x, y\), but got"),
        ({"img_size": (0, 8)}, ValueError, r"`img_size\[0\]` to be an integer of at least 1, but got 0"),
        ({"img_size": [8, "4"]}, TypeError, r"`img_size\[1\]` to be an integer, but got '4'"),
        ({"embed_dim": 12}, ValueError, "`embed_dim` to be a multiple of the 8 groups .*, but got 12 and 8"),
        ({"n_blocks": 3}, ValueError, "`embed_dim` to be a multiple of `n_blocks`, but got 8 and 3"),
        ({"out_channels": 3, "normalize": True}, ValueError, "`out_channels` to equal `in_channels` with normalize"),
        ({"depth": 0}, ValueError, "`depth` to be an integer of at least 1, but got 0"),
        ({"modes": 2.5}, TypeError, "`modes` to be an integer, but got 2.5"),
        ({"mlp_ratio": 0.0}, ValueError, "`mlp_ratio` to be at least 1 / embed_dim, but got 0.0"),
        ({"mlp_ratio": float("nan")}, ValueError, "`mlp_ratio` to be .*, but got nan"),
        ({"mlp_ratio": "2"}, TypeError, "`mlp_ratio` to be a number, but got '2'"),
        ({"normalize": 1}, TypeError, "`normalize` to be True or False, but got 1"),
        ({"time_agg": "conv"}, ValueError, "`time_agg` to be 'exp_mlp' or 'mlp', but got 'conv'"),
        ({"act": "cube"}, ValueError, "`act` to be one of .*, but got 'cube'"),
    ],
)
def test_wrong_settings_are_refused(changed, error, message):
    with pytest.raises(error, match=message):
        DPOT(**(SMALL | changed))


@pytest.mark.parametrize("shape", [(8, 8, 3, 2), (1, 8, 8, 2, 2), (1, 8, 8, 3, 4), (1, 16, 16, 3, 2), (1, 2, 3, 8, 8)])
def test_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch, 8, 8, 3, 2\), but got \(" + ", ".join(map(str, shape))):
        DPOT(**SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("normalize", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore:std_mean"))])
def test_no_flows_have_no_predictions(normalize):
    network = DPOT(img_size=8, patch_size=4, embed_dim=8, depth=1, n_blocks=2, out_layer_dim=4, normalize=normalize)
    output = network(torch.zeros(0, 8, 8, 10, 4))
    assert output.prediction.shape == (0, 8, 8, 1, 4)
    assert output.logits.shape == (0, 12)


def test_fields_that_are_not_square():
    model = DPOT(**SMALL | {"img_size": [8, 12]})
    assert model.config["img_size"] == (8, 12)
    assert DPOT(**SMALL | {"img_size": (8, 8)}).config == DPOT(**SMALL).config
    assert model(torch.zeros(1, 8, 12, 3, 2)).prediction.shape[:3] == (1, 8, 12)
    with pytest.raises(ValueError, match=r"\(batch, 8, 12, 3, 2\), but got \(1, 12, 8, 3, 2\)"):
        model(torch.zeros(1, 12, 8, 3, 2))


def test_integer_input_is_refused():
    with pytest.raises(TypeError, match=r"floating-point tensor, but got dtype torch\.int64"):
        DPOT(**SMALL)(torch.zeros(1, 8, 8, 3, 2, dtype=torch.int64))


def test_command_line_builds_the_network():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=torch.nn.Module)
    given = ["--network=lightning_farms.models.DPOT", "--network.embed_dim=16", "--network.act=silu"]
    given += ["--network.img_size=[16, 32]"]
    network = parser.instantiate(parser.parse_args(given)).network
    assert isinstance(network, DPOT)
    assert (network.config["embed_dim"], network.config["act"], network.img_size) == (16, "silu", (16, 32))
    with pytest.raises(Exception, match="act"):
        parser.parse_args([*given, "--network.act=cube"])
