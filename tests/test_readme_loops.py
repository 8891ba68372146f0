"""The training loops of README run as they are printed."""

import re
from pathlib import Path

import torch
import transformers
from lightning.fabric import Fabric
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PLAIN, FABRIC, TRANSFORMERS = re.split(
    r"^(?=# Lightning Fabric|# transformers)", next(b for b in BLOCKS if "SpectralBalance" in b), flags=re.MULTILINE
)


def run(code, **names):
    exec(compile(code, "<README>", "exec"), names)
    return names


def imports():
    """What the first loop imports, and the others use."""
    return run("\n".join(line for line in PLAIN.splitlines() if line.startswith("from ")))


def pieces():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.Tanh(), torch.nn.Linear(24, 24))
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [(torch.randn(4, 24), torch.randn(4, 24)) for _ in range(2)],
        "loss_of": torch.nn.functional.mse_loss,
    }


def tags(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])


def test_plain(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        balancer = run(PLAIN, **pieces(), writer=writer)["balancer"]
    assert (balancer.steps, balancer.fault) == (20, None)
    assert len(balancer.history.epochs) == 11
    assert {"layer_lr/SGD/0", "layer_lr/SGD/2"} <= tags(tmp_path)


def test_fabric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = TensorBoardLogger(tmp_path / "runs")
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    given = {**imports(), **pieces()}
    update = "balancer.update()\nfor x, y in loader:\n    fabric.backward(loss_of(model(x), y))\n    optimizer.step()\n"
    made = FABRIC.replace("fabric.log_dict", f"{update}fabric.log_dict")  # the loop is "the same"
    balancer = run(made, **given, fabric=fabric, epoch=0)["balancer"]
    logger.finalize("success")
    assert len(balancer.multipliers) == 2
    assert "layer_lr/SGD/0" in tags(logger.log_dir)
    assert fabric.load("last.ckpt")["balancer"]["steps"] == 2


def test_transformers(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=1
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    made = []

    def trainer(*args, **options):
        made.append(transformers.Trainer(*args, **options))
        return made[0]

    texts = [{"input_ids": torch.arange(6), "labels": torch.arange(6)}] * 16
    model = transformers.LlamaForCausalLM(config)
    given = {"Trainer": trainer, "model": model, "arguments": arguments, "texts": texts}
    names = run(TRANSFORMERS, **{**imports(), **given})
    kind = names["SpectralBalanceCallback"]
    (callback,) = (one for one in made[0].callback_handler.callbacks if isinstance(one, kind))
    assert callback.balancer.steps == 2
    assert callback.multipliers
