"""Two versions of the package side by side: each job in processes of both that take turns, medians and their ratio.

    python tests/benchmarks/compare_versions.py OTHER_PYTHON

OTHER_PYTHON is the interpreter of an environment with the other version. The jobs use public names that both know. A
job's time is the median of its repetitions in one process; printed are the median over processes, and the smallest,
median and largest ratio of this version's time to the other's within a pair of processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

PRELUDE = """
import json, logging, statistics, time, warnings
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
def timed(job, repetitions, warm_up=1):
    times = []
    for _ in range(repetitions + warm_up):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    print("RESULT", json.dumps(statistics.median(times[warm_up:])))
"""
JOBS = {
    "analysis of ResNet-18": """
from lightning_farms import analyze
from lightning_farms.models import resnet18
model = resnet18()
timed(lambda: analyze(model), 3)
""",
    "analysis of DPOT-Tiny": """
from lightning_farms import analyze
from lightning_farms.models import DPOT, released_size
model = DPOT(**released_size("tiny").config)
timed(lambda: analyze(model), 3)
""",
    "analysis of 200 layers of 9 to 39": """
from lightning_farms import analyze
model = torch.nn.Sequential(*(torch.nn.Linear(9 + i % 31, 9 + i % 31) for i in range(200)))
timed(lambda: analyze(model), 5)
""",
    "training step of DPOT (64 x 64, batch 4)": """
from lightning_farms.models import DPOT
model = DPOT(img_size=64, patch_size=8, in_timesteps=10, embed_dim=128, depth=4, n_blocks=4)
optimizer = torch.optim.Adam(model.parameters())
x = torch.randn(4, 64, 64, 10, 4)
def step():
    optimizer.zero_grad()
    model(x).prediction.square().mean().backward()
    optimizer.step()
timed(step, 10, 2)
""",
    "AdamW step, 50 layers of 64, 50 rates": """
from lightning_farms.optim import LayerwiseScaling
layers = [torch.nn.Linear(64, 64) for _ in range(50)]
parameters = [p for layer in layers for p in layer.parameters()]
for p in parameters:
    p.grad = torch.randn_like(p)
optimizer = torch.optim.AdamW(parameters)
scaling = LayerwiseScaling(optimizer, {p: str(i) for i, layer in enumerate(layers) for p in layer.parameters()})
scaling.attach()
scaling.multipliers = {str(i): 0.5 + i / 50 for i in range(50)}
timed(optimizer.step, 200, 20)
""",
    "epoch of 200 steps, 12 layers, TBSigmoid, CSV": """
import tempfile
import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset
from lightning_farms import SpectralMonitor, TBSigmoid
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(*(torch.nn.Linear(48, 48) for _ in range(12)))
    def training_step(self, batch, index):
        return (self.net(batch[0]) - batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)
data = DataLoader(TensorDataset(torch.randn(1600, 48)), batch_size=8)
times = []
class Clock(pl.Callback):
    def on_train_epoch_start(self, *_): self.started = time.perf_counter()
    def on_train_epoch_end(self, *_): times.append(time.perf_counter() - self.started)
with tempfile.TemporaryDirectory() as folder:
    pl.Trainer(accelerator="cpu", max_epochs=6, logger=CSVLogger(folder), enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
        callbacks=[TBSigmoid(summary=False), SpectralMonitor(summary=False), Clock()]).fit(Net(), data)
print("RESULT", json.dumps(statistics.median(times[1:])))
""",
    "import lightning_farms": """
import subprocess, sys
timed(lambda: subprocess.run([sys.executable, "-c", "import lightning_farms"], check=True), 5)
""",
    "lightning-farms --help": """
import subprocess, sys
timed(lambda: subprocess.run([sys.executable, "-m", "lightning_farms", "--help"], check=True, stdout=-3), 5)
""",
}


def measured(python: str, job: str) -> float:
    """Seconds of a job in a process of its own, in an empty folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [python, "-c", PRELUDE + job], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    results = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        raise RuntimeError(f"{python} failed:\n{ended.stderr}")
    return float(json.loads(results[-1].removeprefix("RESULT ")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", help="interpreter of the other version's environment")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    arguments = parser.parse_args()
    for name in arguments.jobs:
        here, there = [], []
        for pair in range(arguments.pairs):
            turns = [(sys.executable, here), (arguments.other, there)]
            for python, times in turns if pair % 2 else turns[::-1]:
                times.append(measured(python, JOBS[name]))
        ratios = sorted(mine / other for mine, other in zip(here, there, strict=True))
        print(
            f"{name}: {1e3 * statistics.median(here):.1f} ms, other {1e3 * statistics.median(there):.1f} ms; "
            f"ratio {ratios[0]:.3f} {statistics.median(ratios):.3f} {ratios[-1]:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
