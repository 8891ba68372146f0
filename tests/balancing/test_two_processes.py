"""Every process of a plain loop has the multipliers of the others, and those of one process."""

import pytest
import torch

from tests.balancing.two_processes import train
from tests.callbacks.two_processes_launch import launch


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch("tests.balancing.two_processes", folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["DDP", "FSDP2", "FSDP1", "FSDP1, one unit"])
def test_processes_agree_bit_for_bit_and_with_a_single_one(results, kind):
    (multipliers, alphas, weights), (others, other_alphas, other_weights) = (each[kind] for each in results)
    assert multipliers == others
    assert alphas == other_alphas
    assert all(torch.equal(*pair) for pair in zip(weights, other_weights, strict=True))
    single, single_alphas, single_weights = train(lambda model: model)
    assert list(multipliers) == list(single)
    assert list(multipliers.values()) == pytest.approx(list(single.values()), rel=1e-4)
    assert [row[0] for row in alphas] == [row[0] for row in single_alphas]  # before any step: the same weights
    torch.testing.assert_close(weights, single_weights, rtol=1e-4, atol=1e-5)


def test_flat_parameters_are_refused(results):
    for each in results:
        assert each["flat"].startswith("Layers cannot be told apart where FSDP flattens their parameters into one.")
        assert "to be the model that FSDP returned, but got one within it" in each["inner"]


def test_an_analysis_that_fails_on_one_rank_is_skipped_on_all(results):
    (kept, said, multipliers, analyses), (other_kept, other_said, other_multipliers, others) = (
        each["one fails"] for each in results
    )
    assert (kept, other_kept) == (True, True)
    assert (said, other_said) == ([], ["analysis"])
    assert multipliers == other_multipliers
    assert (analyses, others) == (1, 1)
