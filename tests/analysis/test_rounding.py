"""Changes between stored weights: what is rounding is not taken for signal."""

import copy
import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_farms.analysis import WholeMatrix, analyze, analyze_weights, checkpoint_changes, open_checkpoint

SIZE = 192


def update(rank, seed=0):
    """A base weight, and a low-rank update of a twentieth of its norm with a heavy tail."""
    torch.manual_seed(seed)
    weight = torch.randn(SIZE, SIZE) / SIZE**0.5
    change = torch.randn(SIZE, rank) @ (torch.randn(rank, SIZE) * (1 - torch.rand(rank, 1)) ** -0.5)
    return weight, change * (0.05 * weight.norm() / change.norm())


def hill(change, rank):
    values = np.sort(np.linalg.svd(change.double().numpy(), compute_uv=False) ** 2)[-rank:]
    tail = values[rank // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


@pytest.mark.parametrize("rank", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("base_dtype", [torch.float32, None], ids=["fp32 base", "base alike"])
def test_a_merged_update_has_the_alpha_of_its_own_eigenvalues(rank, dtype, base_dtype):
    weight, change = update(rank)
    base = {"q.weight": weight.to(base_dtype or dtype)}
    [row] = analyze_weights(checkpoint_changes({"q.weight": (weight + change).to(dtype)}, base), WholeMatrix())
    assert row.alpha == pytest.approx(hill(change, rank), abs=row.standard_error)
    assert row.eigenvalue_count in range(rank - rank // 8, rank + 1)
    assert "stand clear of rounding are fitted" in row.reason


@pytest.mark.parametrize("rank", [16, 64])
@pytest.mark.parametrize("packed", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("of_base", [True, False], ids=["base alike", "fp32 base"])
def test_an_update_merged_into_packed_numbers_has_the_alpha_of_its_own_eigenvalues(rank, packed, of_base, tmp_path):
    weight, change = update(rank)
    change = change * 8

    def stored(name, weight):
        scale = weight.abs().amax(1, keepdim=True) / (448 if packed.is_floating_point else 127)
        numbers = weight / scale if packed.is_floating_point else (weight / scale).round()
        save_file({"q.weight": numbers.to(packed), "q.weight_scale": scale}, tmp_path / name)
        return open_checkpoint(tmp_path / name, dequantize=True)

    base = stored("base.safetensors", weight) if of_base else {"q.weight": weight}
    [row] = analyze_weights(checkpoint_changes(stored("a.safetensors", weight + change), base), WholeMatrix())
    assert row.alpha == pytest.approx(hill(change, rank), abs=row.standard_error)
    assert row.eigenvalue_count in range(rank - rank // 8, rank + 1)


def test_an_update_of_few_ranks_is_skipped_with_their_number():
    weight, change = update(4)
    [row] = analyze_weights(checkpoint_changes({"q.weight": weight + change}, {"q.weight": weight}))
    assert (row.status, row.reason) == ("skipped", "it has 4 eigenvalues (rank 4), fewer than the 10 that a fit takes")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_alone_is_no_change(dtype):
    weight, _ = update(4)
    saved = {"q.weight": weight.to(dtype)}
    for after, before in ((saved, {"q.weight": weight}), ({"q.weight": weight}, saved)):
        [row] = analyze_weights(checkpoint_changes(after, before))
        assert row.status == "skipped"
        assert row.reason.startswith("unchanged from the base, apart from the rounding of ")


def test_a_change_of_full_rank_keeps_all_its_eigenvalues():
    weight, _ = update(4)
    torch.manual_seed(1)
    [row] = analyze_weights(
        checkpoint_changes({"q.weight": weight + 0.01 * torch.randn(SIZE, SIZE)}, {"q.weight": weight}), WholeMatrix()
    )
    assert (row.eigenvalue_count, row.reason) == (SIZE, "")


def test_model_and_file_say_the_same():
    weight, change = update(16)
    before = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    before[0].weight.data = weight.bfloat16()
    after = copy.deepcopy(before)
    after[0].weight.data = (weight + change).bfloat16()
    [of_model] = analyze(after, WholeMatrix(), base=before)
    [of_file] = analyze_weights(checkpoint_changes(after.state_dict(), before.state_dict()), WholeMatrix())
    assert of_model == of_file


@pytest.mark.parametrize("kept_as", [torch.float32, torch.float64], ids=str)
def test_numbers_of_a_coarser_type_stored_in_a_finer_one_were_rounded_to_it(kept_as):
    weight, change = update(16)
    base = {"q.weight": weight, "frozen.weight": weight}
    tuned = {"q.weight": (weight + change).bfloat16().to(kept_as), "frozen.weight": weight.half().to(kept_as)}
    moved, frozen = analyze_weights(checkpoint_changes(tuned, base), WholeMatrix())
    assert moved.alpha == pytest.approx(hill(change, 16), abs=moved.standard_error)
    assert moved.eigenvalue_count in (14, 15, 16)
    assert frozen.reason == "unchanged from the base, apart from the rounding of float16 and float32"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [0.01, 1.0, 5.0])
def test_a_merged_product_has_its_rank_however_large_it_is(dtype, size):
    """It was rounded before it was added, as a sum of products."""
    for (m, n, rank), seed in itertools.product([(256, 256, 16), (64, 512, 32)], range(3)):
        torch.manual_seed(seed)
        weight, change = torch.randn(m, n), torch.randn(m, rank) @ torch.randn(rank, n)
        base = (0.02 * weight).to(dtype)
        tuned = base + (change * (0.02 * size / change.std())).to(dtype)
        [row] = analyze_weights(checkpoint_changes({"q.weight": tuned}, {"q.weight": base}), WholeMatrix())
        assert (row.status, row.eigenvalue_count) == ("ok", rank)


def test_a_complex_change_has_its_rank_too(recwarn):
    torch.manual_seed(0)
    weight, left, right = (torch.randn(*shape, dtype=torch.complex64) for shape in ((64, 64), (64, 16), (16, 64)))
    [row] = analyze_weights(
        checkpoint_changes({"q.weight": weight + left @ right}, {"q.weight": weight}), WholeMatrix()
    )
    assert (row.status, row.eigenvalue_count) == ("ok", 16)
    assert not recwarn


def test_numbers_below_the_smallest_of_half_precision_are_rounding():
    weight, _ = update(4)
    [row] = analyze_weights(checkpoint_changes({"q.weight": (weight * 1e-6).half()}, {"q.weight": weight * 1e-6}))
    assert row.reason.startswith("unchanged from the base, apart from the rounding of float16")
