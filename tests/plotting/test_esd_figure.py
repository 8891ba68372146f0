import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.integrate import trapezoid

from lightning_farms.functional.random_matrix import fit_marchenko_pastur, marchenko_pastur_density
from lightning_farms.functional.spectral_metrics import spectral_density
from lightning_farms.plotting import esd_figure


def pareto(count, alpha, xmin, seed=0):
    """Samples of the power law with this exponent, by inverting its distribution function."""
    u = np.random.RandomState(seed).uniform(size=count)
    return xmin * (1 - u) ** (-1 / (alpha - 1))


def lines(figure):
    axes = figure.axes[0]
    return {line.get_label().split()[0]: line for line in axes.get_lines()}


def mass(x, y):
    """Integral of a power law given at points, exact for each segment of the log-log polygon."""
    a, b = np.log(x), np.log(x * y)
    slope = np.diff(b) / np.diff(a)
    return float(np.sum((np.exp(b[1:]) - np.exp(b[:-1])) / slope))


@pytest.mark.parametrize(
    "convert", [np.asarray, torch.from_numpy, lambda v: torch.from_numpy(v).requires_grad_(), list]
)
def test_tail_has_the_mass_of_the_eigenvalues_there(convert):
    body, tail = np.linspace(0.01, 0.99, 300), pareto(700, 2.5, 1.0)
    figure = esd_figure(
        convert(np.concatenate([tail, body])), alpha=2.5, xmin=1.0, ks_distance=0.02, title="blocks.0.mlp.0"
    )
    x, y = lines(figure)["tail"].get_data()
    assert x[0] == pytest.approx(1.0)
    assert x[-1] == pytest.approx(tail.max())
    # the drawn part lacks what the law has beyond the largest eigenvalue: (max / xmin)^(1 - alpha)
    assert mass(x, y) == pytest.approx(0.7 * (1 - tail.max() ** -1.5), rel=1e-6)
    np.testing.assert_allclose(np.diff(np.log(y)) / np.diff(np.log(x)), -2.5)


def test_tail_lies_on_the_histogram_of_pareto_samples():
    samples = pareto(200_000, 2.2, 0.03)
    edges, heights = (part.numpy() for part in spectral_density(torch.from_numpy(samples)))
    figure = esd_figure(samples, alpha=2.2, xmin=0.03, ks_distance=0.0, title="pareto")
    x, y = lines(figure)["tail"].get_data()
    centres = np.sqrt(edges[1:] * edges[:-1])
    many = heights * np.diff(edges) * samples.size > 500
    assert many.sum() >= 20
    drawn = np.exp(np.interp(np.log(centres), np.log(x), np.log(y)))
    # within a bin the law is curved: compare with its mean over the bin
    exact = np.diff(-((edges / 0.03) ** -1.2)) / np.diff(edges)
    np.testing.assert_allclose(
        heights[many], (drawn * exact / (1.2 / 0.03 * (centres / 0.03) ** -2.2))[many], rtol=0.15
    )


@pytest.mark.parametrize("zeros", [0, 50])
def test_histogram_integrates_to_the_share_of_nonzero_eigenvalues_but_for_the_smallest_twentieth(zeros):
    samples = np.concatenate([np.full(zeros, 1e-17), pareto(150, 3.0, 0.1)])
    figure = esd_figure(samples, alpha=3.0, xmin=0.1, ks_distance=0.0, title="zeros")
    heights, edges, floor = figure.axes[0].patches[0].get_data()
    heights = np.where(heights > floor, heights, 0)
    assert np.sum(heights * np.diff(edges)) == pytest.approx((150 - 7) / (150 + zeros))
    assert edges[0] == pytest.approx(np.sort(samples)[zeros + 7])


def test_law_and_threshold_of_a_random_matrix_with_two_spikes():
    matrix = np.random.RandomState(0).standard_normal((90, 60))
    matrix[0] += 5
    matrix[:, 0] += 4
    values = torch.from_numpy(np.linalg.svd(matrix, compute_uv=False) ** 2)
    fit = fit_marchenko_pastur(values.unsqueeze(0), 90, 60)
    figure = esd_figure(
        values,
        alpha=3.0,
        xmin=100.0,
        ks_distance=0.1,
        title="fc",
        mp_edges=(fit.lower_edge.item(), fit.upper_edge.item()),
        spike_threshold=fit.spike_threshold.item(),
    )
    x, y = lines(figure)["Marchenko-Pastur"].get_data()
    assert (x[0], x[-1]) == (pytest.approx(fit.lower_edge.item()), pytest.approx(fit.upper_edge.item()))
    inside = y > y.min()
    expected = 58 / 60 * marchenko_pastur_density(torch.from_numpy(x), 90, 60, fit.variance).numpy()
    np.testing.assert_allclose(y[inside], expected[inside], rtol=1e-9)
    assert trapezoid(y, x) == pytest.approx(58 / 60, rel=0.05)
    mark = lines(figure)["spikes"]
    assert mark.get_label() == f"spikes beyond {fit.spike_threshold.item():.4g}: 2"
    assert list(mark.get_xdata()) == [fit.spike_threshold.item()] * 2


