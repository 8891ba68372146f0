"""Files of other programs, and folders of several files, damaged by chance or made to do harm."""

from __future__ import annotations

import io
import pickle
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import h5py
import onnx
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tests.common.checkpoints.mutants import DAMAGE, Mutant, kept_in, original, sparse


def _gguf(place: Path) -> Path:
    writer = gguf.GGUFWriter(place / "a.gguf", "llama")
    writer.add_array("tokenizer.tokens", ["a", "bc", "def"] * 20)
    writer.add_array("tokenizer.scores", [0.5, 1.5, 2.5])
    for name, tensor in original().items():
        values = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        kind = gguf.GGMLQuantizationType.BF16 if tensor.dtype == torch.bfloat16 else None
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place / "a.gguf"


def _onnx(place: Path) -> Path:
    tensors = {name: tensor.float() for name, tensor in original().items() if tensor.ndim == 2}
    nodes = [onnx.helper.make_node("MatMul", [name, "x"], [f"y{i}"], f"/n{i}/MatMul") for i, name in enumerate(tensors)]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "y0")]
    constants = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    onnx.save(onnx.helper.make_model(graph), place / "a.onnx")
    return place / "a.onnx"


def _h5(place: Path) -> Path:
    with h5py.File(place / "a.weights.h5", "w") as file:
        for name, tensor in original().items():
            layer, _, leaf = name.rpartition(".")
            values = tensor.float().numpy()
            file[f"layers/{layer}/vars/{int(leaf == 'bias')}"] = values.T
    return place / "a.weights.h5"


def _keras_2(place: Path) -> Path:
    with h5py.File(place / "a.h5", "w") as file:
        file.attrs["model_config"] = '{"class_name": "Sequential", "config": {"layers": []}}'
        for name, tensor in original().items():
            layer, _, leaf = name.rpartition(".")
            place_in = f"model_weights/{layer}/{layer}/{'bias' if leaf == 'bias' else 'kernel'}:0"
            file.create_dataset(place_in, data=tensor.float().numpy().T, compression="gzip")
    return place / "a.h5"


def _keras(place: Path) -> Path:
    inner = _h5(place)
    with zipfile.ZipFile(place / "a.keras", "w") as archive:
        archive.writestr("config.json", '{"class_name": "Functional", "config": {"name": "m"}}')
        archive.write(inner, "model.weights.h5")
    inner.unlink()
    return place / "a.keras"


