"""Float32 spectra: taken where they do, and never where they would change alpha by 1e-4; numpy's SVD is the judge."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_farms.analysis import FARMS, Diagnostics, WholeMatrix, analyze
from lightning_farms.analysis._engine.decompose import Spectrum
from lightning_farms.analysis._engine.measure import NUMBERS, measure
from lightning_farms.analysis._engine.plan import plan_layer
from lightning_farms.analysis.weights import LayerWeight
from lightning_farms.functional import eigensolvers, esd
from lightning_farms.functional.eigensolvers import Rule, Way

SIZE = 64
ROUNDING = NUMBERS.index("rounding")


def linear_of(values, dtype=torch.float32):
    weight = torch.as_tensor(np.asarray(values)).to(dtype)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight)
    return module


def alpha_of(module):
    """Of the whole matrix as it is stored, by a float64 SVD."""
    values = np.sort(np.linalg.svd(module.weight.detach().double().numpy(), compute_uv=False) ** 2)
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


@pytest.fixture
def passes(monkeypatch):
    """[(type, [squared norm of each matrix])] of every pass: of what is decomposed in one type after the other."""
    monkeypatch.setattr(eigensolvers, "RULES", (Rule(Way.CPU, "for this test"),))
    seen = []
    eigvalsh = torch.linalg.eigvalsh

    def recorded(gram, **options):
        if not seen or seen[-1][0] != gram.dtype:
            seen.append((gram.dtype, []))
        seen[-1][1].extend(gram.diagonal(dim1=-2, dim2=-1).sum(-1).flatten().tolist())
        return eigvalsh(gram, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", recorded)
    return seen


def squared_norm(module):
    return pytest.approx(module.weight.detach().double().square().sum().item(), rel=1e-5)


def gaussian(random, rows=SIZE, columns=SIZE):
    return random.standard_normal((rows, columns))


def orthogonal(random, size=SIZE):
    return np.linalg.qr(gaussian(random, size, size))[0]


def graded(decades):
    return lambda random: orthogonal(random) * np.logspace(0, -decades, SIZE) @ orthogonal(random)


def spiked(strength):
    return lambda random: (
        gaussian(random) + strength * np.outer(random.standard_normal(SIZE), random.standard_normal(SIZE))
    )


def shifted(mean):
    return lambda random: gaussian(random) + mean


def of_rank(rank):
    return lambda random: gaussian(random, SIZE, rank) @ gaussian(random, rank, SIZE)


def heavy(degrees):
    return lambda random: random.standard_t(degrees, size=(SIZE, SIZE))


def scaled(exponent):
    return lambda random: gaussian(random) * 10.0**exponent


HARD = {
    **{f"graded over {decades} decades": graded(decades) for decades in (1, 2, 3, 4, 6, 8, 10)},
    **{f"spike of {strength:g}": spiked(strength) for strength in (1, 10, 100, 1e3, 1e4)},
    **{f"mean of {mean}": shifted(mean) for mean in (1, 10, 100, 1000)},
    **{f"rank {rank}": of_rank(rank) for rank in (SIZE // 2, SIZE // 2 + 1, 40)},
    **{f"{degrees} degrees of freedom": heavy(degrees) for degrees in (0.5, 0.8, 1, 1.5, 2, 3)},
    **{f"scale 1e{e}": scaled(e) for e in (-45, -38, -30, -25, -22.5, -22, -21.5, -21, -20, -19, -18, -16, -10)},
    **{f"scale 1e{e}": scaled(e) for e in (10, 15, 17, 18, 18.5, 19, 20, 25, 30, 37)},
    "graded rows": lambda random: gaussian(random) * np.logspace(0, -8, SIZE)[:, None],
    "one large row": lambda random: gaussian(random) * np.where(np.arange(SIZE) == 5, 1e3, 1)[:, None],
    "one large entry": lambda random: gaussian(random) + 1e4 * (np.arange(SIZE**2).reshape(SIZE, SIZE) == 777),
    "nearly orthogonal": lambda random: orthogonal(random) + 0.005 * gaussian(random),
    "constant rows": lambda random: gaussian(random, SIZE, 1) + 1e-3 * gaussian(random),
    "very wide": lambda random: gaussian(random, 12, 720),
    "signs": lambda random: np.sign(gaussian(random, 12, 720)),
}


@pytest.mark.parametrize("case", HARD)
def test_alpha_is_that_of_a_float64_svd(case):
    for seed in range(3):
        module = linear_of(HARD[case](np.random.RandomState(seed)))
        (row,) = analyze(module, WholeMatrix())
        assert row.status == "ok"
        assert row.alpha == pytest.approx(alpha_of(module), abs=1e-4), seed


@pytest.mark.parametrize("rows", [10, 12, 16])
def test_few_eigenvalues_close_together(rows):
    """Where a bound by the largest error of one eigenvalue alone would let errors above 1e-4 through."""
    for columns in (20 * rows, 60 * rows, 100 * rows):
        for seed in range(40):
            module = linear_of(np.sign(np.random.RandomState(seed).standard_normal((rows, columns))))
            (row,) = analyze(module, WholeMatrix())
            assert row.alpha == pytest.approx(alpha_of(module), abs=1e-4), (columns, seed)


@pytest.mark.parametrize("rank", [10, SIZE // 2 - 1])
def test_rank_deficient_in_float32_is_not_taken_for_a_spectrum(rank):
    (row,) = analyze(linear_of(of_rank(rank)(np.random.RandomState(0))), WholeMatrix())
    assert row.status == "skipped"
    assert "rank-deficient" in row.reason


@pytest.mark.parametrize("case", ["graded over 6 decades", "spike of 1000", "mean of 100", "scale 1e19", "scale 1e-22"])
def test_hard_layer_is_promoted_and_the_easy_ones_are_not(passes, case):
    random = np.random.RandomState(0)
    easy = [linear_of(gaussian(random)), linear_of(heavy(3)(random)), linear_of(gaussian(random))]
    hard = linear_of(HARD[case](random))
    report = analyze(nn.Sequential(easy[0], hard, easy[1], easy[2]), WholeMatrix(), workers=1)
    modules = [easy[0], hard, easy[1], easy[2]]
    (quick, norms), exact = passes
    assert (quick, exact) == (torch.float32, (torch.float64, [squared_norm(hard)]))
    if case.startswith("scale"):  # its squares leave float32
        del norms[1], modules[1]
    assert norms == [squared_norm(module) for module in modules]
    for module, row in zip([easy[0], hard, easy[1], easy[2]], report, strict=True):
        assert row.alpha == pytest.approx(alpha_of(module), abs=1e-4)
        assert row.alpha == analyze(module, WholeMatrix())["weight"].alpha


def trained_like(random, rows, columns):
    """A bulk, a few spikes, and a tail as training leaves it."""
    left, right = gaussian(random, rows, 6), gaussian(random, 6, columns)
    noise = random.standard_t(4, size=(rows, columns))
    return (noise + left * [0.6, 0.4, 0.3, 0.2, 0.2, 0.1] @ right) / np.sqrt(columns)


@pytest.mark.parametrize("size", [16, 64, 128, 256])
@pytest.mark.parametrize("kind", ["gaussian", "uniform", "trained"])
def test_ordinary_layers_take_the_quick_way(passes, size, kind):
    random = np.random.RandomState(1)
    weight = {
        "gaussian": lambda: gaussian(random, size, 2 * size) / np.sqrt(size),
        "uniform": lambda: random.uniform(-1, 1, (2 * size, size)) / np.sqrt(size),
        "trained": lambda: trained_like(random, size, 2 * size),
    }[kind]()
    model = nn.Sequential(linear_of(weight), linear_of(weight, torch.bfloat16), linear_of(weight, torch.float16))
    analyze(model, workers=1)
    [(quick, norms)] = passes
    assert quick == torch.float32
    assert len(norms) == 6  # two windows of each
    assert [sum(norms[i : i + 2]) for i in (0, 2, 4)] == [squared_norm(module) for module in model]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (FARMS(fit="ks"), {}),
        (FARMS(fit="peak"), {}),
        (WholeMatrix(fit="peak_corrected"), {}),
        (FARMS(1.0, 16, 3, compat="official"), {}),
        (FARMS(), {"keep_eigenvalues": True}),
    ],
)
def test_what_never_takes_the_quick_way(passes, method, options):
    analyze(linear_of(gaussian(np.random.RandomState(0))), method, **options)
    [(exact, _)] = passes
    assert exact == torch.float64


@pytest.mark.parametrize("fit", ["hill", "hill_paper"])
@pytest.mark.parametrize("size", [10, 16, 33, 64, 128, 256, 512])
def test_rounding_is_a_bound(size, fit):
    kinds = {
        "gaussian": gaussian,
        "wide": lambda random, n, _: gaussian(random, n, 8 * n),
        "signs": lambda random, n, _: np.sign(gaussian(random, n, 8 * n)),
        "uniform": lambda random, n, _: random.uniform(0, 1, (n, n)),
        "trained": trained_like,
        "heavy": lambda random, n, _: random.standard_t(1.5, size=(n, n)),
        "nearly orthogonal": lambda random, n, _: orthogonal(random, n) + 0.1 * gaussian(random, n, n) / np.sqrt(n),
    }
    method = WholeMatrix(fit=fit)
    for kind, draw in kinds.items():
        for seed in range(max(1, min(30, 500 // size))):
            matrices = torch.tensor(draw(np.random.RandomState(seed), size, size), dtype=torch.float32)[None]
            weight = LayerWeight("w", "linear", tuple(matrices.shape[1:]), matrices, ())
            plan = plan_layer(weight, method)
            passed = torch.zeros((), dtype=torch.float64)
            quick, exact = (
                measure(
                    [Spectrum(esd(matrices.to(dtype), quick=True)[None], passed, passed)], [plan], method, Diagnostics()
                )[0]
                for dtype in (torch.float32, torch.float64)
            )
            assert abs(quick[0] - exact[0]) <= quick[ROUNDING], (kind, seed)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_inexact_products_are_not_used(precision):
    module = linear_of(trained_like(np.random.RandomState(0), SIZE, SIZE))
    torch.set_float32_matmul_precision(precision)
    try:
        (row,) = analyze(module)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert row.alpha == pytest.approx(alpha_of(module), rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round(dtype):
    module = linear_of(trained_like(np.random.RandomState(0), SIZE, SIZE))
    with torch.autocast("cpu", dtype):
        (row,) = analyze(module)
    assert row.alpha == pytest.approx(alpha_of(module), abs=1e-4)


@contextlib.contextmanager
def flushed_denormals():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("exponent", [-18, -19, -20, -21, -25])
def test_products_that_are_flushed_to_zero(exponent):
    module = linear_of(scaled(exponent)(np.random.RandomState(0)))
    expected = alpha_of(module)
    with flushed_denormals():
        (row,) = analyze(module, workers=1)
    assert row.alpha == pytest.approx(expected, abs=1e-4)


def small_matrices():
    shapes = st.tuples(st.integers(10, 40), st.integers(10, 40))
    return st.builds(lambda shape, seed: gaussian(np.random.RandomState(seed), *shape), shapes, st.integers(0, 2**31))


@settings(max_examples=15, deadline=None)
@given(small_matrices(), st.integers(-40, 40))
def test_powers_of_two_change_nothing_but_what_lapack_rounds(matrix, exponent):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        (row,), (other,) = (analyze(linear_of(matrix * scale, dtype)) for scale in (1.0, 2.0**exponent))
        assert other.alpha == pytest.approx(row.alpha, rel=tolerance)
        assert other.stable_rank == pytest.approx(row.stable_rank, rel=tolerance)
        assert other.spectral_norm == pytest.approx(row.spectral_norm * 4.0**exponent, rel=tolerance)


@settings(max_examples=15, deadline=None)
@given(small_matrices(), st.floats(1e-25, 1e25))
def test_scale_changes_no_alpha(matrix, scale):
    (row,), (other,) = analyze(linear_of(matrix)), analyze(linear_of(matrix * scale, torch.float64))
    assert other.alpha == pytest.approx(row.alpha, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(small_matrices())
def test_transposition_changes_no_alpha(matrix):
    (row,), (other,) = (analyze(linear_of(part, torch.float64)) for part in (matrix, matrix.T))
    assert other.alpha == pytest.approx(row.alpha, rel=1e-9)
    assert other.windows == row.windows


@settings(max_examples=15, deadline=None)
@given(small_matrices(), st.integers(0, 2**31))
def test_orthogonal_transforms_change_no_alpha_of_the_whole_matrix(matrix, seed):
    random = np.random.RandomState(seed)
    turned = orthogonal(random, len(matrix)) @ matrix @ orthogonal(random, matrix.shape[1])
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-4)):
        (row,), (other,) = (analyze(linear_of(part, dtype), WholeMatrix()) for part in (matrix, turned))
        assert other.alpha == pytest.approx(row.alpha, rel=tolerance)
