"""Shifts and symmetries: exact, of the right channels, and drawn alike whatever the workers and resumptions."""

import itertools
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_farms.data import Augmentation, CFDDataModule, Symmetry, integrate, moved, random_initial_state
from lightning_farms.data.fields._vectors import vector_pairs
from tests.data.fields.labelled_flows import module, write_labelled
from tests.data.recorder import Recorder

EIGHT = [Symmetry(*flags) for flags in itertools.product([False, True], repeat=3)]
VELOCITY = [(1, 2)]  # of density, x-velocity, y-velocity, pressure


class TestMoved:
    def test_by_hand(self):
        """A quarter turn against the clock: x becomes y, y becomes -x."""
        scalar = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        vx, vy = 10 * scalar, 100 * scalar
        turned = moved(torch.stack((scalar, vx, vy), -1), Symmetry(transpose=True, flip_x=True), VELOCITY)
        assert turned[..., 0].tolist() == [[2, 4], [1, 3]]
        assert turned[..., 1].tolist() == [[-200, -400], [-100, -300]]
        assert turned[..., 2].tolist() == [[20, 40], [10, 30]]

    def test_shifts_by_hand(self):
        fields = torch.arange(6.0).reshape(2, 3, 1)
        assert moved(fields, Symmetry(shift_x=1, shift_y=2))[..., 0].tolist() == [[4, 5, 3], [1, 2, 0]]
        assert moved(fields, Symmetry(flip_y=True))[..., 0].tolist() == [[2, 1, 0], [5, 4, 3]]

    def test_the_eight_are_different_and_closed(self):
        """A group: any two in a row are one of them."""
        fields = torch.randn(4, 4, 2, 3, dtype=torch.float64)
        images = [moved(fields, each, VELOCITY) for each in EIGHT]
        assert len({tuple(image.flatten().tolist()) for image in images}) == 8
        for first, second in itertools.product(EIGHT, EIGHT):
            both = moved(moved(fields, first, VELOCITY), second, VELOCITY)
            assert sum(torch.equal(both, image) for image in images) == 1

    def test_positions_are_mapped_as_vectors_are(self):
        """The field v(x) = x - centre looks the same from everywhere."""
        axis = torch.arange(5.0) - 2
        x, y = torch.meshgrid(axis, axis, indexing="ij")
        radial = torch.stack((x.square() + y.square(), x, y), -1)
        for symmetry in EIGHT:
            torch.testing.assert_close(moved(radial, symmetry, VELOCITY), radial, rtol=0, atol=0)

    def test_a_rectangle_is_not_transposed(self):
        with pytest.raises(ValueError, match=r"as many cells along x as along y to be transposed, but got \(2, 3\)"):
            moved(torch.zeros(2, 3, 1), Symmetry(transpose=True))
        assert moved(torch.zeros(2, 3, 1), Symmetry(flip_x=True)).shape == (2, 3, 1)


@pytest.mark.parametrize("stress", ["full", "unmixed"])
def test_the_solver_commutes_with_all_of_them(stress):
    """Simulating the moved beginning gives the moved flow."""
    begin = random_initial_state(3, resolution=16, mach=0.5, seed=1).movedim(0, -1)
    symmetries = [each._replace(shift_x=3 * i % 16, shift_y=5) for i, each in enumerate(EIGHT)]
    states = torch.stack([moved(begin, each, VELOCITY) for each in symmetries]).movedim(-1, 0)
    flows = integrate(states, [0.0, 0.1], eta=0.01, zeta=0.02, stress=stress).movedim(0, -1)  # (B, T, X, Y, C)
    assert (flows[0, 1] - flows[0, 0]).abs().max() > 0.01
    original = integrate(begin.movedim(-1, 0)[:, None], [0.0, 0.1], eta=0.01, zeta=0.02, stress=stress)
    expected = original.movedim(0, -1)[0].movedim(0, 2)
    for symmetry, flow in zip(symmetries, flows, strict=True):
        torch.testing.assert_close(flow.movedim(0, 2), moved(expected, symmetry, VELOCITY), rtol=1e-12, atol=1e-12)


class TestDraws:
    def test_each_is_drawn_about_as_often(self):
        augmentation = Augmentation(shift_x=True, shift_y=True, flips=True, turns=True)
        drawn = [augmentation.drawn((4, 3), epoch=epoch, item=item) for epoch in range(10) for item in range(96)]
        counts = np.unique([each[:3] for each in drawn], axis=0, return_counts=True)[1]
        assert len(counts) == 8
        assert 80 < counts.min() <= counts.max() < 165  # of 960, four standard deviations around 120
        shifts = np.unique([each[3:] for each in drawn], axis=0)
        assert shifts.tolist() == [[x, y] for x in range(4) for y in range(3)]

    def test_only_what_is_allowed(self):
        none = Augmentation()
        assert {none.drawn((4, 4), epoch=0, item=item) for item in range(20)} == {Symmetry()}
        some = Augmentation(shift_x=True, flips=True)
        drawn = [some.drawn((4, 4), epoch=0, item=item) for item in range(40)]
        assert not any(each.transpose or each.shift_y for each in drawn)
        assert len({(each.flip_x, each.flip_y) for each in drawn}) == 4

    def test_by_seed_epoch_and_item(self):
        draws = {
            Augmentation(shift_x=True, shift_y=True, seed=seed).drawn((999, 999), epoch=epoch, item=item)
            for seed, epoch, item in itertools.product(range(3), repeat=3)
        }
        assert len(draws) == 27


