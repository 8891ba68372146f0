"""The public names at the top, which are imported when they are first used."""

import subprocess
import sys

import pytest

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
