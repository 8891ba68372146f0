"""Learning rates by layer in two real processes: the same under every strategy, and equal to one process's."""

import pickle

import lightning.pytorch as pl
import pytest
import torch
from torch.testing import assert_close

from lightning_farms.analysis import analyze, layer_weights, parameter_layers
from lightning_farms.callbacks import TempBalance
from lightning_farms.functional import tb_linear_map
from tests.callbacks.two_processes_launch import launch
from tests.callbacks.two_processes_strategies import BROKEN, RATE, RESUMED, SCENARIOS, Net, Sentences, loader

RUNS = [(name, "straight") for name in SCENARIOS] + [(name, "resumed") for name in RESUMED]
RUNS += [(name, "broken") for name in BROKEN] + [("ZeRO", "strict")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank saw, by scenario and run."""
    folder = tmp_path_factory.mktemp("strategies")
    launch("tests.callbacks.two_processes_strategies", folder)
    first, second = (pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in "01")
    return {key: (first[key], second[key]) for key in first}


@pytest.fixture(scope="module")
def one_process():
    """The weights that one process ends with, by the model and whether rates are balanced."""
    known = {}

    def train(*, spare, balanced=True):
        key = spare, balanced
        if key not in known:
            model = Net(spare)
            trainer = pl.Trainer(
                max_epochs=2,
                accelerator="cpu",
                devices=1,
                callbacks=[TempBalance(summary=False)] if balanced else [],
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            trainer.fit(model, loader(8), loader(8))
            known[key] = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return known[key]

    return train


def model_with(weights):
    model = Net(spare="body.spare.weight" in weights)
    model.load_state_dict(weights)
    return model


def expected_multipliers(model):
    alphas = analyze(model).alphas
    values = tb_linear_map(torch.tensor(list(alphas.values()), dtype=torch.float64), 0.5, 1.5)
    return dict(zip(alphas, values.tolist(), strict=True))


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_both_ranks_do_the_same_under_every_strategy(name, run, results):
    first, second = results[name, run]
    for key in ("initial", "multipliers", "rates", "rows", "metrics"):
        assert first[key] == second[key]
    assert all(torch.equal(weight, second["weights"][key]) for key, weight in first["weights"].items())


@pytest.mark.parametrize("name", SCENARIOS)
def test_multipliers_are_those_of_one_process_bit_for_bit(name, results):
    first, _ = results[name, "straight"]
    model = model_with(first["weights"])
    assert first["rows"] == list(analyze(model))
    assert first["multipliers"] == expected_multipliers(model)
    assert first["initial"] == expected_multipliers(Net(spare=name == "unused layer"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_weights_are_read_whole_also_while_they_are_gathered(name, results):
    for result in results[name, "straight"]:
        expected = {layer.name: layer.matrices for layer in layer_weights(model_with(result["weights"]))}
        assert result["matrices"].keys() == expected.keys()
        assert all(torch.equal(matrices, expected[key]) for key, matrices in result["matrices"].items())


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*has no logger to write to:UserWarning")
def test_updates_use_base_rate_times_multiplier(name, results, one_process):
    first, _ = results[name, "straight"]
    expected = one_process(spare=name == "unused layer")
    plain = one_process(spare=name == "unused layer", balanced=False)
    assert first["weights"].keys() == expected.keys()
    for key, weight in first["weights"].items():
        assert_close(weight, expected[key], rtol=1e-5, atol=1e-7)
    moved = (plain["body.head.weight"] - expected["body.head.weight"]).abs().max()
    assert moved > 1e-3  # far beyond that tolerance


@pytest.mark.parametrize("name", SCENARIOS)
def test_at_rest_groups_have_the_base_rate(name, results):
    for result in results[name, "straight"]:
        assert result["rates"] == pytest.approx([RATE] * len(result["rates"]), rel=1e-15)
        assert len(result["rates"]) == (7 if name == "ZeRO" else 1)


@pytest.mark.parametrize("name", RESUMED)
def test_resumption_equals_the_straight_run_under_every_strategy(name, results):
    (straight, _), (resumed, _) = results[name, "straight"], results[name, "resumed"]
    assert resumed["initial"] != straight["initial"]  # those of the checkpoint, not of a new model
    for key in ("multipliers", "rows"):
        assert resumed[key] == straight[key]
    assert all(torch.equal(weight, straight["weights"][key]) for key, weight in resumed["weights"].items())


def test_zero_saves_base_rates(results):
    first, _ = results["ZeRO", "straight"]
    assert first["saved"] == pytest.approx([RATE] * 7, rel=1e-15)


@pytest.mark.parametrize("name", BROKEN)
def test_a_rank_that_cannot_decompose_costs_its_layers_only(name, results):
    healthy, raised = results[name, "broken"]
    reasons = {row.name: row.reason for row in healthy["rows"]}
    failed = {layer for layer, reason in reasons.items() if reason}
    assert {reasons[layer] for layer in failed} == {
        "out of memory; try a smaller window or workspace, or fewer draws of the diagnostics"
    }
    assert {healthy["multipliers"][layer] for layer in failed} == {1.0}
    assert {0.5, 1.5} <= {healthy["multipliers"][layer] for layer in reasons.keys() - failed}
    message = "The analysis failed on this rank: OutOfMemoryError: out of memory"
    assert message in raised["warnings"]
    assert message not in healthy["warnings"]


def test_a_warning_that_is_an_error_on_one_rank_leaves_all_without_a_report(results):
    first, second = results["ZeRO", "strict"]
    assert first["rows"] == second["rows"] == []
    assert first["multipliers"] == second["multipliers"] == {}
    reason = "On rank 1: UserWarning: The analysis failed on this rank: OutOfMemoryError: out of memory"
    assert [message.endswith(reason) for message in first["warnings"]].count(True) == 1
    assert not any(message.endswith(reason) for message in second["warnings"])


def test_zero_with_groups_that_mix_layers_is_refused(results):
    for message in results["ZeRO", "refused"]:
        assert message.startswith("TempBalance: Expected argument `optimizer` to be a ZeroRedundancyOptimizer with one")
        assert message.endswith("Build its groups with `layerwise_param_groups`.")


def test_layers_of_flattened_parameters_are_those_of_the_model_itself(results):
    model = Sentences()
    names = {parameter: name for name, parameter in model.named_parameters()}
    weights = list(layer_weights(model))
    for layers, holders, matrices in results["FSDP1", "structure"]:
        assert layers == {names[parameter]: layer for parameter, layer in parameter_layers(model).items()}
        assert holders == {weight.name: [names[p] for p in weight.holders] for weight in weights}
        assert list(matrices) == [weight.name for weight in weights]
        assert all(torch.equal(matrices[weight.name], weight.matrices) for weight in weights)


def test_flat_parameters_that_are_the_optimizers_own_are_refused(results):
    for message in results["FSDP1", "refused"]:
        assert message.startswith("Layers cannot be told apart where FSDP flattens their parameters into one.")
