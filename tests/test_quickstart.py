"""The quickstart, in full, learns: over three seeds of flows, order and starting weights."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = r"([\d.e+-]+)"
CLOSING = rf"test L2RE {NUMBER} \(persistence {NUMBER}, drift-free {NUMBER}\), VRMSE {NUMBER} on (\d+) flows"


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_quickstart_learns(tmp_path, seed):
    command = next(
        line.split("&& ")[-1] for line in (ROOT / "README.md").read_text().splitlines() if "finetune_dpot_cfd" in line
    )
    program, *arguments = command.replace("examples/", f"{ROOT}/examples/").split()
    assert (program, arguments[0]) == ("lightning-farms", "fit")
    seeds = [f"--data.seed={seed}", f"--data.simulation.seed=1{seed}", f"--pretrain.seed={seed}"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_farms", *arguments, *seeds],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ((*errors, flows),) = re.findall(CLOSING, done.stdout + done.stderr)
    l2re, persistence, drift_free, vrmse = map(float, errors)
    assert l2re < 0.5 * min(persistence, drift_free)
    assert vrmse < 0.5
    assert int(flows) >= 20
    print(f"seed {seed}: L2RE {l2re}, persistence {persistence}, drift-free {drift_free}, VRMSE {vrmse}, {flows} flows")
