"""Layouts of stored weights: the letters, what they make of a tensor, and saying them for a model and for its file."""

import pytest
import torch
from torch import nn

from lightning_farms.analysis import Selection, analyze, analyze_weights, checkpoint_weights, layer_weights
from lightning_farms.analysis._layout_text import is_layout, laid_out
from lightning_farms.analysis.selection import PatternError


@pytest.mark.parametrize("text", ["oi", "io", "oik", "iokkk", "kkio", "okki", "bbio", "obik", "oibbc", "cbio", "batch"])
def test_what_is_a_layout(text):
    assert is_layout(text)
    assert is_layout(f"{text}/2") == ("k" in text)


@pytest.mark.parametrize("text", ["", "o", "i", "kk", "ooi", "oii", "oicc", "oix", "oik/0", "oik/", "Batch", "oi/2", 3])
def test_what_is_none(text):
    assert not is_layout(text)


def entry(weight, layout, pair, place):
    """One entry of the stored tensor by its letters."""
    places = iter(place)
    return weight[tuple(pair["oi".index(letter)] if letter in "oi" else next(places) for letter in layout)]


@pytest.mark.parametrize(
    ("layout", "shape", "kind"),
    [
        ("oi", (5, 4), "linear"),
        ("io", (4, 5), "linear"),
        ("oikk", (5, 4, 3, 2), "convolution"),
        ("iokk", (4, 5, 3, 2), "transposed convolution"),
        ("kkio", (3, 2, 4, 5), "convolution"),
        ("kkoi", (3, 2, 5, 4), "transposed convolution"),
        ("okki", (5, 3, 2, 4), "convolution"),
        ("boib", (3, 5, 4, 2), "parameter"),
    ],
)
def test_matrices_are_outputs_by_inputs_at_each_position(layout, shape, kind):
    weight = torch.randn(shape)
    found = laid_out(weight, layout)
    positions = [size for letter, size in zip(layout, shape, strict=True) if letter in "kb"]
    assert found.kind == kind
    assert found.matrices.shape == (torch.Size(positions).numel(), 5, 4)
    for number, place in enumerate(torch.cartesian_prod(*map(torch.arange, positions)) if positions else [[]]):
        assert found.matrices[number, 2, 3] == entry(weight, layout, (2, 3), [int(each) for each in place])


def test_groups_complex_numbers_batches_and_tables():
    weight = torch.randn(6, 4, 3)
    grouped = laid_out(weight, "oik/2").matrices
    assert grouped.shape == (6, 3, 4)
    assert torch.equal(grouped[3], weight[3:, :, 0])
    assert torch.equal(laid_out(weight.permute(2, 1, 0), "kio/2").matrices, grouped)
    assert torch.equal(laid_out(weight, "iok/2").matrices, laid_out(weight.permute(2, 1, 0), "koi/2").matrices)
    pairs = torch.randn(5, 4, 3, 2)
    found = laid_out(pairs, "oibc").matrices
    assert torch.equal(found[1], torch.complex(pairs[:, :, 1, 0], pairs[:, :, 1, 1]))
    assert torch.equal(laid_out(weight, "batch").matrices, weight)
    assert laid_out(weight[0], "embedding").kind == "embedding"


@pytest.mark.parametrize(
    ("layout", "shape"), [("oik", (4, 4)), ("oi/3", (4, 4)), ("oic", (4, 4, 3)), ("oik/3", (4, 4, 3))]
)
def test_layouts_that_do_not_fit_say_so(layout, shape):
    with pytest.raises(ValueError, match=r"layout|groups"):
        laid_out(torch.ones(shape), layout)


