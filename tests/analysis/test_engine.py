"""analyze() against a plain numpy loop over windows; what it skips and why; what it leaves alone."""

import contextlib
import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms.analysis import FARMS, Diagnostics, Selection, WholeMatrix, analyze, analyze_weights

NUMBERS = ("alpha", "ks_distance", "xmin", "spectral_norm", "frobenius_norm_squared", "stable_rank", "alpha_hat")
EVERYTHING = Diagnostics(bootstrap=5, p_value=5, marchenko_pastur=True, twin=True)


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


def hill(values, xmin_rank=0):
    """Fit of the upper half; xmin is its first value, or the one before it (the paper's form)."""
    values = np.sort(values)
    tail, xmin = values[len(values) // 2 :], values[len(values) // 2 - xmin_rank]
    alpha = 1 + len(tail) / np.log(tail / xmin).sum()
    fitted = 1 - (tail / xmin) ** (1 - alpha)
    return alpha, np.abs(fitted - np.arange(len(tail)) / len(tail)).max(), xmin


def expected_row(blocks, pooled, xmin_rank=0):
    """The numbers of a layer whose blocks are lists of eigenvalues, one array a matrix."""
    if pooled:
        blocks = [[values for block in blocks for values in block]]
    fits = [hill(np.concatenate(block), xmin_rank) for block in blocks]
    alpha, distance, xmin = np.mean(fits, axis=0)
    every = [values for block in blocks for values in block]
    spectral = np.mean([values.max() for values in every])
    frobenius = np.mean([values.sum() for values in every])
    rank = np.mean([values.sum() / values.max() for values in every])
    return alpha, distance, xmin, spectral, frobenius, rank, alpha * math.log10(spectral)


def expected_of_kernels(kernels, height, width, pooled, xmin_rank=0):
    """Window by window (a block), the eigenvalues of each kernel position."""
    by_kernel = [[eigenvalues(window) for window in windows(kernel, height, width)] for kernel in kernels]
    return expected_row(list(zip(*by_kernel, strict=True)), pooled, xmin_rank)


def assert_row(row, expected, rtol=1e-9, atol=1e-12):
    assert (row.status, row.reason) == ("ok", "")
    got = torch.tensor([getattr(row, name) for name in NUMBERS], dtype=torch.float64)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=atol)


def assert_row_to_float32(row, expected):
    """Alpha to 1e-4, which is what spectra in float32 are allowed to change it by."""
    assert row.alpha == pytest.approx(expected[0], abs=1e-4)
    assert_row(row, expected, rtol=1e-4)


def numpy_of(parameter):
    return parameter.detach().to(torch.complex128 if parameter.is_complex() else torch.float64).numpy()


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (150, 40), (40, 150), (33, 31)])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 2.0])
def test_linear_pools_its_windows(rows, columns, ratio):
    module = nn.Linear(columns, rows).double()
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
    module = make(14, 40, 3).double()
    (row,) = analyze(module)
    kernels = numpy_of(module.weight).reshape(40, 14, -1).transpose(2, 0, 1)
    assert_row(row, expected_of_kernels(kernels, 14, 14, pooled=False))
    assert row.windows == 3
    assert row.eigenvalue_count == 3 * 14 * 3 ** (module.weight.ndim - 2)


def test_grouped_convolution_has_positions_of_every_group():
    module = nn.Conv2d(24, 24, 3, groups=2).double()
    (row,) = analyze(module)
    kernels = numpy_of(module.weight).reshape(2, 12, 12, 9).transpose(0, 3, 1, 2).reshape(18, 12, 12)
    assert_row(row, expected_of_kernels(kernels, 12, 12, pooled=False))


def test_transposed_convolution():
    module = nn.ConvTranspose2d(30, 12, 2).double()
    (row,) = analyze(module)
    kernels = numpy_of(module.weight).reshape(30, 12, 4).transpose(2, 1, 0)
    assert_row(row, expected_of_kernels(kernels, 12, 12, pooled=False))


