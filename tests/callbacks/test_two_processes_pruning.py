"""Pruning in two real processes: exact in the weights that act, and the masks those of one process."""

import math
import pickle

import lightning.pytorch as pl
import pytest
import torch

from lightning_farms.analysis.weights.stored import named_parameters
from lightning_farms.callbacks import LayerwisePruning
from lightning_farms.pruning import Masks, OneShot
from tests.callbacks.two_processes_launch import launch
from tests.callbacks.two_processes_pruning import EPOCHS, RUNS, SPARSITY, Net, loader

NAMES = [(name, run.__name__) for name, run in RUNS]
SIZES = {"body.0.0": 9 * 3 * 4, "body.1.0": 16 * 9, "body.1.2": 9 * 16, "body.3": 5 * 9}
TOTAL = sum(SIZES.values())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank saw, by scenario and run."""
    folder = tmp_path_factory.mktemp("pruning")
    launch("tests.callbacks.two_processes_pruning", folder)
    first, second = (pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in "01")
    return {key: (first[key], second[key]) for key in first}


def asked(run, epoch):
    if run == "once":
        return SPARSITY
    x = min(epoch / 3, 1)
    return SPARSITY * (3 * x - 3 * x**2 + x**3)


@pytest.mark.parametrize("key", NAMES, ids=" ".join)
def test_both_ranks_end_with_the_same(key, results):
    first, second = results[key]
    for what in ("rows", "rates", "seen", "acting"):
        assert repr(first[what]) == repr(second[what])  # as text, NaN equals NaN
    for what in ("weights", "masks"):
        assert first[what].keys() == second[what].keys()
        assert all(torch.equal(value, second[what][name]) for name, value in first[what].items())


@pytest.mark.parametrize("key", NAMES, ids=" ".join)
def test_every_forward_pass_has_exactly_what_was_asked(key, results):
    for result in results[key]:
        assert max(result["acting"]) == EPOCHS - 1
        for epoch, zeros in result["acting"].items():
            assert all(len(numbers) == 1 for numbers in zeros.values())  # the same in every step of the epoch
            expected = math.floor(asked(key[1], epoch) * TOTAL + 0.5)
            assert sum(next(iter(numbers)) for numbers in zeros.values()) == expected


@pytest.mark.parametrize("key", NAMES, ids=" ".join)
def test_weights_and_masks_and_what_is_logged_agree(key, results):
    for result in results[key]:
        rows = {row.name: row.zeros for row in result["rows"]}
        assert sum(rows.values()) == math.floor(SPARSITY * TOTAL + 0.5)
        masks = Masks()
        shapes = {name: list(weight.shape) for name, weight in result["weights"].items()}
        masks.load_state_dict({n: {"bits": bits, "shape": shapes[n]} for n, bits in result["masks"].items()})
        for layer, zeros in rows.items():
            assert torch.equal(result["weights"][f"{layer}.weight"] != 0, masks[f"{layer}.weight"])
            assert masks.zeros[f"{layer}.weight"] == zeros
        assert result["seen"] == pytest.approx(sum(rows.values()) / TOTAL)


def test_resumption_equals_the_straight_run(results):
    for straight, resumed in zip(results["FSDP2", "straight"], results["FSDP2", "resumed"], strict=True):
        assert repr(straight["rows"]) == repr(resumed["rows"])
        assert straight["rates"] == resumed["rates"]
        for what in ("weights", "masks"):
            assert all(torch.equal(value, resumed[what][key]) for key, value in straight[what].items())


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*has no logger to write to:UserWarning")
@pytest.mark.parametrize("name", ["FSDP2", "tensor parallel"])
def test_the_state_is_that_of_one_process_bit_for_bit(name, results):
    model, callback = Net(), LayerwisePruning(SPARSITY, schedule=OneShot(), summary=False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, loader(), loader())
    state = callback.masks.state_dict()
    first, _ = results[name, "once"]
    assert first["rows"] == list(callback.ratios)
    assert first["masks"].keys() == state.keys() == {f"{layer}.weight" for layer in SIZES}
    assert all(torch.equal(bits, state[key]["bits"]) for key, bits in first["masks"].items())
    assert set(first["weights"]) == set(named_parameters(model))
