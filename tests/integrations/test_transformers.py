"""The Balancer in the Trainer of transformers: a tiny language model, checkpoints, and Accelerate's wrapper."""

import accelerate
import pytest
import torch
import transformers

from lightning_farms import Balancer, Control, LinearMap
from lightning_farms.integrations.transformers import SpectralBalanceCallback

LAYER = "model.layers.0.self_attn.q_proj"


def language_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


class Texts(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(0, 32, (8, 12), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def trainer_of(folder, callbacks, epochs=3, model=None, **arguments):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=4, learning_rate=1e-2,
        report_to="none", use_cpu=True, save_strategy="epoch", disable_tqdm=True, logging_strategy="no", **arguments,
    )  # fmt: skip
    return transformers.Trainer(model or language_model(), arguments, train_dataset=Texts(), callbacks=callbacks)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_a_language_model_trains_with_layer_wise_rates(tmp_path):
    callback = SpectralBalanceCallback(LinearMap(0.5, 1.5))
    trainer = trainer_of(tmp_path, [callback])
    trainer.train()
    assert callback.balancer.history.steps == [0, 2, 4, 6]
    assert callback.balancer.fault is None
    assert (min(callback.multipliers.values()), max(callback.multipliers.values())) == (0.5, 1.5)
    assert LAYER in callback.multipliers
    plain = trainer_of(tmp_path, [])
    plain.train()
    assert not torch.equal(weights(trainer), weights(plain))
    groups = trainer.optimizer.param_groups
    assert len(groups) == len(plain.optimizer.param_groups)  # as they were
    assert not callback.balancer.scalings


@pytest.mark.parametrize("every_n_steps", [None, 3])
def test_a_resumed_training_equals_the_straight_one(tmp_path, every_n_steps):
    options = {"control": Control(ema_decay=0.5, ramp_steps=3), "every_n_steps": every_n_steps}
    straight = SpectralBalanceCallback(LinearMap(0.5, 1.5), **options)
    whole = trainer_of(tmp_path, [straight], epochs=4)
    whole.train()
    resumed = SpectralBalanceCallback(LinearMap(0.5, 1.5), **options)
    other = trainer_of(tmp_path, [resumed], epochs=4)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.multipliers == straight.multipliers
    assert resumed.balancer.history.steps == straight.balancer.history.steps
    torch.testing.assert_close(weights(other), weights(whole), rtol=0, atol=0)


def test_a_checkpoint_without_the_callback_is_gone_on_with(tmp_path):
    trainer_of(tmp_path, [], epochs=1).train()
    callback = SpectralBalanceCallback(LinearMap(0.5, 1.5))
    trainer_of(tmp_path, [callback], epochs=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback.multipliers
    assert (tmp_path / "checkpoint-4").is_dir()


def test_callbacks_are_not_remade_from_checkpoints(tmp_path):
    trainer_of(tmp_path, [SpectralBalanceCallback(LinearMap(0.5, 1.5))], epochs=1).train()
    again = trainer_of(
        tmp_path, [SpectralBalanceCallback(LinearMap(0.5, 1.5))], 2, restore_callback_states_from_checkpoint=True
    )
    with pytest.raises(ValueError, match="`restore_callback_states_from_checkpoint` to be False"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_rates_and_decay_side_by_side(tmp_path):
    rates = SpectralBalanceCallback(LinearMap(0.5, 1.5))
    decay = SpectralBalanceCallback(LinearMap(0.8, 1.2), key="weight_decay")
    trainer_of(tmp_path, [rates, decay], epochs=2, weight_decay=0.1).train()
    again = [
        SpectralBalanceCallback(LinearMap(0.5, 1.5)),
        SpectralBalanceCallback(LinearMap(0.8, 1.2), key="weight_decay"),
    ]
    trainer_of(tmp_path, again, epochs=2, weight_decay=0.1).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [c.multipliers for c in again] == [rates.multipliers, decay.multipliers]


def test_accelerate_wraps_and_is_unwrapped():
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 12))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with Balancer(model, optimizer, LinearMap(0.5, 1.5)) as balancer:
        balancer.update()
        for _ in range(3):
            optimizer.zero_grad()
            accelerator.backward(model(torch.randn(4, 16)).square().mean())
            optimizer.step()
        assert balancer.steps == 3
        assert balancer.effective() == pytest.approx(
            {"0": 0.1 * balancer.multipliers["0"], "1": 0.1 * balancer.multipliers["1"]}
        )


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="`alpha_map` to be"):
        SpectralBalanceCallback(0.5)
    with pytest.raises(ValueError, match="`every_n_epochs` to be at least 1"):
        SpectralBalanceCallback(LinearMap(), 0)
