"""Every line of the table of formats in the room's card: what is read has the model's rows, what is not its remedy."""

import json
import re
import zipfile
from pathlib import Path

import gguf
import h5py
import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

import lightning_farms.analysis as analysis
from lightning_farms.analysis import (
    Selection,
    analyze,
    analyze_weights,
    checkpoint_changes,
    checkpoint_weights,
    open_checkpoint,
)

CARD = Path(analysis.__file__).with_name("README.md")
ARRAYS = "convolution linear"  # what every format below can hold


def network():
    torch.manual_seed(3)
    return nn.ModuleDict({"conv": nn.Conv2d(16, 24, 3), "fc": nn.Linear(32, 20)})


def tensors():
    return network().state_dict()


def lightning(folder):
    state = {"state_dict": tensors(), "epoch": 1, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(20, 32)}}}]}
    torch.save(state, folder / "last.ckpt")
    return folder / "last.ckpt"


def plain(folder):
    torch.save(tensors(), folder / "weights.pt")
    return folder / "weights.pt"


def whole_module(folder):
    torch.save(network(), folder / "net.pth")
    return folder / "net.pth"


def safetensors(folder):
    save_file(tensors(), folder / "model.safetensors")
    return folder / "model.safetensors"


def indexed(folder):
    shards(folder)
    names = {name: f"model-0000{i}-of-00004.safetensors" for i, name in enumerate(tensors(), 1)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def shards(folder):
    for number, (name, tensor) in enumerate(tensors().items(), 1):
        save_file({name: tensor}, folder / f"model-0000{number}-of-00004.safetensors")
    return folder


def cache(folder):
    model = folder / "models--org--net"
    for place in ("refs", "blobs", "snapshots/f00d"):
        (model / place).mkdir(parents=True)
    (model / "refs" / "main").write_text("f00d")
    save_file(tensors(), model / "blobs" / "abc")
    (model / "snapshots" / "f00d" / "model.safetensors").symlink_to("../../blobs/abc")
    return model


def pipeline(folder):
    (folder / "model_index.json").write_text(json.dumps({"conv": ["diffusers", "A"], "fc": ["diffusers", "B"]}))
    for part in ("conv", "fc"):
        (folder / part).mkdir()
        own = {name.partition(".")[2]: tensor for name, tensor in tensors().items() if name.startswith(part)}
        save_file(own, folder / part / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def distributed(folder):
    dcp.save({"model": tensors()}, checkpoint_id=folder, no_dist=True)
    return folder


def zero_2(folder):
    torch.save({"module": tensors(), "buffer_names": []}, folder / "mp_rank_00_model_states.pt")
    return folder


def zero_3(folder):
    state = tensors()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    optimizer = {"zero_stage": 3, "partition_count": 1, "fp32_flat_groups": [flat]}
    torch.save({"optimizer_state_dict": optimizer}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    model = {"module": {name: torch.empty(0) for name in state}, "param_shapes": [shapes], "buffer_names": []}
    torch.save(model, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    return folder


def of_gguf(folder):
    writer = gguf.GGUFWriter(folder / "net.gguf", "llama")
    for name, tensor in tensors().items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "net.gguf"


def graph():
    onnx = pytest.importorskip("onnx")
    make, state = onnx.helper, {name: tensor.numpy() for name, tensor in tensors().items()}
    nodes = [
        make.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"]),
        make.make_node("Gemm", ["a", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    values = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    initialisers = [onnx.numpy_helper.from_array(array, name) for name, array in state.items()]
    return make.make_model(make.make_graph(nodes, "net", values[:1], values[1:], initialisers))


def of_onnx(folder):
    pytest.importorskip("onnx").save(graph(), folder / "net.onnx")
    return folder / "net.onnx"


def onnx_beside(folder):
    settings = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0}
    pytest.importorskip("onnx").save(graph(), folder / "net.onnx", **settings)
    return folder / "net.onnx"


def keras_weights(file, prefix="layers/"):
    state = tensors()
    arrays = {
        "conv": [state["conv.weight"].permute(2, 3, 1, 0), state["conv.bias"]],
        "fc": [state["fc.weight"].T, state["fc.bias"]],
        "optimizer": [torch.ones(32, 20)],
    }
    for layer, held in arrays.items():
        place = file.create_group(f"{'' if layer == 'optimizer' else prefix}{layer}/vars")
        for number, tensor in enumerate(held):
            place[str(number)] = tensor.numpy()


def of_keras(folder):
    path = folder / "net.weights.h5"
    with h5py.File(path, "w") as file:
        keras_weights(file)
    return path


def keras_archive(folder):
    of_keras(folder)
    with zipfile.ZipFile(folder / "net.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"name": "net"}}))
        archive.writestr("metadata.json", "{}")
        archive.write(folder / "net.weights.h5", "model.weights.h5")
    return folder / "net.keras"


def keras_2(folder):
    state = tensors()
    with h5py.File(folder / "net.h5", "w") as file:
        weights = file.create_group("model_weights")
        weights["conv/conv/kernel:0"] = state["conv.weight"].permute(2, 3, 1, 0).numpy()
        weights["fc/fc/kernel:0"] = state["fc.weight"].T.numpy()
        weights["fc/fc/bias:0"] = state["fc.bias"].numpy()
        file["optimizer_weights/adam/m/fc/kernel:0"] = numpy.ones((32, 20), dtype=numpy.float32)
    return folder / "net.h5"


READ = {
    "Lightning's `.ckpt`": lightning,
    "`torch.save` of a state dict": plain,
    "`torch.save` of a whole module": whole_module,
    "`.safetensors`": safetensors,
    "shards with an index": indexed,
    "shards without one": shards,
    "Hugging Face's cache": cache,
    "pipelines of diffusers": pipeline,
    "`torch.distributed.checkpoint`": distributed,
    "DeepSpeed ZeRO 1 and 2": zero_2,
    "DeepSpeed ZeRO 3": zero_3,
    "GGUF": of_gguf,
    "ONNX": of_onnx,
    "ONNX with its data beside it": onnx_beside,
    "Keras 3, `.weights.h5`": of_keras,
    "Keras 3, `.keras`": keras_archive,
    "Keras 2, `.h5`": keras_2,
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_is_read_has_the_rows_of_the_model(name, tmp_path):
    found = {row.name: row for row in analyze_weights(checkpoint_weights(READ[name](tmp_path)))}
    expected = {row.name: row for row in analyze(network())}
    assert set(found) == set(expected) == {"conv", "fc"}
    for layer, row in expected.items():
        assert (found[layer], found[layer].layout) == (row, row.layout)


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shapes_are_told_without_values(name, tmp_path):
    path = READ[name](tmp_path)
    outlines = [(w.name, w.kind, w.shape, w.layout) for w in checkpoint_weights(path, values=False)]
    assert outlines == [(w.name, w.kind, w.shape, w.layout) for w in checkpoint_weights(path)]


def quantised_gguf(folder):
    writer = gguf.GGUFWriter(folder / "q.gguf", "llama")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("fc.weight", gguf.quants.quantize(tensors()["fc.weight"].numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "q.gguf"


def quantised_onnx(folder):
    onnx = pytest.importorskip("onnx")
    make, weight = onnx.helper, tensors()["fc.weight"].T.contiguous()
    scale = weight.abs().amax(0) / 127
    arrays = {"fc.weight": (weight / scale).round().to(torch.int8), "s": scale, "z": torch.zeros(20, dtype=torch.int8)}
    nodes = [
        make.make_node("DequantizeLinear", ["fc.weight", "s", "z"], ["d"], axis=1),
        make.make_node("MatMul", ["x", "d"], ["y"], name="/fc/MatMul"),
    ]
    values = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    initialisers = [onnx.numpy_helper.from_array(array.numpy(), name) for name, array in arrays.items()]
    onnx.save(make.make_model(make.make_graph(nodes, "net", values[:1], values[1:], initialisers)), folder / "q.onnx")
    return folder / "q.onnx"


def fp8(folder, blocks=(16, 16)):
    weight = tensors()["fc.weight"]
    cut = [weight[i : i + 16, j : j + 16].abs().max() / 448 for i in (0, 16) for j in (0, 16)]
    scale = torch.stack(cut).reshape(2, 2)
    spread = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)[:20]
    state = {"fc.weight": (weight / spread).to(torch.float8_e4m3fn), "fc.weight_scale_inv": scale}
    save_file(state, folder / "model.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": list(blocks)}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rows_of_integers(folder):
    weight = tensors()["fc.weight"]
    scale = weight.abs().amax(1, keepdim=True) / 127
    state = {"fc.weight": (weight / scale).round().to(torch.int8), "fc.weight_scale": scale}
    save_file(state, folder / "model.safetensors")
    return folder


def eight_bits(folder):
    weight = tensors()["fc.weight"]
    largest = weight.abs().amax(1)
    packed = (weight / largest[:, None] * 127).round().to(torch.int8)
    state = {"fc.weight": packed, "fc.SCB": largest, "fc.weight_format": torch.zeros((), dtype=torch.uint8)}
    save_file(state, folder / "model.safetensors")
    return folder


def four_bits(folder):
    bitsandbytes = pytest.importorskip("bitsandbytes.functional")
    packed, state = bitsandbytes.quantize_4bit(tensors()["fc.weight"], blocksize=64, quant_type="nf4")
    held = {"fc.weight": packed, **{f"fc.weight.{name}": t for name, t in state.as_dict(packed=True).items()}}
    save_file(held, folder / "model.safetensors")
    return folder


DEQUANTISED = {
    "GGUF, quantised": (quantised_gguf, 0.02),
    "ONNX, integers with scales": (quantised_onnx, 0.02),
    "fp8 with scales": (fp8, 0.2),
    "int8 with scales": (rows_of_integers, 0.02),
    "bitsandbytes, 8 bits": (eight_bits, 0.02),
    "bitsandbytes, 4 bits": (four_bits, 0.6),
}


@pytest.mark.parametrize("name", DEQUANTISED)
def test_packed_weights_are_unpacked_on_request_only(name, tmp_path):
    write, error = DEQUANTISED[name]
    path = write(tmp_path)
    [row] = analyze_weights(checkpoint_weights(path))
    assert (row.name, row.status) == ("fc", "skipped")
    assert "quantised" in row.reason
    assert "--dequantize" in row.reason
    opened = open_checkpoint(path, dequantize=True)
    [outline] = checkpoint_weights(opened, values=False)
    [weight] = checkpoint_weights(opened)
    assert outline.shape == weight.shape == (20, 32)
    true = tensors()["fc.weight"]
    assert 0 < (weight.matrices[0] - true).abs().max() <= error * true.abs().max()
    assert analyze_weights([weight])["fc"].alpha == pytest.approx(analyze(network())["fc"].alpha, abs=error)


@pytest.mark.parametrize("external", [False, True])
def test_large_initialisers_of_onnx_are_read_where_they_lie(external, tmp_path):
    onnx, types = pytest.importorskip("onnx"), pytest.importorskip("ml_dtypes")
    torch.manual_seed(0)
    wide, packed = torch.randn(140, 130).numpy(), torch.randint(-8, 8, (130, 1100), dtype=torch.int8).numpy()
    arrays = {"up.weight": wide, "fc.weight": packed.astype(types.int4), "s": torch.full((1100,), 0.5).numpy()}
    make = onnx.helper
    nodes = [
        make.make_node("MatMul", ["x", "up.weight"], ["u"]),
        make.make_node("DequantizeLinear", ["fc.weight", "s"], ["d"], axis=1),
        make.make_node("MatMul", ["u", "d"], ["y"]),
    ]
    values = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    initialisers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model = make.make_model(make.make_graph(nodes, "net", values[:1], values[1:], initialisers))
    settings = {"save_as_external_data": True, "location": "a.data", "size_threshold": 0} if external else {}
    onnx.save(model, tmp_path / "a.onnx", **settings)
    found = {w.name: w.matrices[0] for w in checkpoint_weights(open_checkpoint(tmp_path / "a.onnx", dequantize=True))}
    assert torch.equal(found["up"], torch.from_numpy(wide).T)
    assert torch.equal(found["fc"], torch.from_numpy(packed).T * 0.5)


@pytest.mark.parametrize(("operation", "gates"), [("LSTM", "ifgo"), ("GRU", "rzn")])
@pytest.mark.parametrize("node", ["", "/body/rnn/Op"])
def test_weights_of_an_onnx_rnn_are_cut_into_gates_whatever_they_are_called(operation, gates, node, tmp_path):
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    arrays = {name: torch.randn(1, len(gates) * 6, size).numpy() for name, size in (("cell_W", 5), ("cell_R", 6))}
    make = onnx.helper
    nodes = [make.make_node(operation, ["x", *arrays], ["y"], node, hidden_size=6)]
    values = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    initialisers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    onnx.save(make.make_model(make.make_graph(nodes, "net", values[:1], values[1:], initialisers)), tmp_path / "a.onnx")
    rows = {weight.name: weight.matrices.shape[-2:] for weight in checkpoint_weights(tmp_path / "a.onnx")}
    module = "body.rnn" if node else "cell"
    expected = {
        f"{module}.weight_{kind}_l0.{gate}": (6, size) for kind, size in (("ih", 5), ("hh", 6)) for gate in gates
    }
    assert rows == expected


@pytest.mark.parametrize("shape", [(3, 16, 3, 3), (4, 16, 32)], ids=["convolution", "experts"])
def test_scales_belong_to_the_first_dimension(shape, tmp_path):
    """Of three outputs with kernels of three, or experts whose number divides that of their rows."""
    torch.manual_seed(0)
    packed, scales = torch.randint(-99, 99, shape, dtype=torch.int8), torch.rand(shape[0])
    name = "conv.weight" if len(shape) == 4 else "experts.weight"
    save_file({name: packed, f"{name}_scale": scales}, tmp_path / "a.safetensors")
    [layer] = checkpoint_weights(open_checkpoint(tmp_path / "a.safetensors", dequantize=True))
    true = packed * scales.reshape(-1, *[1] * (len(shape) - 1))
    expected = true.permute(2, 3, 0, 1).reshape(9, 3, 16) if len(shape) == 4 else true
    torch.testing.assert_close(layer.matrices, expected)


def test_scales_of_unknown_rows_are_no_guess(tmp_path):
    """Queries, keys and values in one have a scale each, and seldom as many rows."""
    state = {"qkv.weight": torch.ones(96, 64).to(torch.float8_e4m3fn), "qkv.weight_scale": torch.rand(3)}
    save_file(state, tmp_path / "a.safetensors")
    [layer] = checkpoint_weights(open_checkpoint(tmp_path / "a.safetensors", dequantize=True))
    assert "which of its 96 rows each of 3 scales is for" in layer.reason


def test_scales_of_mxfp8_are_exponents(tmp_path):
    torch.manual_seed(0)
    packed, scales = torch.randn(20, 64).to(torch.float8_e4m3fn), torch.randint(120, 130, (20, 2), dtype=torch.uint8)
    save_file({"fc.weight": packed, "fc.weight_scale": scales}, tmp_path / "a.safetensors")
    [layer] = checkpoint_weights(open_checkpoint(tmp_path / "a.safetensors", dequantize=True))
    true = packed.float() * 2.0 ** (scales.float() - 127).repeat_interleave(32, 1)
    torch.testing.assert_close(layer.matrices[0], true)


@pytest.mark.parametrize("name", DEQUANTISED)
def test_packing_alone_is_no_change(name, tmp_path):
    path = DEQUANTISED[name][0](tmp_path)
    base = {"fc.weight": tensors()["fc.weight"]}
    [row] = analyze_weights(checkpoint_changes(open_checkpoint(path, dequantize=True), base))
    assert (row.name, row.status) == ("fc", "skipped")
    assert row.reason == "unchanged from the base, apart from the rounding of packed numbers and float32"


def archive(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as held:
            for name in names:
                held.writestr(name, "x")

    return write


def content(start):
    return lambda path: path.write_bytes(start + bytes(64))


def torchscript(path):
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), path)


def saved_model(path):
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"\x08\x01\x12")


def orbax(path):
    (path / "d").mkdir(parents=True)
    (path / "_METADATA").write_text("{}")
    (path / "manifest.ocdbt").write_bytes(b"x")


def openvino(path):
    path.mkdir()
    (path / "openvino_model.xml").write_text("<net/>")
    (path / "openvino_model.bin").write_bytes(bytes(64))


def slices(path):
    for rank in ("mp_rank_00", "mp_rank_01"):
        (path / rank).mkdir(parents=True)
        torch.save({"model": {"up.weight": torch.ones(4, 4)}}, path / rank / "model_optim_rng.pt")


def hdf5(path):
    with h5py.File(path, "w") as file:
        file["density"] = numpy.ones((4, 4))


REFUSED = {  # file: how it is written, what it is called, what to do
    "TorchScript": ("net.ts", torchscript, "a TorchScript program", r"torch\.jit\.load"),
    "`torch.export`": (
        "net.pt2",
        archive("net/archive_format", "net/models/model.json"),
        "torch.export",
        "export.load",
    ),
    "`torch.package`": ("net.pt", archive("net/.data/extern_modules"), "torch.package", "PackageImporter"),
    "slices of tensor parallelism": ("iter_0000001", slices, r"2 slices of every matrix", "convert.py"),
    "TensorFlow's SavedModel": ("saved", saved_model, "a TensorFlow SavedModel", "tf.saved_model.load"),
    "TensorFlow's checkpoints": (
        "ckpt.data-00000-of-00001",
        content(b"\0"),
        "a TensorFlow checkpoint",
        "load_checkpoint",
    ),
    "TensorFlow Lite": ("net.tflite", content(b"\x1c\0\0\0TFL3"), "a TensorFlow Lite model", "made from"),
    "Flax, `.msgpack`": ("flax_model.msgpack", content(b"\x81\xa6params\x80"), "a Flax checkpoint", "msgpack_restore"),
    "Orbax (JAX)": ("orbax", orbax, "an Orbax checkpoint", "StandardCheckpointer|PyTreeCheckpointer"),
    "OpenVINO": ("ov", openvino, "an OpenVINO model", "made from"),
    "Paddle": ("net.pdparams", content(b"\x80\x04}."), "a Paddle checkpoint", "paddle.load"),
    "Core ML": ("net.mlmodel", content(b"\x08\x05"), "a Core ML model", "made from"),
    "TensorRT": ("net.engine", content(b"ftrt"), "a TensorRT engine", "made from"),
    "NumPy": ("net.npz", archive("a.npy"), "a NumPy archive", "torch.from_numpy"),
    "HDF5 of something else": ("data.h5", hdf5, "an HDF5 file that holds no weights", "torch.from_numpy"),
    "older llama.cpp (GGML)": ("ggml.bin", content(b"lmgg"), "an older llama.cpp file", "made from"),
    "Git LFS pointers": ("a.bin", content(b"version https://git-lfs"), "a Git LFS pointer", "git lfs pull"),
    "archives": ("a.tar.gz", content(b"\x1f\x8b"), "a compressed file", "Unpack it"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_what_is_not_read_is_named_with_the_remedy(name, tmp_path):
    file, write, called, remedy = REFUSED[name]
    write(tmp_path / file)
    with pytest.raises(ValueError, match=rf"(is|holds) .*{called}.*({remedy})") as error:
        open_checkpoint(tmp_path / file)
    assert "damaged" not in str(error.value)


def test_a_pipe_says_what_to_do():
    with pytest.raises(ValueError, match="Write the checkpoint to a file first"):
        open_checkpoint("-")


def test_the_card_has_a_line_for_each():
    lines = re.findall(
        r"^\| ([^|]+?) \| (?:read|refused|unpacked)\b", CARD.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(lines) == sorted([*READ, *DEQUANTISED, *REFUSED, "`-`, pipes, devices"])


def test_rows_say_which_layout_was_used():
    rows = analyze(network(), selection=Selection(include=("conv",)))
    assert rows["conv"].layout == "oikk"
