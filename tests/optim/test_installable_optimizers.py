"""Every optimizer that can be installed uses layer-wise rates bit for bit, or is refused or found out with a reason."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

import lightning_farms.optim
from lightning_farms.optim import LayerwiseScaling
from tests.optim.installable import PACKAGES, classes
from tests.optim.optimizer_table import row, section

CARD = Path(lightning_farms.optim.__file__).with_name("README.md").read_text(encoding="utf-8")
ORDINARY = ("torch.optim", "transformers.optimization")
pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own


def installed(package):
    return importlib.util.find_spec(package.partition(".")[0]) is not None


@pytest.mark.parametrize("package", ORDINARY)
def test_optimizers_that_are_there_anyway(package):
    if not installed(package):
        pytest.skip("not installed")
    verdicts = {name: row(package, name, kind)[0] for name, kind in classes(package)}
    expected = dict.fromkeys(verdicts, "equal")
    if package == "torch.optim":
        expected |= {"LBFGS": "refused", "Rprop": "found out"}
    assert verdicts == expected


class OnlyPlain(torch.optim.Optimizer):
    """Tells our groups from dictionaries, as no optimizer should."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] * (1.0 if type(group) is dict else 1.25))


def test_the_comparison_can_fail():
    verdict, reason = row("none", "OnlyPlain", OnlyPlain)
    assert (verdict, reason) == ("different", "same partition: parameters")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of the larger packages: more than the usual limit on a busy machine
@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_of_the_card_is_what_comes_out(package):
    if not installed(package):
        pytest.skip("not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = section(package)
    verdicts = [line.split(" | ")[1] for line in lines if line.startswith("| `")]
    assert set(verdicts) <= {"refused", "found out", "not tried"}
    assert "\n".join(lines).strip() in CARD


@pytest.mark.slow
def test_opacus_private_optimizer_is_scaled_through_the_one_inside():
    opacus = pytest.importorskip("opacus")
    net = torch.nn.Linear(2, 2)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 2)), batch_size=2)
    module, private, _ = opacus.PrivacyEngine().make_private(
        module=net, optimizer=inner, data_loader=data, noise_multiplier=0.0, max_grad_norm=1e6
    )
    before = [p.detach().clone() for p in net.parameters()]
    with LayerwiseScaling(private, {net.weight: "weight", net.bias: "bias"}) as scaling:
        assert scaling.optimizer is inner
        scaling.multipliers = {"weight": 2.0}
        module(torch.ones(2, 2)).sum().backward()
        private.step()
        assert (scaling.steps, scaling.proved, scaling.fault) == (1, True, None)
    moved = [(old - new).abs().max().item() for old, new in zip(before, net.parameters(), strict=True)]
    assert moved[0] == pytest.approx(2 * moved[1], rel=1e-5)
