"""The lower bounds in pyproject.toml, installed in an environment of their own: a telling part of the suite runs there.

But for torch: on PyPI old versions of it come with gigabytes of CUDA libraries, so that its pinned version of the extra
`dev` is taken here. `LOWER_TORCH=2.5.0 pytest -m slow tests/test_lower_bounds.py` tries another one.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("hypothesis", "scipy", "powerlaw", "pytest", "pytest-timeout")  # what tests need beside the package, as pinned
EXTRAS = {"llm": ("llm",), "others": ("pandas", "safetensors", "images", "hub", "download")}
"""Environments, as the extra ``llm`` needs later versions of what others have."""
OF_LANGUAGE_MODELS = [f"tests/cli/test_{command}.py" for command in ("evaluate", "perplexity", "prune", "writing")]
TESTS = {
    "llm": [
        *OF_LANGUAGE_MODELS,
        "tests/pruning/test_calls.py",
        "tests/pruning/test_loading.py",
        "tests/pruning/test_pruned_folder.py",
    ],
    "others": [
        "tests/test_package.py",
        "tests/test_main_job.py",
        "tests/cli",
        *(f"--ignore={path}" for path in OF_LANGUAGE_MODELS),
        "tests/callbacks/test_tensorboard.py",
        "tests/callbacks/test_configuration.py",
        "tests/plotting",
        "tests/loggers",
        "tests/analysis/test_report.py",
        "tests/data/images",
        "tests/data/fields",
        "tests/models/dpot/weights",
        "tests/metrics",
    ],
}


def oldest(requirement):
    """A requirement, pinned to its lower bound."""
    name, bound = re.match(r"([\w.\[\]-]+)>=([\w.]+)", requirement).groups()
    return f"{name}=={bound}"


def requirements(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = {requirement.split("==")[0]: requirement for requirement in extras["dev"]}
    lower = [*project["dependencies"], *(requirement for extra in EXTRAS[name] for requirement in extras[extra])]
    bounds = {oldest(requirement) for requirement in lower if not requirement.startswith("torch>")}
    torch = f"torch=={os.environ['LOWER_TORCH']}" if "LOWER_TORCH" in os.environ else pinned["torch"]
    return sorted({torch, *bounds, *(pinned[tool] for tool in TOOLS)})


def done(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@pytest.mark.parametrize("name", EXTRAS)
def test_every_bound_is_pinned_once(name):
    names = [requirement.split("==")[0] for requirement in requirements(name)]
    assert len(names) == len(set(names))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", EXTRAS)
def test_lower_bounds_work(tmp_path, name):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = str(tmp_path / "venv" / "bin" / "python")
    done(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    done(python, "-m", "pip", "install", *requirements(name))
    done(python, "-m", "pip", "install", "--no-deps", "-e", str(ROOT))
    done(python, "-m", "pip", "check")
    warnings = ("-W", "default::DeprecationWarning", "-W", "default::FutureWarning")  # of old packages about each other
    done(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings, *TESTS[name], cwd=ROOT, env=environment)
