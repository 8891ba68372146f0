"""Checkpoint files of every format, damaged by chance or made to do harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

OUTSIDE = 12345.0
"""Every number of a file beside the folder, which is not to be read."""


class Mutant(NamedTuple):
    """A file to be opened.

    Attributes:
        name: what was done.
        path: the file, or folder.
        told: whether changed numbers can be known (by a CRC-32, or as the numbers were left alone).
    """

    name: str
    path: Path
    told: bool


def original() -> dict[str, Tensor]:
    """What the sound files hold."""
    generator = torch.Generator().manual_seed(0)
    return {
        "net.0.weight": torch.randn(24, 16, generator=generator),
        "net.0.bias": torch.randn(24, generator=generator),
        "net.2.weight": torch.randn(16, 24, generator=generator).bfloat16(),
        "net.10.weight": torch.randn(12, 30, generator=generator),
    }


def mutants(folder: Path, count: int, seed: int, *, heavy: bool = True) -> Iterator[Mutant]:
    """So many files, each in a folder of its own: all that were thought of, and the rest by chance.

    Without `heavy`, half of them are light ones of those that were thought of.
    """
    save_file({"net.0.weight": torch.full((24, 16), OUTSIDE)}, folder / "outside.safetensors")
    torch.save({"net.0.weight": torch.full((24, 16), OUTSIDE)}, folder / "outside.bin")
    (folder / "outside.json").write_text(json.dumps({"weight_map": {"net.0.weight": "outside.safetensors"}}))
    draw = random.Random(seed)
    by_hand = list(HOSTILE) if heavy else draw.sample([name for name in HOSTILE if name not in HEAVY], count // 2)
    for number in range(count):
        place = folder / f"{number:03d}"
        place.mkdir()
        if number < len(by_hand):
            name = by_hand[number]
            yield Mutant(name, HOSTILE[name](place), told=name not in _OTHER_NUMBERS)
        else:
            yield _by_chance(place, draw)


def _by_chance(place: Path, draw: random.Random) -> Mutant:
    kind = draw.choice(list(FORMATS))
    path, told = FORMATS[kind](place)
    damage = draw.choice(list(DAMAGE))
    content = bytearray(path.read_bytes())
    path.write_bytes(DAMAGE[damage](content, draw))
    return Mutant(f"{kind}, {damage}", path, told)


def _zip(place: Path) -> tuple[Path, bool]:
    content = {"state_dict": original(), "epoch": 3, "hyper_parameters": {"lr": 1e-3, "sizes": (16, 24)}}
    torch.save(content, place / "a.ckpt")
    return place / "a.ckpt", True


def _deflated(place: Path) -> tuple[Path, bool]:
    path, _ = _zip(place)
    rezipped(path, lambda records: records, zipfile.ZIP_DEFLATED)
    return path, True


def _legacy(place: Path) -> tuple[Path, bool]:
    torch.save(original(), place / "a.pth", _use_new_zipfile_serialization=False)
    return place / "a.pth", False


def _safetensors(place: Path) -> tuple[Path, bool]:
    save_file(original(), place / "a.safetensors")
    return place / "a.safetensors", False


def _index(place: Path) -> tuple[Path, bool]:
    names = list(original())
    shards = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for shard, held in shards.items():
        save_file({name: original()[name] for name in held}, place / shard)
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, held in shards.items() for name in held}}))
    return index, True


def _plain_pickle(place: Path) -> tuple[Path, bool]:
    (place / "a.pkl").write_bytes(pickle.dumps({"epoch": 3, "names": list(original())}))
    return place / "a.pkl", True


def _tar(place: Path) -> tuple[Path, bool]:
    """As torch before 0.1.10 wrote."""
    with tarfile.open(place / "a.pt", "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            record = tarfile.TarInfo(name)
            content = pickle.dumps({"protocol_version": 1000, "little_endian": True}, protocol=2)
            record.size = len(content)
            archive.addfile(record, io.BytesIO(content))
    return place / "a.pt", True


FORMATS: dict[str, Callable[[Path], tuple[Path, bool]]] = {
    "zip": _zip,
    "deflated zip": _deflated,
    "legacy": _legacy,
    "safetensors": _safetensors,
    "index": _index,
    "pickle": _plain_pickle,
    "tar": _tar,
}


def _flip(content: bytearray, start: int, end: int, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 2, 8))):
        content[draw.randrange(start, max(end, start + 1))] ^= draw.randrange(1, 256)
    return bytes(content)


def _block(content: bytearray, draw: random.Random, filler: Callable[[int], bytes]) -> bytes:
    start, length = draw.randrange(len(content)), draw.randrange(1, 64)
    end = min(start + length, len(content))
    content[start:end] = filler(end - start)
    return bytes(content)


DAMAGE: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "flips anywhere": lambda content, draw: _flip(content, 0, len(content), draw),
    "flips at the start": lambda content, draw: _flip(content, 0, min(256, len(content)), draw),
    "flips at the end": lambda content, draw: _flip(content, max(0, len(content) - 700), len(content), draw),
    "cut off": lambda content, draw: bytes(content[: draw.randrange(len(content))]),
    "start cut off": lambda content, draw: bytes(content[draw.randrange(1, len(content)) :]),
    "zeros": lambda content, draw: _block(content, draw, bytes),
    "ones": lambda content, draw: _block(content, draw, lambda length: b"\xff" * length),
    "noise": lambda content, draw: _block(content, draw, draw.randbytes),
    "left out": lambda content, draw: _block(content, draw, lambda _: b""),
    "put in": lambda content, draw: _block(content, draw, lambda length: draw.randbytes(length + 8)),
    "appended": lambda content, draw: bytes(content) + draw.randbytes(40),
    "twice": lambda content, draw: bytes(content) * 2,
}


def rezipped(
    path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], method: int = zipfile.ZIP_STORED
) -> None:
    """Write an archive again with its records as `change` has them."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in change(records).items():
            archive.writestr(name, content)


