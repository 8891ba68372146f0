"""The public names at the top, which are imported when they are first used."""

import subprocess
import sys

import pytest
import torch

import lightning_farms


@pytest.mark.parametrize("name", lightning_farms.__all__)
def test_public_names(name):
    assert getattr(lightning_farms, name).__name__ == name
    assert name in dir(lightning_farms)


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'lightning_farms' has no attribute 'TBSigmod'"):
        _ = lightning_farms.TBSigmod
    with pytest.raises(ImportError, match="cannot import name 'TBSigmod'"):
        from lightning_farms import TBSigmod  # noqa: F401


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import lightning_farms", {"torch", "lightning", "matplotlib"}),
        ("from lightning_farms import FARMS, analyze", {"lightning", "torchmetrics", "matplotlib", "jsonargparse"}),
        ("import lightning_farms.cli", {"torch", "lightning", "jsonargparse", "rich"}),
    ],
)
def test_imports_no_more_than_is_needed(statement, absent):
    code = f"{statement}; import sys; sys.exit(' '.join({absent} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("statement", "most"),
    [  # Python by itself and the site's own start take 40 to 70
        ("import lightning_farms", 110),
        (
            "import lightning_farms.cli as cli, contextlib\n"
            "with contextlib.suppress(SystemExit):\n cli.main(['--help'])",
            200,
        ),
    ],
)
def test_few_modules_are_imported_at_the_start(statement, most):
    code = f"{statement}\nimport sys\nprint('modules', len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < most


HEAVY = "h5py lightning matplotlib numba pandas scipy sklearn tensorboard torchmetrics torchvision transformers"
OF_A_COMMAND = """
import contextlib, sys
{before}
known = set(sys.modules)
import lightning_farms.cli as cli
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
    cli.main({arguments})
print(len(set(sys.modules) - known), *({heavy} & set(sys.modules) - known))
"""


@pytest.mark.parametrize(
    ("before", "arguments", "absent", "most"),
    [
        ("import torch", ["analyze", "net.pt"], HEAVY, 340),
        pytest.param(
            "import lightning.pytorch.cli",
            ["fit", "--help"],
            "matplotlib pandas scipy sklearn tensorboard torchvision transformers",
            450,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_command_imports_few_modules_and_no_heavy_ones(tmp_path, before, arguments, absent, most):
    torch.save(torch.nn.Linear(32, 32).state_dict(), tmp_path / "net.pt")
    code = OF_A_COMMAND.format(before=before, arguments=arguments, heavy=set(absent.split()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "usage:" in done.stderr or "1 layer analysed" in done.stderr
    count, *heavy = done.stdout.split()
    assert heavy == []
    assert int(count) < most
