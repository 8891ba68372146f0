"""analyze() against a plain numpy loop over windows; what it skips and why; what it leaves alone."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms.analysis import FARMS, WholeMatrix, analyze, engine

NUMBERS = ("alpha", "ks_distance", "xmin", "spectral_norm", "frobenius_norm_squared", "stable_rank", "alpha_hat")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def slices(size, window):
    """Starts of the fewest windows that cover, first and last flush."""
    count = math.ceil(size / window)
    return [round(i * (size - window) / (count - 1)) for i in range(count)] if count > 1 else [0]


def windows(matrix, height, width):
    rows, columns = matrix.shape
    return [matrix[r : r + height, c : c + width] for r in slices(rows, height) for c in slices(columns, width)]


def eigenvalues(matrix):
    return np.linalg.svd(matrix, compute_uv=False) ** 2


def hill(values):
    values = np.sort(values)
    tail = values[len(values) // 2 :]
    alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
    fitted = 1 - (tail / tail[0]) ** (1 - alpha)
    return alpha, np.abs(fitted - np.arange(len(tail)) / len(tail)).max(), tail[0]


def expected_row(blocks, pooled):
    """The numbers of a layer whose blocks are lists of eigenvalues, one array a matrix."""
    if pooled:
        fits = [hill(np.concatenate([values for block in blocks for values in block]))]
    else:
        fits = [hill(np.concatenate(block)) for block in blocks]
    alpha, distance, xmin = np.mean(fits, axis=0)
    every = [values for block in blocks for values in block]
    spectral = np.mean([values.max() for values in every])
    frobenius = np.mean([values.sum() for values in every])
    rank = np.mean([values.sum() / values.max() for values in every])
    return alpha, distance, xmin, spectral, frobenius, rank, alpha * math.log10(spectral)


def expected_of_kernels(kernels, height, width, pooled):
    """Window by window (a block), the eigenvalues of each kernel position."""
    by_kernel = [[eigenvalues(window) for window in windows(kernel, height, width)] for kernel in kernels]
    return expected_row(list(zip(*by_kernel, strict=True)), pooled)


def assert_row(row, expected, rtol=1e-9):
    assert (row.status, row.reason) == ("ok", "")
    got = torch.tensor([getattr(row, name) for name in NUMBERS], dtype=torch.float64)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=1e-12)


def numpy_of(parameter):
    return parameter.detach().to(torch.complex128 if parameter.is_complex() else torch.float64).numpy()


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (150, 40), (40, 150), (33, 31)])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 2.0])
def test_linear_pools_its_windows(rows, columns, ratio):
    module = nn.Linear(columns, rows)
    (row,) = analyze(module, FARMS(ratio))
    smaller = min(rows, columns)
    height, width = (smaller, round(smaller * ratio)) if ratio <= 1 else (round(smaller / ratio), smaller)
    assert_row(row, expected_of_kernels([numpy_of(module.weight)], height, width, pooled=True))
    assert row.aspect_ratio == width / height
    assert row.windows == len(slices(rows, height)) * len(slices(columns, width))
    assert row.eigenvalue_count == row.windows * min(height, width)
    assert (row.name, row.kind, row.shape) == ("weight", "linear", (rows, columns))


@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolution_averages_its_blocks(make):
    module = make(14, 40, 3)
    (row,) = analyze(module)
    kernels = numpy_of(module.weight).reshape(40, 14, -1).transpose(2, 0, 1)
    assert_row(row, expected_of_kernels(kernels, 14, 14, pooled=False))
    assert row.windows == 3
    assert row.eigenvalue_count == 3 * 14 * 3 ** (module.weight.ndim - 2)


def test_grouped_convolution_has_positions_of_every_group():
    module = nn.Conv2d(24, 24, 3, groups=2)
    (row,) = analyze(module)
    kernels = numpy_of(module.weight).reshape(2, 12, 12, 9).transpose(0, 3, 1, 2).reshape(18, 12, 12)
    assert_row(row, expected_of_kernels(kernels, 12, 12, pooled=False))


def test_transposed_convolution():
    module = nn.ConvTranspose2d(30, 12, 2)
    (row,) = analyze(module)
    kernels = numpy_of(module.weight).reshape(30, 12, 4).transpose(2, 1, 0)
    assert_row(row, expected_of_kernels(kernels, 12, 12, pooled=False))


def test_one_by_one_convolution_is_a_linear_layer():
    convolution, linear = nn.Conv2d(20, 50, 1), nn.Linear(20, 50)
    convolution.weight.data = linear.weight.data[..., None, None].clone()
    (a,), (b,) = analyze(convolution), analyze(linear)
    assert replace(a, kind="linear", shape=(50, 20)) == b


def test_batched_parameter_is_pooled():
    module = nn.Bilinear(30, 12, 4)
    (row,) = analyze(module)
    assert_row(row, expected_of_kernels(numpy_of(module.weight), 12, 12, pooled=True))


def test_complex_parameter():
    module = nn.Module()
    module.w = nn.Parameter(torch.randn(3, 24, 24, dtype=torch.complex64))
    (row,) = analyze(module)
    assert_row(row, expected_of_kernels(numpy_of(module.w), 24, 24, pooled=True), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_precisions_side_by_side(dtype):
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    model[1].weight = nn.Parameter(model[1].weight.detach().to(dtype), requires_grad=False)
    report = analyze(model)
    for module, row in zip(model, report, strict=True):
        assert_row(row, expected_of_kernels([numpy_of(module.weight)], 20, 20, pooled=True))


@pytest.mark.parametrize("fit", ["hill", "ks", "peak", "peak_corrected"])
def test_whole_matrix_pools_all_kernel_positions(fit):
    model = nn.Sequential(nn.Linear(60, 20), nn.Conv2d(10, 25, 3))
    report = analyze(model, WholeMatrix(fit=fit))
    assert [row.windows for row in report] == [1, 1]
    assert [row.aspect_ratio for row in report] == [3.0, 0.4]
    if fit == "hill":
        assert_row(report["0"], expected_of_kernels([numpy_of(model[0].weight)], 20, 60, pooled=True))
        kernels = numpy_of(model[1].weight).reshape(25, 10, 9).transpose(2, 0, 1)
        assert_row(report["1"], expected_of_kernels(kernels, 25, 10, pooled=True))
    assert all(row.alpha > 1 for row in report)


def test_blocks_with_few_eigenvalues_are_pooled():
    module = nn.Conv2d(4, 20, (2, 1))
    (row,) = analyze(module)
    kernels = numpy_of(module.weight).reshape(20, 4, 2).transpose(2, 0, 1)
    assert_row(row, expected_of_kernels(kernels, 4, 4, pooled=True))


def test_window_larger_than_a_matrix_shrinks_and_says_so():
    report = analyze(nn.Sequential(nn.Linear(40, 30), nn.Linear(80, 80)), FARMS(window=64, steps=2))
    assert report["0"].reason == "window shrunk to 30 x 30 to fit the matrix"
    assert report["0"].aspect_ratio == report["1"].aspect_ratio == 1.0
    assert report["1"].reason == ""
    assert report["0"].windows == 2  # one row of windows, two steps along the columns
    assert report["1"].windows == 4


def network():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 24, 3),
        nn.Flatten(),
        nn.Linear(24, 24),
        nn.Linear(24, 24),
        nn.Linear(24, 10),
    )


def rows_of(report, left_out=()):
    return {row.name: row for row in report if row.name not in left_out}


def test_model_is_left_as_it_was():
    model = network().train()
    model[4].eval()
    model[5].weight.grad = torch.ones_like(model[5].weight)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    report = analyze(model, keep_eigenvalues=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["5.weight"]
    assert all(p.requires_grad for p in model.parameters())
    assert not any(row.eigenvalues.requires_grad for row in report)
    assert torch.is_grad_enabled()


def test_random_numbers_are_not_drawn():
    model, state = network(), torch.get_rng_state()
    analyze(model)
    torch.testing.assert_close(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "context", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")]
)
def test_context_does_not_matter(context):
    model = network()
    expected = rows_of(analyze(model))
    with context():
        got = rows_of(analyze(model))
    assert got == expected


def test_rows_are_in_the_models_order_with_their_names():
    model = network()
    model[2].weight.data.zero_()
    assert [row.name for row in analyze(model)] == ["0", "2", "4", "5", "6"]
    assert len(analyze(nn.ReLU())) == 0


def test_analysis_of_layers_together_is_that_of_each_alone():
    model = network()
    for name, row in rows_of(analyze(model)).items():
        (alone,) = analyze(model[int(name)])
        for quantity in NUMBERS:
            assert getattr(row, quantity) == pytest.approx(getattr(alone, quantity), rel=1e-12), (name, quantity)


@pytest.mark.parametrize("entries", [1, 2000, 12345])
def test_small_workspace_gives_the_same_numbers(monkeypatch, entries):
    model = network()
    expected = rows_of(analyze(model))
    calls = []
    esd = engine.esd
    monkeypatch.setattr(engine, "esd", lambda matrices: calls.append(matrices.shape) or esd(matrices))
    analyze(model)
    whole = len(calls)
    monkeypatch.setattr(engine, "_WORKSPACE", entries)
    calls.clear()
    got = rows_of(analyze(model))
    assert len(calls) > whole
    for count, height, width in calls:
        assert count == 1 or count * (height * width + 2 * min(height, width) ** 2) <= entries
    for name, row in got.items():
        for quantity in NUMBERS:
            assert getattr(row, quantity) == pytest.approx(getattr(expected[name], quantity), rel=1e-12)


def test_eigenvalues_are_kept_when_asked_for():
    model = network()
    assert all(row.eigenvalues is None for row in analyze(model))
    for row in analyze(model, keep_eigenvalues=True):
        assert row.eigenvalues.shape == (row.eigenvalue_count,)
        assert row.eigenvalues.dtype == torch.float64
        assert (row.eigenvalues.diff() >= 0).all()
    module = nn.Linear(20, 45)
    (row,) = analyze(module, keep_eigenvalues=True)
    expected = np.sort(np.concatenate([eigenvalues(w) for w in windows(numpy_of(module.weight), 20, 20)]))
    torch.testing.assert_close(row.eigenvalues, torch.tensor(expected), rtol=1e-9, atol=1e-12)


def test_rows_compare_by_their_numbers():
    module = nn.Linear(20, 20)
    (a,), (b,) = analyze(module, keep_eigenvalues=True), analyze(module, keep_eigenvalues=True)
    assert a == b


def linear_of(weight):
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return module


def linear_of_nothing():
    module = nn.Linear(24, 24)
    module.weight = nn.Parameter(torch.empty(0, 24))
    return module


def convolution_of_nothing():
    module = nn.Conv2d(24, 24, 3)
    module.weight = nn.Parameter(torch.empty(0, 24, 3, 3))
    return module


def with_entry(value):
    weight = torch.randn(24, 24)
    weight[3, 5] = value
    return weight


SKIPPED = {
    "too few": (lambda: nn.Linear(3, 3), "3 eigenvalues, fewer than the 10 that are fitted"),
    "nan": (lambda: linear_of(with_entry(math.nan)), "the weights are not all finite"),
    "inf": (lambda: linear_of(with_entry(math.inf)), "the weights are not all finite"),
    "half inf": (lambda: linear_of(with_entry(1e9).half()), "the weights are not all finite"),
    "overflow": (lambda: linear_of(torch.randn(24, 24).double() * 1e200), "the eigenvalue decomposition failed"),
    "zero": (lambda: linear_of(torch.zeros(24, 24)), "rank-deficient"),
    "low rank": (lambda: linear_of(torch.randn(24, 5) @ torch.randn(5, 24)), "rank-deficient"),
    "identity": (lambda: linear_of(torch.eye(24) * 0.3), "not a power law"),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(24, 24)), "not a power law"),
    "orthogonal initialisation": (
        lambda: linear_of(nn.init.orthogonal_(torch.empty(24, 24))),
        "not a power law",
    ),
    "meta": (lambda: nn.Linear(24, 24, device="meta"), "the weights are on the meta device, without values"),
    "integer": (
        lambda: linear_of(torch.ones(24, 24, dtype=torch.int8)),
        "the weights are of type torch.int8, not real or complex numbers",
    ),
    "vector": (lambda: nn.Linear(24, 1), "the matrix is a vector, 1 x 24"),
    "depthwise": (lambda: nn.Conv2d(24, 24, 3, groups=24), "the matrix is a vector, 1 x 1"),
    "empty": (linear_of_nothing, "the weight is empty"),
    "empty convolution": (convolution_of_nothing, "the weight is empty"),
}


@pytest.mark.parametrize("case", SKIPPED)
@pytest.mark.parametrize("method", [FARMS(), WholeMatrix()], ids=["farms", "whole"])
def test_unsuitable_layer_is_skipped_and_the_others_are_untouched(case, method):
    make, reason = SKIPPED[case]
    model = network()
    expected = rows_of(analyze(model, method), left_out="5")
    model[5] = make()
    report = analyze(model, method)
    row = report["5"]
    assert row.status == "skipped"
    assert reason in row.reason
    assert row.shape == tuple(model[5].weight.shape)
    for quantity in ("alpha", "ks_distance", "xmin", "alpha_hat"):
        assert math.isnan(getattr(row, quantity)), quantity
    for name, other in rows_of(report, left_out="5").items():
        assert other.status == "ok"
        assert other.alpha == pytest.approx(expected[name].alpha, rel=1e-12)


def test_norms_of_a_rank_deficient_layer_are_still_reported():
    weight = torch.randn(24, 2) @ torch.randn(2, 24)
    (row,) = analyze(linear_of(weight))
    values = eigenvalues(weight.double().numpy())
    assert row.spectral_norm == pytest.approx(values.max(), rel=1e-9)
    assert row.frobenius_norm_squared == pytest.approx(values.sum(), rel=1e-9)


def test_blocks_without_a_fit_are_left_out_of_the_mean():
    module = nn.Conv2d(12, 24, (2, 1), bias=False)
    module.weight.data[12:] = 0
    (row,) = analyze(module)
    kernels = numpy_of(module.weight)[:12].reshape(12, 12, 2).transpose(2, 0, 1)
    alpha = hill(np.concatenate([eigenvalues(kernel) for kernel in kernels]))[0]
    assert row.status == "ok"
    assert row.alpha == pytest.approx(alpha, rel=1e-9)
    assert row.reason == "1 of 2 blocks left out: rank-deficient or with equal eigenvalues"


def test_failed_decomposition_of_one_layer_does_not_bring_others_down(monkeypatch):
    model = network()
    expected = rows_of(analyze(model), left_out="5")
    model[5].weight.data[0, 0] = 1e4
    decompose = torch.linalg.eigvalsh

    def fails_on_large(matrices):
        if matrices.amax() > 1e6:
            raise torch.linalg.LinAlgError("did not converge")
        return decompose(matrices)

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails_on_large)
    report = analyze(model)
    assert report["5"].status == "skipped"
    assert report["5"].reason == "the eigenvalue decomposition failed: did not converge"
    for name, row in rows_of(report, left_out="5").items():
        assert row.alpha == pytest.approx(expected[name].alpha, rel=1e-12)


def test_alpha_does_not_depend_on_the_scale_or_orientation_of_square_windows():
    module = nn.Linear(30, 75, bias=False)
    (row,), (scaled,) = analyze(module), analyze(linear_of(module.weight.detach() * 1e-6))
    (transposed,) = analyze(linear_of(module.weight.detach().T.contiguous()))
    assert scaled.alpha == pytest.approx(row.alpha, rel=1e-6)
    assert transposed.alpha == pytest.approx(row.alpha, rel=1e-9)


def test_many_small_windows_are_not_slow():
    """A head of 20,000 classes on 10 features has 2,000 windows; the work per window must not grow with them."""
    module = nn.Linear(10, 20_000, bias=False)
    (row,) = analyze(module)
    assert row.windows == 2000
    assert_row(row, expected_of_kernels([numpy_of(module.weight)], 10, 10, pooled=True))


@pytest.mark.parametrize("model", [None, "net", torch.zeros(3, 3), nn.Linear])
def test_rejects_what_is_no_module(model):
    with pytest.raises(TypeError, match=r"`model` to be a torch.nn.Module, but got"):
        analyze(model)


@pytest.mark.parametrize("method", [FARMS, "farms", None])
def test_rejects_what_is_no_method(method):
    with pytest.raises(TypeError, match=r"`method` to be FARMS\(\.\.\.\) or WholeMatrix\(\.\.\.\), but got"):
        analyze(nn.Linear(3, 3), method)
