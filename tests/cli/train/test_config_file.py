"""Configuration files that would silently lose settings, or that are no text, are refused by name."""

import sys
from pathlib import Path

import pytest

from lightning_farms.cli import main
from lightning_farms.cli.train._config_file import what_is_wrong_with

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").rglob("*.yaml"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"

    def written(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "trainer:\n  max_epochs: 1\ntrainer:\n  max_steps: 3\n",
            "`trainer` is in line 1 and again in line 3",
        ),
        ("trainer:\n  max_epochs: 1\n\n  max_epochs: 2\n", "`trainer.max_epochs` is in line 2 and again in line 4"),
        ('{"model": {"lr": 1, "lr": 2}}', "`model.lr` is in line 1 and again in line 1"),
        ("a:\n- b: 1\n- c: 1\n  d: 2\n  c: 3\n", "`a[1].c` is in line 3 and again in line 5"),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_its_lines(config, text, said):
    path = config(text)
    assert f"each key of {path} to be there once, but {said}" in what_is_wrong_with(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1\nb: {a: 1}\nc: [{a: 1}, {a: 2}]\n",
        "x: &x {a: 1}\ny: &y {b: 1}\nz:\n  <<: *x\n  <<: *y\n",
        "# \u00e9\na: \u00fc\n",
        "a: [1",  # the parser says it better
    ],
)
def test_others_pass(config, text):
    assert what_is_wrong_with(config(text)) == ""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_pass(path):
    assert what_is_wrong_with(path) == ""


def test_examples_are_found():
    assert len(EXAMPLES) > 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"# caf\xe9\ntrainer:\n  max_epochs: 1\n", "run.yaml to be a configuration in UTF-8, but its byte 5"),
        (b"\x80\x02}q\x00.", "run.yaml to be a configuration in UTF-8, but its byte 0"),
        (b"data:\n  batch_size: 1\n  batch_size: 2\n", "`data.batch_size` is in line 2 and again in line 3"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_command_ends_with_the_message_and_status_2(config, text, said, command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-farms"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI's own, with jsonargparse 4.53
    with pytest.raises(SystemExit) as ended:
        main([command, "--config", str(config(text))])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
