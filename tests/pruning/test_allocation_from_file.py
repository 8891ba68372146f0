"""Ratios, scores and figures of one's own, in JSON and CSV."""

import json

import pytest

from lightning_farms.pruning import FileAllocation, RampAllocation, allocate
from tests.pruning.tiny_models import blocks_of_linears

NAMES = ["layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2"]


@pytest.fixture(scope="module")
def model():
    return blocks_of_linears([(20, 20), (20, 20)], blocks=2)


@pytest.fixture
def write(tmp_path):
    def write(content, name="ratios.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def ratios_of(model, path, sparsity=0.5, **options):
    return {layer.name: layer.ratio for layer in allocate(model, sparsity, FileAllocation(path, **options))}


def test_ratios_stand_as_they_are_where_they_reach_the_sparsity(model, write):
    wanted = dict(zip(NAMES, [0.2, 0.4, 0.6, 0.8], strict=True))
    assert ratios_of(model, write(wanted)) == pytest.approx(wanted, abs=1e-12)
    lines = "layer,ratio,remark\n" + "".join(f"{name},{ratio},x\n" for name, ratio in wanted.items())
    assert ratios_of(model, write(lines, "ratios.csv")) == pytest.approx(wanted, abs=1e-12)


def test_ratios_are_scaled_to_another_sparsity(model, write):
    wanted = dict(zip(NAMES, [0.2, 0.4, 0.6, 0.8], strict=True))
    found = ratios_of(model, write(wanted), sparsity=0.25)
    assert found == pytest.approx({name: ratio / 2 for name, ratio in wanted.items()})
    assert set(ratios_of(model, write(wanted), sparsity=0).values()) == {0.0}


def test_a_layers_own_number_wins_over_its_blocks(model, write):
    found = ratios_of(model, write({"layers.0": 0.3, "layers.1": 0.7, "layers.1.2": 0.9}), sparsity=0.55)
    assert found == pytest.approx(dict(zip(NAMES, [0.3, 0.3, 0.7, 0.9], strict=True)), abs=1e-12)


def test_scores_are_taken_as_they_are(model, write):
    scores = {"layers.0": 0.0, "layers.1.0": 3.0, "layers.1.2": 1.0}
    allocation = FileAllocation(write(scores), "score")
    assert [layer.score for layer in allocate(model, 0.25, allocation)] == [0.0, 0.0, 3.0, 1.0]
    assert ratios_of(model, write(scores), sparsity=0.25, column="score")["layers.1.0"] == pytest.approx(0.75)


def test_a_score_of_nought_may_hold_too_many_weights(model, write):
    with pytest.raises(ValueError, match="to leave the layers of score 0 at the floor"):
        ratios_of(model, write({"layers.0": 0.0, "layers.1": 1.0}), sparsity=0.7, column="score")


def test_figures_are_mapped(model, write):
    figures = {"layers.0.0": 2.0, "layers.0.2": 4.0, "layers.1.0": 6.0, "layers.1.2": None}
    options = {"column": "source", "epsilon": 0.5}
    each = [layer.score for layer in allocate(model, 0.5, FileAllocation(write(figures), **options))]
    assert each == [0.5, 1.0, 1.5, 1.0]
    blocks = FileAllocation(write(figures), granularity="block", reverse=True, **options)
    assert [layer.score for layer in allocate(model, 0.5, blocks)] == [1.5, 1.5, 0.5, 0.5]


def test_a_block_may_have_the_mean_of_its_ratios(model, write):
    found = ratios_of(model, write(dict(zip(NAMES, [0.2, 0.4, 0.6, 0.8], strict=True))), granularity="block")
    assert list(found.values()) == pytest.approx([0.3, 0.3, 0.7, 0.7])


@pytest.mark.parametrize("form", ["json", "csv"])
@pytest.mark.parametrize("column", ["ratio", "score", "source"])
def test_what_an_allocation_writes_can_be_read(model, tmp_path, form, column):
    ratios = allocate(model, 0.5, RampAllocation(epsilon=0.4))
    path = tmp_path / f"ratios.{form}"
    getattr(ratios, f"to_{form}")(path)
    again = allocate(model, 0.5, FileAllocation(path, column, epsilon=0.4))
    assert [layer.zeros for layer in again] == [layer.zeros for layer in ratios]


def test_names_that_match_nothing_are_named_in_one_error(model, write):
    path = write({"layers.0": 0.3, "layer.1": 0.5, "layers.1.q": 0.5, "zzz": 1.0})
    with pytest.raises(ValueError, match="but 3 of 4 are not: ") as caught:
        ratios_of(model, path)
    assert "'layer.1' (did you mean 'layers.1'?), 'layers.1.q' (did you mean 'layers.1" in str(caught.value)
    assert "'zzz'. The model has 'layers.0.0' in 'layers.0', for example." in str(caught.value)


def test_layers_may_be_a_name_like_any_other(model, write):
    with pytest.raises(ValueError, match=r"'layers'.*The model has 'layers.0.0' in 'layers.0'"):
        ratios_of(model, write({"layers": 0.5}))


def test_layers_without_a_number_are_named(model, write):
    with pytest.raises(ValueError, match=r"but 3 of 4 have none: layers.0.2, layers.1.0, layers.1.2\."):
        ratios_of(model, write({"layers.0.0": 0.3}))


def test_what_spreadsheets_write_can_be_read(model, write):
    path = write("\ufeffname, ratio\r\nlayers.0, 0.4\r\nlayers.1, 0.6\r\n", "a.csv")
    assert ratios_of(model, path) == dict(zip(NAMES, [0.4, 0.4, 0.6, 0.6], strict=True))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("[1, 2]", "a.json"),
        ('{"layers.0": "much"}', "a.json"),
        ('{"layers": [{"name": "layers.0"}]}', "a.json"),
        ("{", "a.json"),
        ("name,size\nlayers.0,4\n", "a.csv"),
        ("what,ratio\nlayers.0,0.5\n", "a.csv"),
        ("name,ratio\n", "a.csv"),
        ("name,ratio\nlayers.0\n", "a.csv"),
        ('{"layers.0": 0.2, "layers.1": 0.5, "layers.0": 0.8}', "a.json"),
        ("name,ratio\nlayers.0,0.2\nlayers.1,0.5\nlayers.0,0.8\n", "a.csv"),
    ],
)
def test_files_that_are_something_else(model, write, content, name):
    with pytest.raises(ValueError, match=r"Expected argument `path` to be a JSON object|Expected every ratio in"):
        ratios_of(model, write(content, name))


@pytest.mark.parametrize(
    ("column", "number", "rule"),
    [("ratio", 1.2, "in [0, 1]"), ("ratio", None, "in [0, 1]"), ("score", -0.5, "finite and not negative")],
)
def test_numbers_out_of_range(model, write, column, number, rule):
    with pytest.raises(ValueError, match="Expected every") as caught:
        ratios_of(model, write({"layers.0": number, "layers.1": 0.5}), column=column)
    assert f"to be {rule}, but got" in str(caught.value)


def test_options_out_of_range(model, tmp_path):
    with pytest.raises(ValueError, match="Expected argument `column` to be one of"):
        FileAllocation("a.json", "alpha")
    with pytest.raises(ValueError, match='Expected argument `reverse` to be False with column="ratio"'):
        FileAllocation("a.json", reverse=True)
    with pytest.raises(FileNotFoundError):
        allocate(model, 0.5, FileAllocation(tmp_path / "none.json"))