class Mixer(nn.Module):
    """Parameters whose shapes do not tell what they are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.kernels = nn.Parameter(torch.randn(12, 20, 16))
        self.table = nn.Parameter(torch.randn(24, 18))


SAID = Selection(layout=("mix.kernels=iok", "mix.t*=io"))


def test_what_is_said_holds_for_a_model_and_for_its_file(tmp_path):
    model = nn.ModuleDict({"mix": Mixer()})
    torch.save(model.state_dict(), tmp_path / "net.pt")
    rows = analyze(model, selection=SAID), analyze_weights(checkpoint_weights(tmp_path / "net.pt", SAID))
    for report in rows:
        assert [(row.name, row.kind, row.layout) for row in report] == [
            ("mix.kernels", "transposed convolution", "iok"),
            ("mix.table", "linear", "io"),
        ]
    assert list(rows[0]) == list(rows[1])
    as_oi = analyze_weights(checkpoint_weights({"k.weight": model["mix"].kernels.detach().permute(2, 1, 0)[..., :1]}))
    assert rows[0]["mix.kernels"].alpha != as_oi["k"].alpha
    [kernels, table] = layer_weights(model, SAID)
    assert torch.equal(kernels.matrices[3], model["mix"].kernels[:, :, 3].T)
    assert torch.equal(table.matrices[0], model["mix"].table.T)


def test_a_layout_that_does_not_fit_costs_its_row_only():
    model, said = nn.ModuleDict({"mix": Mixer()}), Selection(layout={"mix.kernels": "oikk"})
    for weights in (layer_weights(model, said), checkpoint_weights(model.state_dict(), said)):
        reasons = {weight.name.rpartition(".")[2]: weight.reason for weight in weights}
        assert any("'oikk' does not fit a weight of 3 dimensions" in reason for reason in reasons.values())


def test_selections_say_layouts_and_keep_their_text():
    assert repr(Selection()) == repr(Selection(layout=()))
    assert "layout" not in repr(Selection())
    assert Selection(layout={"a": "oi"}) == Selection(layout=("a=oi",))
    assert "layout=('a=oi',)" in repr(Selection(layout=("a=oi",)))
    assert Selection(layout=("a.*=batch", "*=oi")).layout_of("a.b") == "batch"
    with pytest.raises(ValueError, match=r"`layout` to be PATTERN=LAYOUT.*but got 'a=ox'"):
        Selection(layout=("a=ox",))
    with pytest.raises(PatternError, match=r"`layout` to match layers, but 'mux' matches none"):
        list(layer_weights(nn.ModuleDict({"mix": Mixer()}), Selection(layout=("mux=batch",))))


LAYOUTS = {
    "linear": (nn.Linear(4, 3), "oi"),
    "kernel": (nn.Conv2d(4, 6, 3), "oikk"),
    "kernel in groups": (nn.Conv1d(4, 6, 3, groups=2), "oik/2"),
    "transposed kernel": (nn.ConvTranspose3d(4, 6, 3), "iokkk"),
    "table": (nn.Embedding(5, 4), "embedding"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_modules_of_pytorch_have_their_layouts(name):
    module, layout = LAYOUTS[name]
    [weight] = layer_weights(module, Selection(embeddings=True))
    assert weight.layout == layout
    assert torch.equal(weight.matrices, laid_out(module.weight.detach(), layout).matrices)


GUESSES = {
    "a long last dimension": ("up.weight", (6, 20, 64), "batch", "PATTERN=oik"),
    "a long kernel": ("up.weight", (6, 20, 16), "oik", "PATTERN=batch"),
    "a kernel between": ("up.weight", (16, 3, 3, 3, 12), "okkki", "PATTERN=oikkk"),
    "a kernel of another name": ("up.taps", (16, 12, 3, 3), "oikk", "PATTERN=batch"),
    "a kernel by name": ("up.kernel", (27, 12, 16), "kio", "PATTERN=batch"),
    "pairs of FNO": ("up.weights1", (12, 16, 5, 5, 2), "iobbc", "guessed by its name"),
}


@pytest.mark.parametrize("case", GUESSES)
def test_a_guess_that_changes_the_number_is_said(case):
    name, shape, layout, remark = GUESSES[case]
    tensor = torch.randn(shape)
    [row] = analyze_weights(checkpoint_weights({name: tensor}))
    assert (row.layout, row.status) == (layout, "ok")
    assert remark in row.reason
    assert "--layout" in row.reason
    pattern = row.name
    [said] = analyze_weights(checkpoint_weights({name: tensor}, Selection(layout={pattern: layout})))
    assert (said.alpha, said.reason) == (row.alpha, "")


@pytest.mark.parametrize("name", ["complex_weight", "weight"])
def test_pairs_of_no_known_meaning_are_no_matrices(name):
    """GFNet's filter acts on each channel alone."""
    module = type("GlobalFilter", (nn.Module,), {})()
    setattr(module, name, nn.Parameter(torch.randn(14, 8, 32, 2)))
    for weights in (layer_weights(module), checkpoint_weights(module.state_dict())):
        [weight] = weights
        assert "its last dimension is 2" in weight.reason


def test_a_long_kernel_may_be_a_bilinear_form():
    state = {f"up.{name}": tensor for name, tensor in nn.Bilinear(16, 20, 12).state_dict().items()}
    [row] = analyze_weights(checkpoint_weights(state))
    assert "PATTERN=batch" in row.reason
    [said] = analyze_weights(checkpoint_weights(state, Selection(layout=("up=batch",))))
    module = nn.Bilinear(16, 20, 12)
    module.load_state_dict({name.removeprefix("up."): tensor for name, tensor in state.items()})
    assert said.alpha == analyze(module)["weight"].alpha


@pytest.mark.parametrize("joined", ["_", ""])
def test_copies_with_flattened_names_have_the_same_rows(joined):
    torch.manual_seed(0)
    layers = {"conv1": nn.Conv2d(16, 12, 3), "norm": nn.BatchNorm2d(12), "gru": nn.GRU(12, 16), "fc": nn.Linear(20, 24)}
    model = nn.ModuleDict(layers)
    flat = {"ema" + joined + name.replace(".", joined): tensor for name, tensor in model.state_dict().items()}
    expected = {"ema" + joined + row.name: row.alpha for row in analyze(model)}
    assert {row.name: row.alpha for row in analyze_weights(checkpoint_weights(flat))} == expected


def test_a_copy_beside_its_model_in_one_state_dict():
    """As a latent diffusion model's checkpoint has it; parameters of other modules keep their names."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Conv2d(16, 12, 3), "b": nn.Conv2d(16, 12, 1), "fc": nn.Linear(20, 24)})
    state = {f"model.unet.{name}": tensor for name, tensor in net.state_dict().items()}
    copies = {f"model_ema.unet{name.replace('.', '')}": tensor.clone() for name, tensor in net.state_dict().items()}
    own = {f"mix.{name}_weight": torch.randn(12, 16) for name in ("up", "gate", "down")}
    rows = {row.name: row for row in analyze_weights(checkpoint_weights({**state, **copies, **own}))}
    assert set(rows) == {f"{start}{name}" for start in ("model.unet.", "model_ema.unet") for name in net} | set(own)
    for name in net:
        model, copy = rows[f"model.unet.{name}"], rows[f"model_ema.unet{name}"]
        assert (copy.kind, copy.alpha, copy.layout) == (model.kind, model.alpha, model.layout)
