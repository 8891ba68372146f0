"""The course of sparsity over epochs: Zhu and Gupta's closed form, at the steps only."""

import pytest

from lightning_farms.pruning.schedule import Cubic, OneShot, PruningSchedule


def cubic(t, start, end, initial, final):
    """Equation 1 of arXiv 1710.01878, expanded."""
    x = (t - start) / (end - start)
    return initial + (final - initial) * (3 * x - 3 * x**2 + x**3)


@pytest.mark.parametrize(("start", "end", "initial"), [(0, 10, 0.0), (3, 7, 0.2), (2, 3, 0.5)])
def test_cubic_is_the_published_polynomial(start, end, initial):
    schedule = Cubic(start, end, initial_sparsity=initial)
    for epochs in range(start, end + 1):
        assert schedule.sparsity_at(epochs, 0.9) == pytest.approx(cubic(epochs, start, end, initial, 0.9), abs=1e-15)


def test_between_steps_nothing_changes_and_the_last_step_is_at_the_end():
    schedule = Cubic(1, 12, every_n_epochs=4)
    assert schedule.steps == (5, 9, 12)
    course = [schedule.sparsity_at(epochs, 0.5) for epochs in range(15)]
    fifth, ninth = cubic(5, 1, 12, 0, 0.5), cubic(9, 1, 12, 0, 0.5)
    assert course == pytest.approx([0.0] * 5 + [fifth] * 4 + [ninth] * 3 + [0.5] * 3)
    assert course[-1] == 0.5  # exactly, not by the formula


def test_an_initial_sparsity_is_reached_at_the_start():
    assert Cubic(2, 4, initial_sparsity=0.3).steps == (2, 3, 4)
    assert Cubic(2, 4).steps == (3, 4)
    assert Cubic(2, 4, initial_sparsity=0.3).sparsity_at(1, 0.6) == 0
    assert Cubic(2, 4, initial_sparsity=0.6).sparsity_at(2, 0.5) == 0.5  # never above what is asked for


@pytest.mark.parametrize("schedule", [OneShot(), OneShot(4), Cubic(0, 1), Cubic(2, 9, 3, 0.1)])
def test_sparsity_never_falls_and_changes_at_steps_only(schedule):
    course = [0.0, *(schedule.sparsity_at(epochs, 0.7) for epochs in range(12))]
    changes = [epochs for epochs in range(12) if course[epochs + 1] != course[epochs]]
    assert course == sorted(course)
    assert course[-1] == 0.7
    assert tuple(changes) == schedule.steps


def test_a_course_of_ones_own():
    class EverySecond(PruningSchedule):
        steps = (2, 4)

        def sparsity_at(self, epochs, sparsity):
            return sparsity * min(epochs // 2, 2) / 2

    assert EverySecond().last_step(1) is None
    assert EverySecond().last_step(3) == 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OneShot(-1), ValueError, "`at_epoch` to be at least 0, but got -1"),
        (lambda: OneShot(1.5), TypeError, "`at_epoch` to be an integer, but got 1.5"),
        (lambda: Cubic(3, 3), ValueError, "`end_epoch` to be at least 4, but got 3"),
        (lambda: Cubic(-1, 3), ValueError, "`start_epoch` to be at least 0, but got -1"),
        (lambda: Cubic(0, 3, 0), ValueError, "`every_n_epochs` to be at least 1, but got 0"),
        (lambda: Cubic(0, 3, True), TypeError, "`every_n_epochs` to be an integer, but got True"),
        (lambda: Cubic(0, 3, initial_sparsity=1.0), ValueError, r"`initial_sparsity` to be in \[0, 1\), but got 1.0"),
    ],
)
def test_what_is_out_of_range_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
