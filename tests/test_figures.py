"""The scripts of examples/figures: what they compute at small sizes, and (slow) that they run in time."""

import importlib.util
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lightning_farms import FARMS, WholeMatrix, analyze
from lightning_farms.models import resnet34

EXAMPLES = Path(__file__).parents[1] / "examples"
FIGURES = ("figure_2_8", "figure_6", "figure_7", "figure_14")
MOST_BYTES = 150_000
MOST_SECONDS = 180


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / "figures" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def law():
    return script("figure_2_8")


@pytest.fixture(scope="module")
def untrained():
    return script("figure_6")


@pytest.fixture(scope="module")
def final_layer():
    return script("figure_7")


@pytest.fixture(scope="module")
def teacher():
    return script("figure_14")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def density(x, ratio):
    """Marchenko-Pastur density of variance 1 / rows, as in Appendix B of the paper; ratio is columns / rows."""
    lower, upper = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    return math.sqrt(max((upper - x) * (x - lower), 0)) / (2 * math.pi * ratio * x)


def share_up_to(x, ratio):
    return integrate.quad(density, (1 - ratio**0.5) ** 2, x, args=(ratio,), limit=200)[0]


def pareto_alpha(eigenvalues):
    """1 + the shape that scipy fits to the upper half."""
    ordered = np.sort(eigenvalues)
    tail = ordered[len(ordered) // 2 :]
    return 1 + stats.pareto.fit(tail, floc=0, fscale=tail[0])[0]


@pytest.mark.parametrize("ratio", [1.5, 2.0, 5.0])
def test_hill_limit_is_the_integral_over_the_law(law, ratio):
    upper = (1 + ratio**-0.5) ** 2
    rows = round(100 * ratio)
    x = np.linspace((1 - ratio**-0.5) ** 2, upper, 400)
    median = np.interp(0.5, [share_up_to(value, 1 / ratio) for value in x], x)
    mean_log = integrate.quad(lambda x: density(x, 1 / ratio) * math.log(x / median), median, upper)[0]
    assert law.hill_limit(rows, 100) == pytest.approx(1 + 0.5 / mean_log, rel=1e-3)


def test_distance_to_law_is_scipys(law):
    matrix = law.gaussian(90, 30, seeded()).double().numpy()
    eigenvalues = np.linalg.svd(matrix, compute_uv=False) ** 2
    lower, upper = (1 - 3**-0.5) ** 2, (1 + 3**-0.5) ** 2
    expected = stats.kstest(eigenvalues, np.vectorize(lambda x: share_up_to(min(max(x, lower), upper), 1 / 3)))
    assert law.distance_to_law(90, 30, seeded()) == pytest.approx(expected.statistic, abs=1e-5)


def test_alpha_of_a_spectrum_is_scipys(law):
    one = law.spectrum(80, 20, seeded())
    matrix = law.gaussian(80, 20, seeded()).double().numpy()
    assert one.alpha == pytest.approx(pareto_alpha(np.linalg.svd(matrix, compute_uv=False) ** 2), rel=1e-5)
    windows = [np.linalg.svd(matrix[start : start + 20], compute_uv=False) ** 2 for start in (0, 20, 40, 60)]
    assert one.windows_alpha == pytest.approx(pareto_alpha(np.concatenate(windows)), rel=1e-5)


def test_aspect_ratio_moves_whole_matrices_only(law):
    curve = law.alpha_curve([1.0, 4.0], 64, 4, seeded())
    assert curve.whole == pytest.approx(curve.limit, rel=0.07)
    assert curve.whole[1] - curve.whole[0] > 1
    assert curve.windows == pytest.approx([curve.limit[0]] * 2, rel=0.07)


def test_figure_of_the_law(law):
    spectra = [law.spectrum(40 * ratio, 40, seeded()) for ratio in (1, 4)]
    figure = law.draw(spectra, law.alpha_curve([1.0, 4.0], 16, 1, seeded()), [20, 40], {1: [0.1, 0.05]})
    assert [
        f"whole {one.alpha:.2f}" in axes.get_title() for one, axes in zip(spectra, figure.axes[:2], strict=True)
    ] == [True] * 2


def test_untrained_network_is_the_seeds_and_leaves_the_global_generator_alone(untrained):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    reports = untrained.analyze_untrained(resnet34, 16, seed=3)
    torch.testing.assert_close(torch.rand(3), expected)
    torch.manual_seed(3)
    head = resnet34(100, width=16).fc.weight.detach().double().numpy()
    whole = pareto_alpha(np.linalg.svd(head, compute_uv=False) ** 2)
    assert reports["whole matrix"]["fc"].alpha == pytest.approx(whole, rel=1e-5)
    assert len(reports["FARMS"]) == 37
    assert reports["FARMS"].std_alpha < reports["whole matrix"].std_alpha / 4


def test_figure_of_untrained_networks(untrained):
    reports = untrained.analyze_untrained(resnet34, 4, seed=0)
    figure = untrained.draw({"ResNet-34": {untrained.PUBLISHED_WIDTH: reports}})
    for line, label in zip(figure.axes[0].get_lines(), ("whole matrix", "FARMS"), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), list(reports[label].alphas.values()))