HOSTILE: dict[str, Callable[[Path], Path]] = {}
"""Files that somebody thought of."""


def kept_in(
    files: dict[str, Callable[[Path], Path]], name: str
) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Decorate what makes a file, so that it is in the table."""

    def keep(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        files[name] = make
        return make

    return keep


_hostile = partial(kept_in, HOSTILE)


def _pickled(name: str, code: Callable[[], bytes]) -> None:
    def make(place: Path) -> Path:
        torch.save({"a": torch.ones(2)}, place / "a.pt")
        rezipped(place / "a.pt", lambda records: {n: code() if "data.pkl" in n else c for n, c in records.items()})
        return place / "a.pt"

    def plain(place: Path) -> Path:
        (place / "a.pt").write_bytes(code())
        return place / "a.pt"

    zipped = len(HOSTILE) % 2
    HOSTILE[f"pickle in a zip: {name}" if zipped else f"pickle: {name}"] = make if zipped else plain


_TWICE = b"\x80\x02K\x01" + b"q\x00h\x00h\x00\x86" * 60  # ((...), (...)), 60 deep: 2^60 ones
_TWICE_A_LIST = b"\x80\x02]q\x00" + b"]q\x01(h\x00h\x00e0h\x01q\x00" * 40
_ENCODE = b"c_codecs\nencode\nq\x01"
_TEXT = b"\x8c" + b"\xff" + b"a" * 255
_PICKLES: dict[str, Callable[[], bytes]] = {
    "a key whose hash has no end": lambda: b"\x80\x02}" + _TWICE[2:] + b"K\x02s.",
    "a set of what has no end": lambda: b"\x80\x04\x8f(" + _TWICE[2:] + b"\x90.",
    "a frozen set of what has no end": lambda: b"\x80\x04(" + _TWICE[2:] + b"\x91.",
    "a key in the items of an ordered dictionary": lambda: (
        b"\x80\x02ccollections\nOrderedDict\n](" + _TWICE[2:] + b"K\x02\x86e\x85R."
    ),
    "a call of what has no end": lambda: _TWICE_A_LIST + b")R.",
    "a name that has no end": lambda: b"\x80\x04]\x94" + _TWICE_A_LIST[2:] + b"\x8c\x01a\x93.",
    "a storage of a type that has no end": lambda: (
        b"\x80\x02X\x07\x00\x00\x00storage" + _TWICE_A_LIST[2:] + b"K\x00K\x00K\x00tQ."
    ),
    "a layout that has no end": lambda: b"\x80\x02ctorch.serialization\n_get_layout\n" + _TWICE_A_LIST[2:] + b"\x85R.",
    "a text encoded over and over": lambda: (
        b"\x80\x04X" + struct.pack("<I", 2**22) + b"a" * 2**22 + b"\x94\x8c\x06latin1\x94"
        b"]\x94(" + b"c_codecs\nencode\nh\x00h\x01\x86R" * 4000 + b"e."
    ),
    "a list made a set over and over": lambda: (
        b"\x80\x02](" + b"K\x01" * 100_000 + b"eq\x00](" + b"cbuiltins\nset\nh\x00\x85R" * 20_000 + b"e."
    ),
    "a state copied over and over": lambda: (
        b"\x80\x02}(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(60_000)) + b"uq\x00"
        b"](" + b"cargparse\nNamespace\n)\x81h\x00b" * 20_000 + b"e."
    ),
    "integers of one hash": lambda: (
        b"\x80\x02}("
        + b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(1, 200_000))
        + b"u."
    ),
    "a name of megabytes at many tensors": lambda: (
        b"\x80\x02}X"
        + struct.pack("<I", 2**21)
        + b"a" * 2**21
        + b"]q\x00("
        + b"}X\x01\x00\x00\x00w"
        + _TENSOR
        + b"s"
        + b"2" * 50_000
        + b"es."
    ),
    "tuples in tuples": lambda: b"\x80\x02)" + b"\x85" * 2_000_000 + b".",
    "a key of tuples in tuples": lambda: b"\x80\x02})" + b"\x85" * 2_000_000 + b"Ns.",
    "many sets": lambda: b"\x80\x04" + b"\x8f" * 4_000_000 + b".",
    "an integer of megabytes as a size": lambda: (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        + _STORAGE
        + b"K\x00"
        + b"\x8b"
        + struct.pack("<i", 2**22)
        + b"\x7f" * 2**22
        + b"q\x05h\x05h\x05\x87"
        + b"h\x05h\x05h\x05\x87\x89}tRs."
    ),
    "a tensor of a million dimensions": lambda: (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + _STORAGE_ALONE
        + b"K\x00("
        + b"K\x01" * 1_000_000
        + b"t("
        + b"K\x01" * 1_000_000
        + b"t\x89}tRs."
    ),
    "memo of everything": lambda: b"\x80\x04" + b"]\x94" * 1_500_000 + b".",
    "a wide text": lambda: (
        b"\x80\x04\x8d" + struct.pack("<Q", 2**26) + b"a" * (2**26 - 4) + "\U0001f600".encode() + b"."
    ),
    "names that cannot be printed": lambda: b"\x80\x02}X\x0b\x00\x00\x00\x1b]0;a\x07\xed\xa0\x80\nw" + _TENSOR + b"s.",
}
_STORAGE_ALONE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
_STORAGE = b"(" + _STORAGE_ALONE
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + _STORAGE_ALONE + b"K\x00K\x02\x85K\x01\x85\x89}tR"
for _name, _code in _PICKLES.items():
    _pickled(_name, _code)


@_hostile("zip: a record of terabytes")
def _terabytes(place: Path) -> Path:
    path, _ = _zip(place)
    content = bytearray(path.read_bytes())
    position = content.find(b"PK\x01\x02")
    while position >= 0:
        content[position + 20 : position + 28] = b"\xfe" * 8
        position = content.find(b"PK\x01\x02", position + 4)
    path.write_bytes(content)
    return path


@_hostile("zip: terabytes in zip64")
def _terabytes_in_zip64(place: Path) -> Path:
    """A directory entry whose sizes stand in the further field."""
    path, _ = _zip(place)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        start = archive.start_dir
    directory = b""
    for info in infos:
        extra = struct.pack("<HHQQQ", 1, 24, 2**42, 2**42, info.header_offset)
        directory += struct.pack(
            "<4s4B4HL2L5H2L", b"PK\x01\x02", 45, 0, 45, 0, 0x800, 0, 0, 0, info.CRC, 2**32 - 1, 2**32 - 1,
            len(info.filename), len(extra), 0, 0, 0, 0, 2**32 - 1,
        ) + info.filename.encode() + extra  # fmt: skip
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(infos), len(infos), len(directory), start, 0)
    path.write_bytes(path.read_bytes()[:start] + directory + end)
    return path


def sparse(path: Path, beginning: bytes, size: int) -> Path:
    """A file that takes no more room than its beginning; the rest is zeros."""
    path.write_bytes(beginning)
    os.truncate(path, size)
    return path


@_hostile("zip: a directory of a hundred gigabytes in a sparse file")
def _sparse_directory(place: Path) -> Path:
    size = 10**11
    with (place / "a.pt").open("wb") as file:
        file.truncate(size)
        file.seek(size)
        end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, 0)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, size, 1)
        file.write(
            end64 + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
        )
    return place / "a.pt"


@_hostile("pickle: gigabytes of a sparse file as one text")
def _sparse_text(place: Path) -> Path:
    return sparse(place / "a.pt", b"\x80\x04\x8e" + struct.pack("<Q", 10**11), 10**11)


@_hostile("pickle: a line of gigabytes")
def _sparse_line(place: Path) -> Path:
    return sparse(place / "a.pt", b"\x80\x02c", 10**11)


@_hostile("zip: a record twice")
def _twice(place: Path) -> Path:
    path, _ = _zip(place)
    other = {name: torch.zeros_like(tensor) for name, tensor in original().items()}
    torch.save({"state_dict": other}, place / "a.other")
    with zipfile.ZipFile(place / "a.other") as archive:
        zeros = {name.replace("a/", "a/", 1): archive.read(name) for name in archive.namelist()}
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        with zipfile.ZipFile(io.BytesIO(content)) as sound:
            for name in sound.namelist():
                archive.writestr(name, sound.read(name))
        name = next(name for name in zeros if name.endswith("data/0"))
        archive.fp.seek(archive.start_dir)  # a second record of the same name, without zipfile's warning
        archive.NameToInfo.pop(name, None)
        archive.writestr(name, zeros[name])
    (place / "a.other").unlink()
    return path


@_hostile("zip: two names lead to one record")
def _swapped(place: Path) -> Path:
    path, _ = _zip(place)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offsets = {info.filename: info.header_offset for info in archive.infolist()}
    first, second = (name for name in offsets if name.endswith(("data/0", "data/3")))
    entry = content.rfind(first.encode())
    content[entry - 4 : entry] = struct.pack("<L", offsets[second])
    path.write_bytes(content)
    return path


@_hostile("zip: CRC-32 of one record taken away, its numbers changed")
def _without_crc(place: Path) -> Path:
    path, _ = _zip(place)
    content = bytearray(path.read_bytes())
    content[content.find(original()["net.0.weight"].numpy().tobytes()) + 3] ^= 0x20
    entry = content.rfind(b"data/0") - len("a/") - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + 16 : entry + 20] = bytes(4)
    path.write_bytes(content)
    return path


@_hostile("zip: byte order taken away")
def _without_order(place: Path) -> Path:
    path, _ = _zip(place)
    content = bytearray(path.read_bytes())
    position = content.rfind(b"byteorder")
    content[position : position + 9] = b"bytesorde"
    path.write_bytes(content)
    return path


@_hostile("zip: a bomb of zeros")
def _deflate_bomb(place: Path) -> Path:
    path, _ = _zip(place)
    big = bytes(2**27)
    rezipped(path, lambda r: {n: big if n.endswith("data/0") else c for n, c in r.items()}, zipfile.ZIP_DEFLATED)
    return path


@_hostile("zip: a bomb of a pickle")
def _pickle_bomb(place: Path) -> Path:
    path, _ = _zip(place)
    big = bytes(2**28)
    rezipped(path, lambda r: {n: big if n.endswith("data.pkl") else c for n, c in r.items()}, zipfile.ZIP_DEFLATED)
    return path


@_hostile("zip: compressed by lzma")
def _lzma(place: Path) -> Path:
    path, _ = _zip(place)
    rezipped(path, lambda records: records, zipfile.ZIP_LZMA)
    return path


@_hostile("zip: a small sparse tensor of gigabytes")
def _sparse_tensor(place: Path) -> Path:
    bomb = torch.sparse_coo_tensor([[0], [0]], [1.0], (16_000, 16_000), check_invariants=True)
    torch.save({"w": bomb, **original()}, place / "a.pt")
    return place / "a.pt"


def _header(place: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    start = struct.pack("<Q", len(header) if length is None else length)
    (place / "a.safetensors").write_bytes(start + header + data)
    return place / "a.safetensors"


def _tensor_entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


_ONE = json.dumps(_tensor_entry([24, 16], 0, 1536))
_HEADERS: dict[str, Callable[[], bytes]] = {
    "of an empty text": lambda: b"",
    "of a list": lambda: b"[]",
    "nested": lambda: b'{"a":' * 100_000,
    "a tensor twice": lambda: f'{{"net.0.weight":{_ONE},"net.0.weight":{_ONE.replace("F32", "I32")}}}'.encode(),
    "a tensor twice, written otherwise": lambda: (
        f'{{"net.0.weight":{_ONE},"net\\u002e0.weight":{_ONE.replace("F32", "I32")}}}'.encode()
    ),
    "overlapping": lambda: json.dumps(
        {"a": _tensor_entry([24, 16], 0, 1536), "b": _tensor_entry([24, 15], 96, 1536)}
    ).encode(),
    "offsets of exabytes": lambda: json.dumps({"a": _tensor_entry([2**60], 0, 2**62)}).encode(),
    "offsets turned round": lambda: json.dumps({"a": _tensor_entry([24, 16], 1536, 0)}).encode(),
    "a shape that overflows": lambda: json.dumps({"a": _tensor_entry([2**63, 2**63, 4], 0, 1536)}).encode(),
    "an empty shape beyond 63 bits": lambda: json.dumps(
        {"a": _tensor_entry([2**63 + 9, 0], 0, 0), "net.0.weight": _tensor_entry([24, 16], 0, 1536)}
    ).encode(),
    "an integer of thousands of digits": lambda: f'{{"a":{_ONE.replace("24", "9" * 5000)}}}'.encode(),
    "NaN": lambda: f'{{"a":{_ONE.replace("24", "NaN")}}}'.encode(),
    "metadata that is no text": lambda: f'{{"__metadata__":{{"a":NaN}},"net.0.weight":{_ONE}}}'.encode(),
    "no shape": lambda: b'{"a":{"dtype":"F32","data_offsets":[0,1536]}}',
    "an unknown type": lambda: f'{{"a":{_ONE.replace("F32", "Q9")}}}'.encode(),
}
for _name, _code in _HEADERS.items():

    @_hostile(f"safetensors: header {_name}")
    def _of_header(place: Path, code: Callable[[], bytes] = _code) -> Path:
        return _header(place, code(), original()["net.0.weight"].numpy().tobytes())


@_hostile("safetensors: a header of 2^60 bytes")
def _endless_header(place: Path) -> Path:
    return _header(place, b"{}", b"", 2**60)


@_hostile("safetensors: a header of a hundred megabytes of a sparse file")
def _long_header(place: Path) -> Path:
    path = _header(place, b"{", b"", 10**8)
    os.truncate(path, 10**8 + 8)
    return path


def _changed_index(place: Path, change: Callable[[dict[str, str]], object]) -> Path:
    index, _ = _index(place)
    places = json.loads(index.read_text())["weight_map"]
    changed = change(places)
    index.write_text(changed if isinstance(changed, str) else json.dumps({"weight_map": changed}))
    return index


def _all_at(shard: str) -> Callable[[dict[str, str]], object]:
    return lambda places: dict.fromkeys(places, shard)


_INDICES: dict[str, Callable[[dict[str, str]], object]] = {
    "leads up": _all_at("../outside.safetensors"),
    "leads up through a folder": _all_at("a/../../outside.safetensors"),
    "is absolute": _all_at("/etc/passwd"),
    "is empty": _all_at(""),
    "is the folder": _all_at("."),
    "has a null character": _all_at("model-1.safetensors\0"),
    "is endless": _all_at("a" * 100_000),
    "is the index": _all_at("model.safetensors.index.json"),
    "has a surrogate": _all_at("\ud800.safetensors"),
    "has a tensor with a surrogate": lambda places: {**places, "\ud800": "model-1.safetensors"},
    "has a tensor with other digits": lambda places: {**places, "net.²": "model-1.safetensors"},
    "has a tensor of thousands of digits": lambda places: {**places, "9" * 5000: "model-1.safetensors"},
    "has a tensor twice": lambda places: (
        json.dumps({"weight_map": places})[:-2] + ',"net.0.weight":"model-2.safetensors"}}'
    ),
    "has its map twice": lambda places: f'{{"weight_map":{json.dumps(places)},"weight_map":{{}}}}',
    "is nested": lambda _: '{"weight_map":' + "[" * 100_000,
    "has no text": lambda places: dict.fromkeys(places, float("nan")),
    "has integers of thousands of digits": lambda places: (
        f'{{"weight_map":{json.dumps(places)},"metadata":{{"total_size":{"9" * 5000}}}}}'
    ),
    "is a list": lambda places: list(places),
    "is of many small lists": lambda _: '{"weight_map":[' + "[]," * 12_000_000 + "[]]}",
}  # fmt: skip
for _name, _change in _INDICES.items():

    @_hostile(f"index: {_name}")
    def _of_index(place: Path, change: Callable[[dict[str, str]], object] = _change) -> Path:
        return _changed_index(place, change)


def _special(place: Path, make: Callable[[Path], object]) -> Path:
    index, _ = _index(place)
    (place / "model-1.safetensors").unlink()
    make(place / "model-1.safetensors")
    return index


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


_PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a folder": Path.mkdir,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link out of the folder": lambda path: path.symlink_to("../outside.safetensors"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "empty": Path.touch,
}
for _name, _make in _PLACES.items():

    @_hostile(f"shard: {_name}")
    def _of_place(place: Path, make: Callable[[Path], object] = _make) -> Path:
        return _special(place, make)


@_hostile("shard: in a folder that is a link out of the folder")
def _linked_folder(place: Path) -> Path:
    (place / "sub").symlink_to("..")
    return _changed_index(place, _all_at("sub/outside.safetensors"))


@_hostile("a pipe as the file")
def _pipe(place: Path) -> Path:
    os.mkfifo(place / "a.pt")
    return place / "a.pt"


@_hostile("a pipe beside the file as its configuration")
def _pipe_beside(place: Path) -> Path:
    os.mkfifo(place / "config.json")
    return _safetensors(place)[0]


@_hostile("a configuration of a hundred gigabytes beside the file")
def _long_configuration(place: Path) -> Path:
    sparse(place / "config.json", b"", 10**11)
    return _safetensors(place)[0]


@_hostile("a configuration of lists in lists beside the file")
def _deep_configuration(place: Path) -> Path:
    (place / "config.json").write_text('{"a":' + "[" * 100_000)
    return _safetensors(place)[0]


@_hostile("a folder of links out of it")
def _linked_file(place: Path) -> Path:
    (place / "model.safetensors.index.json").symlink_to("nothing")
    (place / "config.json").symlink_to("/dev/zero")
    return place


@_hostile("legacy: a storage longer than the file says")
def _legacy_count(place: Path) -> Path:
    path, _ = _legacy(place)
    content = bytearray(path.read_bytes())
    start = content.find(original()["net.0.weight"].numpy().tobytes()) - 8
    content[start : start + 8] = struct.pack("<Q", 380)
    path.write_bytes(content)
    return path


@_hostile("legacy: a storage of terabytes")
def _legacy_terabytes(place: Path) -> Path:
    path, _ = _legacy(place)
    content = bytearray(path.read_bytes())
    start = content.find(original()["net.0.weight"].numpy().tobytes()) - 8
    content[start : start + 8] = struct.pack("<Q", 2**42)
    path.write_bytes(content)
    return path


_OTHER_NUMBERS = {"zip: a bomb of zeros"}  # the archive says so itself
HEAVY = frozenset(
    name
    for name in HOSTILE
    if name.startswith("pickle") or any(word in name for word in ("bomb", "hundred", "many small", "sparse tensor"))
)
"""Those that take seconds each."""
