import numpy as np
import pytest
import torch

from lightning_farms.plotting import esd_figure
from lightning_farms.plotting.esd import density


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
    edges, heights = density(samples)
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
def test_density_integrates_to_the_share_of_nonzero_eigenvalues(zeros):
    samples = np.concatenate([np.full(zeros, 1e-17), pareto(150, 3.0, 0.1)])
    edges, heights = density(samples)
    assert np.sum(heights * np.diff(edges)) == pytest.approx(150 / (150 + zeros))
    assert edges[0] >= 0.1


def test_labels():
    figure = esd_figure(pareto(100, 3.0, 2.0), alpha=3.0, xmin=2.0, ks_distance=0.0456, title="conv1")
    axes = figure.axes[0]
    assert axes.get_xlabel() == r"eigenvalue $\lambda$ of $W^\top W$"
    assert axes.get_ylabel() == "density"
    assert axes.get_title() == "conv1"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
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