class TestNames:
    @pytest.mark.parametrize(
        ("fields", "pairs"),
        [
            (["Vx", "Vy", "density", "pressure"], [(0, 1)]),
            (["rho", "velocity_y", "velocity_x"], [(2, 1)]),
            (["ux", "uy", "force_x", "force_y"], [(0, 1), (2, 3)]),
            ({"a": "t1_fields/flux[1]", "b": "t1_fields/flux[0]", "T": "t0_fields/T"}, [(1, 0)]),
            ({"a": "velocity[0]", "b": "velocity[1]"}, [(0, 1)]),
            ({"Vx": "data[0]", "Vy": "data[1]", "density": "data[2]", "pressure": "data[3]"}, [(0, 1)]),
            ({"h": "*/data[0]"}, []),
            (["temperature", "u", "energy"], []),
        ],
    )
    def test_vectors_that_are_known(self, fields, pairs):
        fields = fields if isinstance(fields, dict) else {name: name for name in fields}
        assert list(vector_pairs(fields, None)) == pairs

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"u": "*/data[0]", "v": "*/data[1]"}, r"but \['u', 'v'\] may be either\. Say which .*`vectors: \[\]`"),
            ({"Bx": "Bx", "By": "By"}, r"\['Bx', 'By'\] may be either"),
            ({"activator": "*/data[0]", "inhibitor": "*/data[1]"}, "may be either"),
            ({"Vx": "Vx", "density": "density"}, r"both components of a vector to be channels, but got \['Vx'\] alone"),
            ({"D": "t2_fields/D[0,1]"}, r"`augment` to be 'shifts' with components of tensors, \['D'\]"),
            ({"vorticity": "w"}, "`augment` to be 'shifts' for channel 'vorticity'"),
            ({"w": "w"}, "sign changes .* Say which channels"),
        ],
    )
    def test_what_may_be_a_vector_is_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            vector_pairs(fields, None)

    def test_what_the_user_says(self):
        fields = {"u": "*/data[0]", "v": "*/data[1]"}
        assert vector_pairs(fields, []) == ()
        assert vector_pairs(fields, [["v", "u"]]) == ((1, 0),)
        assert vector_pairs({"w": "w"}, []) == ()
        for wrong in ([["u"]], [["u", "u"]], [["u", "x"]], [["u", "v"], ["v", "u"]]):
            with pytest.raises(ValueError, match=r"`vectors` to be pairs of the channels \['u', 'v'\]"):
                vector_pairs(fields, wrong)
        with pytest.raises(ValueError, match="for channel 'curl'"):
            vector_pairs({"curl": "curl"}, [])


def write_random(path, size=(6, 6), seed=0, **coordinates):
    random = np.random.RandomState(seed)
    with h5py.File(path, "w") as file:
        for channel, name in enumerate(("density", "Vx", "Vy", "pressure")):
            values = random.standard_normal((12, 8, *size)) * (channel + 1)
            file[name] = (values + (40 if name in ("density", "pressure") else channel)).astype(np.float32)
        file["density"][...] = file["density"][...] + np.arange(12)[:, None, None, None] * 100
        for name, values in coordinates.items():
            file[f"{name}-coordinate"] = values
    return path


@pytest.fixture
def path(tmp_path):
    return write_random(tmp_path / "flow.hdf5")


def items(data):
    data.setup("fit")
    return list(zip(*(torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True)), strict=True))


def ranked(fields):
    """What tells a flow and its window, whatever was done to it: no motion changes the frames' mean densities."""
    return tuple((fields[..., 2].double().mean((0, 1)) * 100).round().tolist())