def test_images_of_a_group_are_alike(final_layer):
    patterns = final_layer.class_patterns(seeded()).flatten(1).numpy()
    likeness = np.corrcoef(patterns)
    same_group = np.arange(100)[:, None] // 5 == np.arange(100) // 5
    same_class = np.eye(100, dtype=bool)
    assert likeness[same_group & ~same_class].mean() > 0.5
    assert abs(likeness[~same_group].mean()) < 0.05


def test_small_net_learns(final_layer):
    generator = seeded()
    patterns = final_layer.class_patterns(generator)
    training, held_out = (final_layer.draw_images(patterns, number, generator) for number in (15, 3))
    assert torch.equal(held_out.classes.bincount(), torch.full((100,), 3))
    torch.manual_seed(0)
    model = final_layer.SmallNet()
    assert tuple(model.final.weight.shape) == (100, 512)
    final_layer.train(model, training, 2, generator)
    with torch.no_grad():
        guesses = model.eval()(held_out.pixels).numpy().argmax(1)
    assert final_layer.accuracy(model, held_out) == pytest.approx(np.mean(guesses == held_out.classes.numpy()))
    assert np.mean(guesses == held_out.classes.numpy()) > 0.05


def test_figure_of_the_final_layer(final_layer):
    torch.manual_seed(0)
    rows = {}
    for label, method in (("whole matrix", WholeMatrix()), ("FARMS", FARMS(window=100, steps=9))):
        rows[label] = analyze(final_layer.SmallNet(), method, keep_eigenvalues=True)["final"]
    assert [row.windows for row in rows.values()] == [1, 9]
    figure = final_layer.draw(rows, rows)
    assert [f"= {row.alpha:.2f}" in axes.get_title() for row, axes in zip(rows.values(), figure.axes, strict=True)] == [
        True
    ] * 2


def descend(weight, second, task, rate, steps):
    """Gradient descent on half the mean squared error of a tanh student, the gradient by hand."""
    inputs, answers = (values.double().numpy() for values in (task.inputs, task.answers))
    width = len(weight)
    for _ in range(steps):
        hidden = np.tanh(inputs @ weight.T)
        error = hidden @ second / width**0.5 - answers
        slope = error[:, None] * (1 - hidden**2) * second / width**0.5
        weight = weight - rate * width**0.5 * slope.T @ inputs / len(answers)
    return weight


def test_student_follows_the_gradient_written_by_hand(teacher):
    task = teacher.make_task(24, 200, "tanh", seeded())
    student = teacher.Student(24, 16, "tanh", seeded(1))
    start, second = student.first.weight.detach().double().numpy(), student.second.double().numpy()
    untrained_alpha = analyze(student, FARMS())["first"].alpha
    outcome = teacher.train_student(student, task, rate=1.0, steps=20)
    states = {step: descend(start, second, task, 1.0, step) for step in (0, 10, 20)}
    first_vectors = {step: np.linalg.svd(weight)[2][0] for step, weight in states.items()}
    alignments = {step: abs(v @ task.direction.double().numpy()) for step, v in first_vectors.items()}
    assert outcome.step == max(alignments, key=alignments.get) > 0
    assert outcome.alignment == pytest.approx(alignments[outcome.step], abs=1e-4)
    np.testing.assert_allclose(student.first.weight.detach().numpy(), states[outcome.step], atol=1e-4)
    assert outcome.initial_alphas["FARMS"] == pytest.approx(untrained_alpha)
    eigenvalues = np.linalg.svd(states[outcome.step], compute_uv=False) ** 2
    assert outcome.alphas["whole matrix"] == pytest.approx(pareto_alpha(eigenvalues), rel=1e-3)


def test_correlation_and_average_are_scipys_and_numpys(teacher):
    values = np.random.default_rng(0).random((2, 4, 3))
    runs = [
        [teacher.Outcome(8, quality, 10, dict.fromkeys(teacher.METHODS, alpha), dict.fromkeys(teacher.METHODS, first))
         for quality, alpha, first in run]
        for run in values
    ]  # fmt: skip
    assert teacher.correlation(runs[0], "FARMS") == pytest.approx(stats.pearsonr(values[0, :, 0], values[0, :, 1])[0])
    means = teacher.average(runs)
    found = [[one.alignment, one.alphas["FARMS"], one.initial_alphas["FARMS"]] for one in means]
    np.testing.assert_allclose(found, values.mean(0))
    assert math.isnan(teacher.correlation(runs[0][:1], "FARMS"))


def test_teacher_and_student_from_the_command_line(teacher, tmp_path, capsys):
    teacher.main(tmp_path / "new", samples=40, seeds=1, steps=10, widths=(12, 20, 500))
    printed = capsys.readouterr().out
    assert printed.count("width ") == 3
    assert printed.count("correlation of alignment and alpha") == 3
    assert (tmp_path / "new" / "figure_14.png").stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", FIGURES)
def test_readme_shows_each_small_picture_with_its_command(name):
    readme = (EXAMPLES / "figures" / "README.md").read_text(encoding="utf-8")
    assert f"({name}.png)" in readme
    assert f"python examples/figures/{name}.py" in readme
    assert (EXAMPLES / "figures" / f"{name}.png").stat().st_size < MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_script_runs_in_time(name, tmp_path):
    start = time.perf_counter()
    command = [sys.executable, str(EXAMPLES / "figures" / f"{name}.py"), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert time.perf_counter() - start < MOST_SECONDS
    assert (tmp_path / f"{name}.png").stat().st_size < MOST_BYTES
    assert "alpha" in result.stdout
