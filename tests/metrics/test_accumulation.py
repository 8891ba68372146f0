"""Every metric as torchmetrics and Lightning use it: batches of any size, forward, collections, processes, logging.

Walks `metrics.__all__`: a metric without a case here fails.
"""

import inspect
import pickle
from itertools import pairwise

import lightning.pytorch as pl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import ClasswiseWrapper, MetricCollection

from lightning_farms import metrics
from lightning_farms.metrics import FourierRMSE, MaxError, NormalizedRMSE, RelativeL2Error
from tests.callbacks.two_processes_launch import launch
from tests.metrics.field_oracles import CASES, PERS, add_in_batches, fields

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SAMPLES = 7


def tensors(**changes):
    return tuple(torch.from_numpy(array) for array in fields(**changes))


def test_every_public_name_has_a_case():
    predictors = {name for name in metrics.__all__ if hasattr(metrics.trivial_predictors, name)}
    public = {name for name in metrics.__all__ if name != "Per"} - predictors
    assert public == {case.metric.__name__ for case in CASES} | {case.function.__name__ for case in CASES}


def test_a_plot_of_errors_by_frame_and_channel_is_refused_with_the_remedy():
    metric = RelativeL2Error(per="frame_and_channel")
    metric.update(*tensors(seed=0))
    with pytest.raises(ValueError, match=r"got 2 dimensions\. Draw .*error_curves_figure"):
        metric.plot()
    figure, _ = metric.plot(metric.compute()[0])
    plt.close(figure)


@EVERY
def test_a_plot_has_a_line_for_each_error_over_batches(case):
    metric = case.metric(**case.settings)
    errors = [metric(*tensors(seed=seed)) for seed in range(3)]
    figure, axes = metric.plot(errors)
    drawn = [line.get_ydata() for line in axes.get_lines() if len(line.get_ydata()) == 3]  # others are the bound's
    np.testing.assert_array_equal(np.asarray(drawn), torch.stack(errors).reshape(3, -1).T)
    assert metric.plot(ax=axes)[1] is axes  # of what `compute` returns, into axes that are there
    plt.close(figure)


@EVERY
def test_function_and_class_take_the_same_settings(case):
    of_function = inspect.signature(case.function).parameters
    of_class = inspect.signature(case.metric).parameters
    assert {name: of_function[name].default for name in list(of_function)[2:]} == {
        name: parameter.default for name, parameter in of_class.items()
    }
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in of_class.values())


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, SAMPLES - 1)), per=st.sampled_from(PERS))
@EVERY
def test_batching_does_not_matter(case, cuts, per):
    prediction, target = fields(SAMPLES, shape=(13, 12, 2, 3))
    metric = case.metric(**case.settings, per=per)
    sizes = [stop - start for start, stop in pairwise([0, *sorted(cuts), SAMPLES])]
    add_in_batches(metric, sizes, torch.from_numpy(prediction), torch.from_numpy(target))
    np.testing.assert_allclose(metric.compute(), case.expected(prediction, target, per), rtol=2e-6)
    assert metric.total.dtype == torch.float64


@EVERY
def test_reset_pickle_and_merge(case):
    prediction, target = tensors()
    metric = case.metric(**case.settings)
    metric.update(target[:1], prediction[:1])
    metric.reset()
    metric.update(prediction[:2], target[:2])
    metric = pickle.loads(pickle.dumps(metric))
    other = case.metric(**case.settings)
    other.update(prediction[2:], target[2:])
    metric.merge_state(other)
    np.testing.assert_allclose(metric.compute(), case.expected(prediction, target), rtol=2e-6)


@EVERY
def test_saved_with_a_checkpoint(case):
    prediction, target = tensors()
    holder = torch.nn.ModuleDict({"metric": case.metric(**case.settings)})
    holder["metric"].persistent(True)
    holder["metric"].update(prediction[:3], target[:3])
    other = torch.nn.ModuleDict({"metric": case.metric(**case.settings)})
    other["metric"].persistent(True)
    other.load_state_dict(holder.state_dict())
    other["metric"].update(prediction[3:], target[3:])
    np.testing.assert_allclose(other["metric"].compute(), case.expected(prediction, target), rtol=2e-6)


@EVERY
def test_forward_gives_the_batchs_value_and_goes_on_summing(case):
    prediction, target = tensors()
    metric = case.metric(**case.settings)
    for p, t in zip(prediction.split((3, 1, 3)), target.split((3, 1, 3)), strict=True):
        np.testing.assert_allclose(metric(p, t), case.expected(p, t), rtol=2e-6)
    np.testing.assert_allclose(metric.compute(), case.expected(prediction, target), rtol=2e-6)


@EVERY
@pytest.mark.parametrize("way", ["update", "forward", "merge"])
@pytest.mark.parametrize("per", ["frame", "channel"])
def test_other_frames_or_channels_are_refused_and_nothing_is_lost(case, way, per):
    prediction, target = tensors()
    metric, other = (case.metric(**case.settings, per=per) for _ in range(2))
    metric.update(prediction, target)
    fewer = (..., slice(1), slice(None)) if per == "frame" else (..., slice(1))
    other.update(prediction[fewer], target[fewer])
    more = {"update": metric.update, "forward": metric, "merge": lambda *_: metric.merge_state(other)}[way]
    with pytest.raises(ValueError, match=r"equal numbers of frames and channels .*, but got \(.* after \("):
        more(prediction[fewer], target[fewer])
    if way != "forward":  # torchmetrics resets before it
        np.testing.assert_allclose(metric.compute(), case.expected(prediction, target, per), rtol=2e-6)