class TestOfTheDataModule:
    @pytest.mark.parametrize("normalize", [False, True])
    def test_windows_are_moved_as_a_whole_in_physical_units(self, path, normalize):
        plain = module(path, normalize=normalize)
        known = {}
        for pair in items(plain):
            fields = plain.denormalize(torch.cat(pair, dim=2).double())
            known[ranked(fields)] = fields
        data = module(path, normalize=normalize, augment="all")
        still = 0
        for pair in items(data):
            fields = data.denormalize(torch.cat(pair, dim=2).double())
            before = known[ranked(fields)]
            motions = [each._replace(shift_x=x, shift_y=y) for each in EIGHT for x in range(6) for y in range(6)]
            found = [each for each in motions if torch.allclose(moved(before, each, [(0, 1)]), fields, atol=1e-4)]
            assert len(found) == 1
            still += found == [Symmetry()]
        assert still < 2

    def test_others_are_left_alone(self, path):
        for stage, loader in (("validate", "val_dataloader"), ("test", "test_dataloader")):
            shown = []
            for augment in (None, "all"):
                data = module(path, augment=augment)
                data.setup(stage)
                shown.append(torch.cat(next(iter(getattr(data, loader)())), dim=3))
            assert torch.equal(*shown)

    def test_workers_make_no_difference(self, path):
        runs = [items(module(path, augment="all", noise=0.1, num_workers=workers)) for workers in (0, 2)]
        assert all(torch.equal(a, b) for one, two in zip(*runs, strict=True) for a, b in zip(one, two, strict=True))

    def test_rectangles_are_not_turned(self, tmp_path):
        data = module(write_random(tmp_path / "a.hdf5", size=(4, 6)), augment="all")
        assert {tuple(x.shape) for x, _ in items(data)} == {(4, 6, 3, 4)}

    @pytest.mark.parametrize(("far", "turns"), [(1.0, True), (2.0, False)])
    def test_cells_that_are_not_square_are_not_turned(self, tmp_path, far, turns):
        options = {"x": np.linspace(0, 1, 6), "y": np.linspace(0, far, 6)}
        data = module(write_random(tmp_path / "a.hdf5", **options), augment="symmetries")
        data.setup("fit")
        assert data._train.augmentation == Augmentation(flips=True, turns=turns, vectors=((0, 1),))

    @pytest.mark.parametrize(
        ("kinds", "periodic", "augment", "expected"),
        [
            ({"x": "PERIODIC", "y": "PERIODIC"}, None, "all", Augmentation(True, True, True, True)),
            ({"x": "PERIODIC", "y": "WALL"}, None, "all", Augmentation(True, False, True, False)),
            ({"x": "WALL", "y": "WALL"}, None, "symmetries", Augmentation(False, False, True, True)),
            ({"x": "WALL", "y": "WALL"}, True, "shifts", Augmentation(True, True)),
            ({"x": "WALL", "y": "WALL"}, None, "shifts", "but they are not periodic"),
            ({}, None, "all", "but their files do not tell: .* Set `periodic` to true if they are"),
            ({}, False, "all", "but they are not periodic"),
            ({}, True, "all", Augmentation(True, True, True, True)),
            ({}, None, "symmetries", Augmentation(False, False, True, True)),
        ],
    )
    def test_what_the_boundaries_allow(self, path, kinds, periodic, augment, expected):
        with h5py.File(path, "a") as file:
            for axis, kind in kinds.items():
                boundary = file.create_group(f"boundary_conditions/{axis}_boundary")
                boundary.attrs.update({"associated_dims": [axis], "bc_type": kind})
        data = CFDDataModule(path, in_timesteps=3, fields={"T": "density"}, augment=augment, periodic=periodic)
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected):
                data.setup("fit")
        else:
            data.setup("fit")
            assert data._train.augmentation == expected

    def test_thinned_flows_are_reflected_only_on_periodic_domains(self, path):
        module(path, augment="all", stride=2).setup("fit")
        with pytest.raises(
            ValueError, match=r"`stride` to be 1 to reflect flows .* but got 2\. Set `periodic` to true"
        ):
            module(path, fields={"T": "density"}, augment="symmetries", stride=2).setup("fit")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"augment": "turns"}, r"`augment` to be one of \['shifts', 'symmetries', 'all'\], but got 'turns'"),
            ({"vectors": [["Vx", "Vy"]]}, "`vectors` to be left out without `augment`"),
            ({"periodic": True}, "`periodic` to be left out without `augment`"),
        ],
    )
    def test_wrong_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            CFDDataModule("unread.hdf5", **options)


class Fields(Recorder):
    """Keeps the fields themselves."""

    note = staticmethod(partial(torch.cat, dim=3))


def fit(path, folder, resume=None, workers=0):
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    model = Fields()
    run = Trainer(max_epochs=2, callbacks=[saver], limit_val_batches=0, num_sanity_val_steps=0, **quiet)
    run.fit(model, datamodule=module(path, augment="all", seed=4, num_workers=workers), ckpt_path=resume)
    return [(epoch, fields) for epoch, batches in model.seen.items() for fields in batches]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*number of training batches:UserWarning")
@pytest.mark.parametrize(("step", "workers"), [(2, 0), (3, 0), (4, 2)])
def test_resumed_within_an_epoch_bit_for_bit(tmp_path, step, workers):
    path = write_labelled(tmp_path / "flow.hdf5")
    with h5py.File(path, "a") as file:
        file["Vx"][...] = np.random.RandomState(0).standard_normal(file["Vx"].shape)
    straight = fit(path, tmp_path / "straight")
    resumed = fit(path, tmp_path / "resumed", tmp_path / "straight" / f"step={step}.ckpt", workers)
    assert len(straight) == 6
    for (epoch, fields), (expected_epoch, expected) in zip(resumed, straight[step:], strict=True):
        assert epoch == expected_epoch
        assert torch.equal(fields, expected)
