"""Normalised, pruned and otherwise parametrised weights are those of the next forward pass."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_farms.analysis import layer_weights, parameter_layers
from lightning_farms.analysis.weights._parametrised import held_weights


def owned(model):
    """Names of the parameters of the model's one weight."""
    (weight,) = layer_weights(model)
    return {name for name, p in model.named_parameters() if any(p is own for own in weight.parameters)}


def test_weight_norm_by_hook():
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)))
    assert [(w.name, w.kind, w.shape, w.matrices.shape) for w in layer_weights(model)] == [
        ("0", "linear", (5, 6), (1, 5, 6))
    ]
    assert owned(model) == {"0.bias", "0.weight_g", "0.weight_v"}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "hook",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda module: prune.l1_unstructured(module, "weight", 0.5)],
    ids=["weight_norm", "spectral_norm", "prune"],
)
@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: nn.Linear(6, 5), (1, 6)),
        (lambda: nn.Conv2d(6, 5, 3), (1, 6, 4, 4)),
        (lambda: nn.ConvTranspose2d(6, 5, 3), (1, 6, 4, 4)),
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_weights_that_a_hook_computes_are_those_of_the_next_forward_pass(hook, make, data):
    model = hook(make())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))  # as an update or load_state_dict does
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (weight,) = layer_weights(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.eval()(torch.zeros(data))
    with torch.no_grad():
        (plain,) = layer_weights(_without_hooks(model))
    torch.testing.assert_close(weight.matrices, plain.matrices)


def _without_hooks(model):
    """A plain module with the weight that the last forward pass used."""
    plain = type(model)(6, 5) if isinstance(model, nn.Linear) else type(model)(6, 5, 3)
    with torch.no_grad():
        plain.weight.copy_(model.weight)
    return plain


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(6, 5, 3), lambda: nn.Bilinear(6, 5, 4)])
def test_parametrised_weights_are_the_effective_ones(wrap, make):
    model = nn.Sequential(wrap(make())).eval()  # in training every look at a spectral_norm changes it
    (weight,) = layer_weights(model)
    assert weight.name == "0"
    assert weight.shape == tuple(model[0].weight.shape)
    with torch.no_grad():
        effective = model[0].weight
    flat = effective if effective.ndim < 4 else effective.permute(2, 3, 0, 1)
    torch.testing.assert_close(weight.matrices, flat.reshape(weight.matrices.shape))
    assert owned(model) == set(dict(model.named_parameters()))
    assert len(owned(model)) >= 2


def test_spectral_norm_buffers_and_mode_survive_the_reading():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(layer_weights(model))
    parameter_layers(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(module.training for module in model.modules())


def test_counters_and_random_numbers_are_those_of_a_training_without_a_reading():
    class Noisy(nn.Module):
        """As fake quantisation with a moving average does, it writes its buffer in evaluation mode, too."""

        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, weight):
            self.seen += 1
            self.seen = 0.9 * self.seen + 0.1 * weight.abs().max()
            return nn.functional.dropout(weight, 0.5) * self.seen

    model = nn.Sequential(nn.Linear(6, 5))
    parametrize.register_parametrization(model[0], "weight", Noisy())
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    list(layer_weights(model))
    list(layer_weights(model, values=False))
    parameter_layers(model)
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    assert torch.equal(torch.get_rng_state(), random)


def test_mode_survives_a_failing_parametrisation():
    class Failing(nn.Module):
        fails = False

        def forward(self, weight):
            if self.fails:
                raise RuntimeError("no weight today\nnor tomorrow")
            return weight

    wrapped, failing = nn.Linear(6, 5), Failing()
    parametrize.register_parametrization(wrapped, "weight", failing)
    failing.fails = True
    model = nn.Sequential(wrapped, nn.Linear(5, 4))
    bad, good = layer_weights(model)
    assert bad.reason == "the weight could not be computed: RuntimeError: no weight today"
    assert (bad.name, bad.kind, good.name, good.reason) == ("0", "linear", "1", "")
    assert all(module.training for module in wrapped.modules())
    assert parameter_layers(model)[wrapped.parametrizations.weight.original] == "0"


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [nn.utils.weight_norm, parametrizations.weight_norm, lambda m, name: prune.random_unstructured(m, name, 0.5)],
    ids=["hook", "parametrisation", "pruning"],
)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.LSTM(4, 3, num_layers=2), "weight_hh_l1"),
        (lambda: nn.MultiheadAttention(8, 2), "in_proj_weight"),
        (lambda: nn.Bilinear(4, 5, 6), "weight"),
    ],
    ids=["recurrent", "attention", "bare"],
)
def test_only_what_a_hook_or_parametrisation_makes_counts(change, make, name):
    torch.manual_seed(0)
    module = make()
    expected = sorted(weight.name for weight in layer_weights(module))
    changed = change(module, name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0)
    found = {weight.name: weight for weight in layer_weights(changed)}
    assert sorted(found) == expected
    held = held_weights(changed)[name]
    rows = [weight for own, weight in found.items() if own.startswith(name)]
    effective = torch.cat([weight.matrices for weight in rows], dim=1 if len(rows) > 1 else 0)
    torch.testing.assert_close(effective.reshape(held.value.shape), held.value.detach())
    for weight in rows:
        assert [p.shape for p in weight.parameters[: len(held.parameters)]] == [p.shape for p in held.parameters]