def test_l2re_over_all_frames_takes_any_number_of_them():
    prediction, target = fields()
    metric = RelativeL2Error()
    metric.update(torch.from_numpy(prediction[:3]), torch.from_numpy(target[:3]))
    metric.update(torch.from_numpy(prediction[3:, ..., :1, :]), torch.from_numpy(target[3:, ..., :1, :]))
    case = CASES[0]
    first = case.expected(prediction[:3], target[:3])
    rest = case.expected(prediction[3:, ..., :1, :], target[3:, ..., :1, :])
    assert float(metric.compute()) == pytest.approx((3 * first + 4 * rest) / 7, rel=1e-6)


@EVERY
def test_no_samples(case):
    metric = case.metric(**case.settings)
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="at least one sample"),
    ):
        metric.compute()


@pytest.mark.parametrize("metric", [RelativeL2Error, NormalizedRMSE])
def test_float64_accumulation_survives_many_samples(metric):
    """A float32 sum of 200,000 equal terms drifts by 1e-4; the float64 one does not."""
    target = torch.ones(20_000, 1, 1, 1, 1)
    metric = metric()
    for _ in range(10):
        metric.update(1.1 * target, target)
    assert float(metric.compute()) == pytest.approx(float(torch.tensor(1.1) - 1), rel=2e-7)


def test_moves_to_a_device_without_float64():
    """No state is in float64 before the first batch, so `to` has nothing to refuse on such a device."""
    for case in CASES:
        states = case.metric(**case.settings).metric_state.values()
        assert all(state.dtype in (torch.float32, torch.int64) for state in states)


def test_update_never_waits_for_the_device():
    """On the meta device whatever asks for a tensor's value raises."""
    prediction = torch.empty(2, 32, 32, 3, 4, device="meta")
    for case in CASES:
        metric = case.metric(**case.settings).to("meta")
        for _ in range(2):
            metric.update(prediction, prediction)
        assert metric.total.device.type == "meta"


def test_collection_shares_states_of_equal_metrics_only():
    """In the first batch all errors are zero, so that all states have equal values."""
    prediction, target = fields()
    members = {f"{case.name}_{per}": case.metric(**case.settings, per=per) for case in CASES for per in PERS}
    members["nrmse_eps"] = NormalizedRMSE(eps=1.0)
    collection = MetricCollection(members)
    collection.update(torch.from_numpy(target), torch.from_numpy(target))
    collection.update(torch.from_numpy(prediction), torch.from_numpy(target))
    groups = sorted(sorted(names) for names in collection.compute_groups.values())
    expected = [[f"{case.name}_{per}" for per in sorted(PERS, key=str)] for case in CASES if case.name != "l2re"]
    expected += [["l2re_None", "l2re_channel"], ["l2re_frame", "l2re_frame_and_channel"], ["nrmse_eps"]]
    assert groups == sorted(sorted(names) for names in expected)
    both = np.concatenate([target, prediction]), np.concatenate([target, target])
    for name, value in collection.compute().items():
        case = next((case for case in CASES if name.startswith(f"{case.name}_")), None)
        if name != "nrmse_eps":
            per = name.removeprefix(f"{case.name}_")
            expected = case.expected(*both, None if per == "None" else per)
            np.testing.assert_allclose(value, expected, rtol=2e-6)


class Logging(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.errors = torch.nn.ModuleDict({case.name: case.metric(**case.settings) for case in CASES[:-1]})
        self.bands = ClasswiseWrapper(FourierRMSE(low=2, high=5), labels=["low", "mid", "high"])

    def test_step(self, batch, batch_idx):
        prediction, target = batch
        for name, metric in self.errors.items():
            metric.update(prediction, target)
            self.log(name, metric)
        self.bands.update(prediction, target)

    def on_test_epoch_end(self):
        self.log_dict(self.bands.compute())
        self.bands.reset()


def test_logged_by_lightning():
    """Batches of 3, 3 and 1 samples: the mean of their values would be another number."""
    prediction, target = fields()
    loader = DataLoader(TensorDataset(torch.from_numpy(prediction), torch.from_numpy(target)), batch_size=3)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, barebones=False
    )
    (logged,) = trainer.test(Logging(), loader, verbose=False)
    for case in CASES[:-1]:
        assert logged[case.name] == pytest.approx(float(case.expected(prediction, target)), rel=2e-6)
    bands = [logged[f"fourierrmse_{band}"] for band in ("low", "mid", "high")]
    np.testing.assert_allclose(bands, CASES[-1].expected(prediction, target), rtol=2e-6)


def test_two_processes_agree_with_one(tmp_path):
    launch("tests.metrics.two_processes", tmp_path)
    for rank in range(2):
        values = pickle.loads((tmp_path / f"{rank}.pkl").read_bytes())
        for case in CASES:
            for per in (*PERS, "one-sided"):
                expected = case.expected(*fields(), None if per == "one-sided" else per)
                np.testing.assert_allclose(values[case.name, per], expected, rtol=2e-6)


def test_max_of_a_nan_in_any_batch_is_nan():
    prediction, target = tensors()
    prediction[0] = float("nan")
    metric = MaxError()
    add_in_batches(metric, 1, prediction, target)
    assert metric.compute().isnan()
