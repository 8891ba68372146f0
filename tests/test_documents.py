"""README, cards and examples: links, commands, snippets, and one story told by names, subcommands and the map."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import lightning_farms
from lightning_farms.cli import main

ROOT = Path(__file__).parent.parent
FOLDERS = ("lightning_farms", "examples", "tests")
DOCUMENTS = [*ROOT.glob("*.md"), *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.md")))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"(?<![\w/.:])(?:examples|tests|lightning_farms)/[\w./-]*\w")


def text_of(document):
    return document.read_text(encoding="utf-8")


def anchors(document):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", text_of(document)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", _CODE.sub("", text_of(document))):
            if not target.startswith(("http://", "https://")):
                yield pytest.param(document, target, id=f"{document.relative_to(ROOT)}:{target}")


def snippets():
    for document in DOCUMENTS:
        for number, (language, code) in enumerate(_CODE.findall(text_of(document))):
            if language == "python":
                yield pytest.param(code, id=f"{document.relative_to(ROOT)}:{number}")


def subcommands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    return re.findall(r"^    (\w+)(?:  |$)", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(("document", "target"), [*links()])
def test_links_lead_somewhere(document, target):
    path, _, anchor = target.partition("#")
    file = document.parent / path if path else document
    assert file.exists()
    if anchor:
        assert anchor in anchors(file)


@pytest.mark.parametrize(("name", "most"), [("README.md", 160), ("examples/README.md", 40)])
def test_length(name, most):
    assert len(text_of(ROOT / name).splitlines()) <= most


@pytest.mark.parametrize("code", [*snippets()])
def test_snippets_compile_and_their_imports_resolve(code):
    tree = ast.parse(code)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(imports, []), "snippet", "exec"), {})


def test_code_of_readme_runs():
    code = next(code for language, code in _CODE.findall(README) if language == "python" and "analyze(" in code)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_paths_in_commands_exist(document):
    text = text_of(document)
    code = "\n".join([code for _, code in _CODE.findall(text)] + re.findall(r"`([^`\n]+)`", _CODE.sub("", text)))
    modules = [f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (tests\.[\w.]+)", code)]
    assert [path for path in [*_PATH.findall(code), *modules] if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("marker", ["quickstart", "tests"])
def test_commands_that_checks_read_from_readme(marker):
    assert re.search(rf"^<!-- {marker} -->\n```bash\n.+\n```$", README, re.MULTILINE)


def test_subcommands_are_those_of_the_command(capsys):
    names, text = subcommands(capsys), "\n".join(map(text_of, DOCUMENTS))
    assert [name for name in names if not re.search(rf"lightning-farms {name}\b|`{name}`", README)] == []
    assert set(re.findall(r"^lightning-farms (\w+)", text, re.MULTILINE)) <= set(names)


def test_every_public_name_is_mentioned():
    cards = [file for file in DOCUMENTS if file.parent == ROOT or (ROOT / "lightning_farms") in file.parents]
    text = "\n".join(map(text_of, cards))
    assert [name for name in lightning_farms.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_map_shows_every_room_and_nothing_else():
    rooms = {file.parent.name for file in (ROOT / "lightning_farms").glob("*/__init__.py")}
    section = README.split("\n## Map\n")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)/`", section)) == rooms


def test_readme_leads_to_every_card():
    cards = (file.relative_to(ROOT).as_posix() for file in (ROOT / "lightning_farms").glob("*/README.md"))
    assert [card for card in cards if f"({card})" not in README] == []


def test_version_and_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version {lightning_farms.__version__}" in README
    assert project["version"] == lightning_farms.__version__
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in README