def test_law_of_a_square_matrix_begins_with_the_histogram():
    values = np.linalg.svd(np.random.RandomState(0).standard_normal((50, 50)), compute_uv=False) ** 2
    figure = esd_figure(values, alpha=3.0, xmin=1.0, ks_distance=0.1, title="fc", mp_edges=(0.0, 200.0))
    x, y = lines(figure)["Marchenko-Pastur"].get_data()
    assert x[0] == pytest.approx(figure.axes[0].patches[0].get_data().edges[0])
    assert x[0] < np.quantile(values, 0.1)
    assert np.isfinite(y).all()
    assert "spikes" not in lines(figure)


def test_a_fit_of_nan_draws_no_law():
    nan = float("nan")
    figure = esd_figure(
        [1.0, 2.0, 4.0], alpha=2.0, xmin=1.0, ks_distance=0.1, title="x", mp_edges=(nan, nan), spike_threshold=nan
    )
    assert set(lines(figure)) == {"tail", "$x_{min}$"}


@pytest.mark.parametrize("edges", [(2.0, 1.0), (-1.0, 1.0), (0.0, 0.0)])
def test_wrong_edges(edges):
    with pytest.raises(ValueError, match="`mp_edges` to be ascending and not negative, but got"):
        esd_figure([1.0], alpha=2.0, xmin=1.0, ks_distance=0.1, title="x", mp_edges=edges)


def test_everything_drawn_lies_inside_the_figure():
    figure = esd_figure(
        pareto(300, 2.0, 1.0),
        alpha=2.0,
        xmin=1.0,
        ks_distance=0.1,
        title="model.layers.31.self_attention.query_key_value.projection.weight",
        mp_edges=(1.0, 3.0),
        spike_threshold=3.5,
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    for item in (axes.title, axes.xaxis.label, axes.yaxis.label, figure.legends[0]):
        box = item.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
    assert not figure.legends[0].get_window_extent().overlaps(axes.get_window_extent())


def test_labels():
    figure = esd_figure(pareto(100, 3.0, 2.0), alpha=3.0, xmin=2.0, ks_distance=0.0456, title="conv1")
    axes = figure.axes[0]
    assert axes.get_xlabel() == r"eigenvalue $\lambda$ of $W^\top W$"
    assert axes.get_ylabel() == "density"
    assert axes.get_title() == "conv1"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "ESD, 100 eigenvalues",
        r"tail $x^{-\alpha}$: $\alpha$ = 3.00, D = 0.046",
        "$x_{min}$ = 2",
    ]
    assert list(lines(figure)["$x_{min}$"].get_xdata()) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("values", "alpha", "xmin", "drawn"),
    [
        ([1.0, 2.0, 3.0], float("nan"), float("nan"), set()),
        ([1.0, 2.0, 3.0], 0.8, 2.0, {"$x_{min}$"}),
        ([2.0, 2.0], 3.0, 2.0, {"tail", "$x_{min}$"}),
        ([5.0, float("nan"), float("inf"), 0.0], 2.0, 5.0, {"tail", "$x_{min}$"}),
    ],
)
def test_no_fit_and_degenerate_spectra_still_draw(values, alpha, xmin, drawn):
    figure = esd_figure(values, alpha=alpha, xmin=xmin, ks_distance=0.1, title="x")
    assert set(lines(figure)) == drawn
    figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [float("nan")], [-1.0]])
def test_nothing_to_draw(values):
    with pytest.raises(ValueError, match="`eigenvalues` to have a positive finite value, but got none among"):
        esd_figure(values, alpha=2.0, xmin=1.0, ks_distance=0.1, title="x")


def test_matrix_is_refused():
    with pytest.raises(ValueError, match=r"`eigenvalues` to have 1 dimension\(s\), but got shape \(2, 2\)"):
        esd_figure(np.ones((2, 2)), alpha=2.0, xmin=1.0, ks_distance=0.1, title="x")