def _distributed(place: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        dcp.save({"state_dict": original()}, checkpoint_id=place / "a", no_dist=True)
    return place / "a"


def _zero_3(place: Path) -> Path:
    folder = place / "global_step1"
    folder.mkdir()
    (place / "latest").write_text("global_step1")
    trained = {name: tensor.float() for name, tensor in original().items()}
    for rank in range(2):
        halves = []
        for tensor in trained.values():
            each = -(-tensor.numel() // 2)
            flat = torch.nn.functional.pad(tensor.flatten(), (0, 2 * each - tensor.numel()))
            halves.append(flat[rank * each : (rank + 1) * each])
        model = {
            "module": {name: torch.empty(0) for name in trained},
            "buffer_names": [],
            "param_shapes": [{name: tensor.shape for name, tensor in trained.items()}],
            "shared_params": {},
        }
        state = {"zero_stage": 3, "partition_count": 2, "fp32_flat_groups": [torch.cat(halves)]}
        torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": state}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return place


def _zero_2(place: Path) -> Path:
    torch.save({"module": original(), "buffer_names": []}, place / "mp_rank_00_model_states.pt")
    return place


FORMATS: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "GGUF": (_gguf, False),
    "ONNX": (_onnx, False),
    ".h5": (_h5, False),
    ".h5 of Keras 2": (_keras_2, False),
    ".keras": (_keras, True),
    "distributed": (_distributed, True),
    "ZeRO 3": (_zero_3, True),
    "ZeRO 2": (_zero_2, True),
}
"""How each is written, and whether changed numbers are known by a CRC-32."""


def foreign_mutants(folder: Path, count: int, seed: int) -> Iterator[Mutant]:
    """So many, each in a folder of its own: those that were thought of, and the rest by chance, format by format.

    Where there are fewer than twice those that were thought of, half are drawn of these.
    """
    draw = random.Random(seed)
    by_hand = list(HOSTILE) if count >= 2 * len(HOSTILE) else draw.sample(list(HOSTILE), count // 2)
    for number in range(count):
        place = folder / f"f{number:03d}"
        place.mkdir()
        if number < len(by_hand):
            yield Mutant(by_hand[number], HOSTILE[by_hand[number]](place), told="other names" not in by_hand[number])
        else:
            yield _by_chance(place, list(FORMATS)[number % len(FORMATS)], draw)


def _by_chance(place: Path, kind: str, draw: random.Random) -> Mutant:
    make, told = FORMATS[kind]
    path = make(place)
    files = sorted(file for file in place.rglob("*") if file.is_file() and file.name != "latest")
    file, damage = draw.choice(files), draw.choice(list(DAMAGE))
    file.write_bytes(DAMAGE[damage](bytearray(file.read_bytes()), draw))
    return Mutant(f"{kind}, {file.name}: {damage}", path, told and file.name != ".metadata")


HOSTILE: dict[str, Callable[[Path], Path]] = {}
"""Files that somebody thought of."""


_hostile = partial(kept_in, HOSTILE)


def _text(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _header(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


def _entry(name: bytes, shape: list[int], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _text(name) + sizes + struct.pack("<IQ", kind, offset)


_DATA = bytes(4096)
_GGUF: dict[str, Callable[[], bytes]] = {
    "a list of 2^40 numbers": lambda: _header(0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 0, 2**40) + _DATA,
    "a list of 2^60 texts": lambda: _header(0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 8, 2**60) + _DATA,
    "lists in lists": lambda: _header(0, 1) + _text(b"k") + b"\x09\0\0\0" + struct.pack("<IQ", 9, 1) * 200_000,
    "2^60 pairs": lambda: _header(0, 2**60) + _DATA,
    "2^60 tensors": lambda: _header(2**60, 0) + _DATA,
    "a key of 2^62 letters": lambda: _header(0, 1) + _text(b"k", 2**62) + _DATA,
    "2^31 dimensions": lambda: _header(1, 0) + _text(b"a") + struct.pack("<I", 2**31) + _DATA,
    "a shape that overflows": lambda: _header(1, 0) + _entry(b"a", [2**32, 2**32], 0, 0) + _DATA,
    "a shape of 2^64": lambda: _header(1, 0) + _entry(b"a", [2**64 - 1], 0, 0) + _DATA,
    "offsets of exabytes": lambda: _header(1, 0) + _entry(b"a", [8, 8], 0, 2**63) + _DATA,
    "a tensor twice": lambda: _header(2, 0) + _entry(b"a", [8, 8], 0, 0) * 2 + _DATA,
    "an unknown type": lambda: _header(1, 0) + _entry(b"a", [8, 8], 999, 0) + _DATA,
    "rows that are no blocks": lambda: _header(1, 0) + _entry(b"a", [33, 8], 2, 0) + _DATA,
    "an alignment of nothing": lambda: (
        _header(1, 1) + _text(b"general.alignment") + struct.pack("<II", 4, 0) + _entry(b"a", [8, 8], 0, 0) + _DATA
    ),
    "an alignment of 2^31": lambda: (
        _header(1, 1) + _text(b"general.alignment") + struct.pack("<II", 4, 2**31) + _entry(b"a", [8, 8], 0, 0) + _DATA
    ),
    "other names, which are no text": lambda: _header(1, 0) + _entry(b"\xff\xfe\x1b]0;a", [8, 8], 0, 0) + _DATA,
    "another version": lambda: b"GGUF" + struct.pack("<IQQ", 77, 1, 0) + _DATA,
    "no more than its name": lambda: b"GGUF",
}
for _name, _code in _GGUF.items():

    @_hostile(f"GGUF: {_name}")
    def _of_gguf(place: Path, code: Callable[[], bytes] = _code) -> Path:
        (place / "a.gguf").write_bytes(code())
        return place / "a.gguf"


@_hostile("GGUF: a list of 10^10 texts in a sparse file")
def _sparse_list(place: Path) -> Path:
    return sparse(place / "a.gguf", _header(0, 1) + _text(b"k") + struct.pack("<IIQ", 9, 8, 10**10), 10**11)


def _model(*nodes: onnx.NodeProto, **changes: object) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        weight = onnx.numpy_helper.from_array(original()["net.0.weight"].numpy(), "net.0.weight")
        for name, value in changes.items():
            getattr(weight, name)[:] = value
        graph = onnx.helper.make_graph(list(nodes), "g", [], [], [weight])
        (place / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        return place / "a.onnx"

    return make


_USE = onnx.helper.make_node("MatMul", ["net.0.weight", "x"], ["y"])
HOSTILE["ONNX: names that lead round and round"] = _model(
    *(onnx.helper.make_node("Identity", ["net.0.weight"], ["net.0.weight"]) for _ in range(60)), _USE
)
HOSTILE["ONNX: a negative dimension"] = _model(_USE, dims=[-1, 16])
HOSTILE["ONNX: dimensions of exabytes"] = _model(_USE, dims=[2**40, 2**40])
HOSTILE["ONNX: other dimensions than numbers"] = _model(_USE, dims=[24, 17])


@_hostile("ONNX: a hundred gigabytes of a sparse file")
def _sparse_onnx(place: Path) -> Path:
    return sparse(place / "a.onnx", b"", 10**11)


@_hostile("ONNX: a field of a gigabyte in a sparse file")
def _sparse_field(place: Path) -> Path:
    return sparse(place / "a.onnx", b"\x3a\xff\xff\xff\xff\x07", 2**31 + 5)


for _name, _place in {
    "up": "../outside.bin",
    "to a device": "/dev/zero",
    "nowhere": "",
    "to a null character": "a\0b",
}.items():

    @_hostile(f"ONNX: numbers that lead {_name}")
    def _elsewhere(place: Path, location: str = _place) -> Path:
        tensor = onnx.TensorProto(name="net.0.weight", data_type=1, dims=[24, 16], data_location=1)
        for key, value in (("location", location), ("offset", "0"), ("length", "1536")):
            tensor.external_data.add(key=key, value=value)
        graph = onnx.helper.make_graph([_USE], "g", [], [], [tensor])
        (place / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        return place / "a.onnx"


@_hostile(".h5: a bomb of zeros")
def _packed_zeros(place: Path) -> Path:
    with h5py.File(place / "a.weights.h5", "w") as file:
        data = file.create_dataset("layers/a/vars/0", (2**10, 2**21), "f4", chunks=(1, 2**21), compression="gzip")
        packed = zlib.compress(bytes(2**23))
        for row in range(2**10):
            data.id.write_direct_chunk((row, 0), packed)
    return place / "a.weights.h5"


@_hostile(".h5: other names, groups that hold themselves")
def _round(place: Path) -> Path:
    with h5py.File(place / "a.weights.h5", "w") as file:
        layers = file.create_group("layers")
        layers["layers"] = layers
        layers["soft"] = h5py.SoftLink("/layers/soft")
        file["layers/a/vars/0"] = original()["net.0.weight"].numpy()
    return place / "a.weights.h5"


@_hostile(".keras: a configuration of many small lists")
def _long_config(place: Path) -> Path:
    path = _keras(place)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        inner = archive.read("model.weights.h5")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", inner)
        archive.writestr("config.json", "[" + "[]," * 12_000_000 + "[]]")
    return path


def _described(place: Path, **changes: object) -> Path:
    """A distributed folder with one tensor in one chunk, described otherwise than it is."""
    folder, tensor = place / "a", original()["net.0.weight"]
    folder.mkdir()
    torch.save(tensor, folder / "__0_0.distcp")
    start, length = changes.get("start", 0), changes.get("length", (folder / "__0_0.distcp").stat().st_size)
    offsets = changes.get("offsets", [torch.Size([0, 0])])
    info = _StorageInfo(changes.get("file", "__0_0.distcp"), start, length)
    storage = {MetadataIndex("net.0.weight", offset, i): info for i, offset in enumerate(offsets)}
    chunks = [ChunkStorageMetadata(offset, tensor.shape) for offset in offsets]
    size = changes.get("size", tensor.shape)
    described = {"net.0.weight": TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), size, chunks)}
    paths = changes.get("paths", {"net.0.weight": ("net.0.weight",)})
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(described, paths, storage)))
    return folder


_DESCRIBED: dict[str, dict[str, object]] = {
    "a part of terabytes": {"length": 2**42},
    "a part of terabytes, and a shape that fits": {"length": 2**42, "size": torch.Size([2**19, 2**19])},
    "a part that starts beyond 64 bits": {"start": 2**64},
    "a part that starts behind the end": {"start": 2**30},
    "a part twice, and half of the tensor nowhere": {
        "offsets": [torch.Size([0, 0]), torch.Size([1, 0])],
        "size": torch.Size([25, 16]),
    },
    "a part in the place of another": {
        "offsets": [torch.Size([0, 0])] + [torch.Size([i, 0]) for i in range(1, 3)],
        "size": torch.Size([48, 16]),
    },
    "offsets below zero": {"offsets": [torch.Size([-24, 0])]},
    "offsets of exabytes": {"offsets": [torch.Size([2**62, 2**62])]},
    "no offsets": {"offsets": [None]},
    "a file elsewhere": {"file": "../../outside.bin"},
    "a file by an absolute name": {"file": "/etc/passwd"},
    "a file with a null character": {"file": "a\0"},
    "a file that is the folder": {"file": "."},
    "a file with a name without end": {"file": "a" * 100_000},
    "paths of a thousand keys": {"paths": {"net.0.weight": tuple(map(str, range(1000)))}},
    "a shape that overflows": {"size": torch.Size([2**62, 2**62])},
}
for _name, _changes in _DESCRIBED.items():
    HOSTILE[f"distributed: {_name}"] = lambda place, changes=_changes: _described(place, **changes)


@_hostile("distributed: a description of a hundred gigabytes")
def _long_metadata(place: Path) -> Path:
    folder = _distributed(place)
    with (folder / ".metadata").open("r+b") as file:
        file.truncate(10**11)
    return folder


@_hostile("distributed: a description that names thousands of parts of one file")
def _many_parts(place: Path) -> Path:
    offsets = [torch.Size([24 * i, 0]) for i in range(20_000)]
    return _described(place, offsets=offsets, size=torch.Size([480_000, 16]))


def _changed_zero(place: Path, change: Callable[[dict[str, object], dict[str, object]], None]) -> Path:
    _zero_3(place)
    for rank in range(2):
        files = [place / f"global_step1/zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for kind in ("model", "optim")]
        model, optimizer = (torch.load(file) for file in files)
        change(model, optimizer["optimizer_state_dict"])
        torch.save(model, files[0])
        torch.save(optimizer, files[1])
    return place


_ZERO: dict[str, Callable[[dict[str, object], dict[str, object]], None]] = {
    "shapes of exabytes": lambda model, _: model.update(param_shapes=[{"a": torch.Size([2**40, 2**20])}]),
    "shapes that overflow": lambda model, _: model.update(param_shapes=[{"a": torch.Size([2**62, 2**62])}]),
    "shapes that are texts": lambda model, _: model.update(param_shapes=[{"a": "4 x 4"}]),
    "no shapes": lambda model, _: model.update(param_shapes=None),
    "names of buffers that are a number": lambda model, _: model.update(buffer_names=7),
    "a number of processes that is a list of texts": lambda _, state: state.update(partition_count=["a", 2]),
    "a number of processes of 2^60": lambda _, state: state.update(partition_count=2**60),
    "vectors that are texts": lambda _, state: state.update(fp32_flat_groups=["a"]),
    "a million empty vectors": lambda _, state: state.update(fp32_flat_groups=[torch.empty(0)] * 100_000),
    "a vector that repeats itself": lambda _, state: state.update(
        fp32_flat_groups=[torch.ones(4).as_strided((2**30,), (0,))]
    ),
    "weights tied round and round": lambda model, _: model.update(shared_params={"a": "b", "b": "a"}),
}
for _name, _change in _ZERO.items():
    HOSTILE[f"ZeRO 3: {_name}"] = lambda place, change=_change: _changed_zero(place, change)


@_hostile("ZeRO 3: a file `latest` that leads up")
def _latest(place: Path) -> Path:
    _zero_3(place)
    (place / "latest").write_text("../" * 40 + "etc")
    return place


@_hostile("ZeRO 3: a partition that is a link out of the folder")
def _linked(place: Path) -> Path:
    _zero_3(place)
    file = place / "global_step1/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.unlink()
    file.symlink_to(place.parent / "outside.bin")
    return place


@_hostile("distributed: a pickle in the place of a part")
def _pickle_as_part(place: Path) -> Path:
    folder = _described(place)
    content = io.BytesIO()
    pickle.dump(["not", "a tensor"], content)
    (folder / "__0_0.distcp").write_bytes(content.getvalue())
    return folder
