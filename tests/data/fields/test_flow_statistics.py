import numpy as np
import pytest
import torch

from lightning_farms.data.fields import flow_statistics


@pytest.fixture
def fields():
    generator = torch.Generator().manual_seed(0)
    return [0.5 + torch.rand(3, 4, 5, 6, generator=generator) for _ in range(4)]


def test_figures_against_numpy(fields):
    figures = flow_statistics(*fields)
    density, pressure, vx, vy = (field.double().numpy() for field in fields)
    for b in range(3):
        sound = np.sqrt(5 / 3 * pressure[b, 0].mean() / density[b, 0].mean())
        first = (density[b, 0] * (vx[b, 0] ** 2 + vy[b, 0] ** 2)).sum()
        for t in range(4):
            expected = [
                density[b, t].mean(),
                pressure[b, t].mean(),
                vx[b, t].mean() / sound,
                vy[b, t].mean() / sound,
                np.std(density[b, t]) / density[b, t].mean(),
                np.std(pressure[b, t]) / pressure[b, t].mean(),
                np.std(vx[b, t]) / sound,
                np.std(vy[b, t]) / sound,
                (density[b, t] * (vx[b, t] ** 2 + vy[b, t] ** 2)).sum() / first,
            ]
            np.testing.assert_allclose([figure[b, t].item() for figure in figures], expected, rtol=1e-12)


def test_shapes_that_differ(fields):
    with pytest.raises(ValueError, match=r"fields to be of one shape \(B, T, X, Y\), but got"):
        flow_statistics(*fields[:3], fields[3][:2])
    with pytest.raises(ValueError, match=r"of one shape \(B, T, X, Y\)"):
        flow_statistics(*(field[0] for field in fields))