def test_one_by_one_convolution_is_a_linear_layer():
    convolution, linear = nn.Conv2d(20, 50, 1), nn.Linear(20, 50)
    convolution.weight.data = linear.weight.data[..., None, None].clone()
    (a,), (b,) = analyze(convolution), analyze(linear)
    assert replace(a, kind="linear", shape=(50, 20)) == b


def test_batched_parameter_is_pooled():
    module = nn.Bilinear(30, 12, 4).double()
    (row,) = analyze(module)
    assert_row(row, expected_of_kernels(numpy_of(module.weight), 12, 12, pooled=True))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameter(dtype):
    module = nn.Module()
    module.w = nn.Parameter(torch.randn(3, 24, 24, dtype=dtype))
    (row,) = analyze(module)
    check = assert_row if dtype == torch.complex128 else assert_row_to_float32
    check(row, expected_of_kernels(numpy_of(module.w), 24, 24, pooled=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_less_than_double_precision(dtype):
    model = nn.Sequential(nn.Linear(40, 20), nn.Conv2d(12, 30, 3)).to(dtype)
    report = analyze(model)
    assert_row_to_float32(report["0"], expected_of_kernels([numpy_of(model[0].weight)], 20, 20, pooled=True))
    kernels = numpy_of(model[1].weight).reshape(30, 12, 9).transpose(2, 0, 1)
    assert_row_to_float32(report["1"], expected_of_kernels(kernels, 12, 12, pooled=False))


def test_blocks_pooled():
    module = nn.Conv2d(14, 40, 3).double()
    kernels = numpy_of(module.weight).reshape(40, 14, -1).transpose(2, 0, 1)
    (averaged,), (pooled,) = analyze(module), analyze(module, FARMS(blocks="pooled"))
    assert_row(pooled, expected_of_kernels(kernels, 14, 14, pooled=True))
    assert averaged.alpha != pooled.alpha
    assert averaged.tail_size == 3 * (14 * 9 // 2)
    assert pooled.tail_size == 3 * 14 * 9 / 2


@pytest.mark.parametrize("method", [FARMS(fit="hill_paper"), WholeMatrix(fit="hill_paper")])
def test_hill_of_the_papers_form(method):
    model = nn.Sequential(nn.Linear(60, 20), nn.Conv2d(12, 24, 3)).double()
    kernels = numpy_of(model[1].weight).reshape(24, 12, 9).transpose(2, 0, 1)
    farms = isinstance(method, FARMS)
    report = analyze(model, method)
    expected = expected_of_kernels([numpy_of(model[0].weight)], 20, 20 if farms else 60, pooled=True, xmin_rank=1)
    assert_row(report["0"], expected)
    expected = expected_of_kernels(kernels, 12 if farms else 24, 12, pooled=not farms, xmin_rank=1)
    assert_row(report["1"], expected)


@pytest.mark.parametrize("fit", ["hill", "ks", "peak", "peak_corrected"])
def test_whole_matrix_pools_all_kernel_positions(fit):
    model = nn.Sequential(nn.Linear(60, 20), nn.Conv2d(10, 25, 3)).double()
    report = analyze(model, WholeMatrix(fit=fit))
    assert [row.windows for row in report] == [1, 1]
    assert [row.aspect_ratio for row in report] == [3.0, 0.4]
    if fit == "hill":
        assert_row(report["0"], expected_of_kernels([numpy_of(model[0].weight)], 20, 60, pooled=True))
        kernels = numpy_of(model[1].weight).reshape(25, 10, 9).transpose(2, 0, 1)
        assert_row(report["1"], expected_of_kernels(kernels, 25, 10, pooled=True))
    assert all(row.alpha > 1 for row in report)


def test_blocks_with_few_eigenvalues_are_pooled():
    module = nn.Conv2d(4, 20, (2, 1)).double()
    (row,) = analyze(module)
    kernels = numpy_of(module.weight).reshape(20, 4, 2).transpose(2, 0, 1)
    assert_row(row, expected_of_kernels(kernels, 4, 4, pooled=True))


def test_window_larger_than_a_matrix_shrinks_and_says_so():
    report = analyze(nn.Sequential(nn.Linear(40, 30), nn.Linear(80, 80)), FARMS(window=64, steps=2))
    assert report["0"].reason == "the window was shrunk to 30 x 30 to fit the matrix"
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


def settings():
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("diagnostics", [Diagnostics(), EVERYTHING])
def test_settings_and_random_state_are_left_as_they_were(diagnostics):
    model, before = network(), settings()
    analyze(model, diagnostics=diagnostics, workers=2)
    assert settings() == before


@pytest.mark.parametrize("name", ["linalg.eigvalsh", "isfinite", "stack", "sort"])
def test_settings_are_left_as_they_were_after_an_error(monkeypatch, name):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    model, before = network(), settings()
    module, attribute = (
        (torch.linalg, "eigvalsh") if "." in name else (torch.Tensor if name != "stack" else torch, name)
    )
    with monkeypatch.context() as patch:
        patch.setattr(module, attribute, fails)
        with pytest.raises(RuntimeError, match="out of memory"):  # no layer is left
            analyze(model, diagnostics=EVERYTHING, workers=2)
    assert settings() == before
    assert not analyze(model)["4"].reason


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


CONTEXTS = {
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
    "double": lambda: default_dtype(torch.float64),
    "half": lambda: default_dtype(torch.float16),
}


@pytest.mark.parametrize("method", [FARMS(), FARMS(fit="ks"), FARMS(fit="peak"), WholeMatrix()])
@pytest.mark.parametrize("context", CONTEXTS)
def test_context_does_not_matter(context, method):
    model = network()
    expected = rows_of(analyze(model, method, diagnostics=EVERYTHING))
    with CONTEXTS[context]():
        got = rows_of(analyze(model, method, diagnostics=EVERYTHING))
    assert got == expected


def test_rows_are_in_the_models_order_with_their_names():
    model = network()
    model[2].weight.data.zero_()
    assert [row.name for row in analyze(model)] == ["0", "2", "4", "5", "6"]
    assert len(analyze(nn.ReLU())) == 0


def test_eigenvalues_are_kept_when_asked_for():
    model = network()
    assert all(row.eigenvalues is None for row in analyze(model))
    for row in analyze(model, keep_eigenvalues=True):  # in float64 then, whatever the weights are
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
    assert a.eigenvalues is not b.eigenvalues


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
    "too few": (lambda: nn.Linear(3, 3), "it has 3 eigenvalues, fewer than the 10 that a fit takes"),
    "bool": (lambda: linear_of(torch.ones(24, 24).bool()), "the weights are of type torch.bool, not real or complex"),
    "complex nan": (lambda: linear_of(with_entry(math.nan) * (1 + 1j)), "the weights are not all finite"),
    "nan": (lambda: linear_of(with_entry(math.nan)), "the weights are not all finite"),
    "inf": (lambda: linear_of(with_entry(math.inf)), "the weights are not all finite"),
    "half inf": (lambda: linear_of(with_entry(1e9).half()), "the weights are not all finite"),
    "overflow": (lambda: linear_of(torch.randn(24, 24).double() * 1e200), "float64 does not hold the squares"),
    "complex overflow": (lambda: linear_of(torch.randn(24, 24).cdouble() * 1e160), "float64 does not hold the squares"),
    "underflow": (lambda: linear_of(torch.randn(24, 24).double() * 1e-160), "float64 does not hold the squares"),
    "double nan": (lambda: linear_of(with_entry(math.nan).double()), "the weights are not all finite"),
    "double inf": (lambda: linear_of(with_entry(math.inf).double()), "the weights are not all finite"),
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
        assert other == expected[name]
        assert other.status == "ok"


def test_norms_of_a_rank_deficient_layer_are_still_reported():
    weight = torch.randn(24, 2) @ torch.randn(2, 24)
    (row,) = analyze(linear_of(weight))
    values = eigenvalues(weight.double().numpy())
    assert row.spectral_norm == pytest.approx(values.max(), rel=1e-9)
    assert row.frobenius_norm_squared == pytest.approx(values.sum(), rel=1e-9)


def test_blocks_without_a_fit_are_left_out_of_the_mean():
    module = nn.Conv2d(12, 24, (2, 1), bias=False).double()
    module.weight.data[12:] = 0
    (row,) = analyze(module)
    kernels = numpy_of(module.weight)[:12].reshape(12, 12, 2).transpose(2, 0, 1)
    alpha = hill(np.concatenate([eigenvalues(kernel) for kernel in kernels]))[0]
    assert row.status == "ok"
    assert row.alpha == pytest.approx(alpha, rel=1e-9)
    assert row.reason == "1 of 2 blocks were left out as rank-deficient, or for equal eigenvalues"


def test_failed_decomposition_of_one_layer_does_not_bring_others_down(monkeypatch):
    model = network()
    expected = rows_of(analyze(model), left_out="5")
    model[5].weight.data[0, 0] = 1e4
    decompose = torch.linalg.eigvalsh

    def fails_on_large(matrices, **options):
        if matrices.amax() > 9e3:
            raise torch.linalg.LinAlgError("did not converge")
        return decompose(matrices, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails_on_large)
    monkeypatch.setattr(torch.linalg, "svdvals", fails_on_large)
    report = analyze(model, diagnostics=Diagnostics(twin=True))
    assert report["5"].status == "skipped"
    assert report["5"].reason == "the eigenvalue decomposition failed"
    assert report["5"].twin is None
    for name, row in rows_of(report, left_out="5").items():
        assert row.alpha == expected[name].alpha
        assert row.twin.status == "ok"


def test_many_small_windows_are_not_slow():
    """A head of 20,000 classes on 10 features has 2,000 windows; the work per window must not grow with them."""
    module = nn.Linear(10, 20_000, bias=False).double()
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


@pytest.mark.parametrize("base", ["net", torch.zeros(3, 3), nn.Linear])
def test_rejects_a_base_that_is_no_module(base):
    with pytest.raises(TypeError, match=r"`base` to be None or a torch.nn.Module, but got"):
        analyze(nn.Linear(3, 3), base=base)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"workspace": 0}, ValueError, "`workspace` to be at least 1 byte, but got 0"),
        ({"workers": 0}, ValueError, "`workers` to be None or at least 1, but got 0"),
        ({"diagnostics": True}, TypeError, r"`diagnostics` to be Diagnostics\(\.\.\.\), but got True"),
    ],
)
@pytest.mark.parametrize(
    "function", [lambda **kw: analyze(nn.Linear(3, 3), **kw), lambda **kw: analyze_weights([], **kw)]
)
def test_rejects_what_is_out_of_range(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(**arguments)


@pytest.mark.parametrize("base", [None, nn.Linear(3, 3)])
def test_rejects_what_is_no_selection(base):
    with pytest.raises(TypeError, match=r"`selection` to be a Selection\(\.\.\.\), but got 'head'"):
        analyze(nn.Linear(3, 3), selection="head", base=base)


def test_selection_skips_with_a_reason_and_leaves_the_rest_as_it_is():
    model = network()
    expected, report = analyze(model), analyze(model, selection=Selection(include=("4", "5")))
    assert [row.status for row in report] == ["skipped", "skipped", "ok", "ok", "skipped"]
    assert report["4"] == expected["4"]
    assert "matches no pattern" in report["6"].reason
