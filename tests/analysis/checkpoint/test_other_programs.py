"""Keras, ONNX and GGUF: modules of PyTorch written as these programs store them have the model's matrices."""

import zipfile

import h5py
import numpy
import pytest
import torch
from torch import nn

from lightning_farms.analysis import Selection, checkpoint_weights, layer_weights, open_checkpoint
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor

EVERYTHING = Selection(embeddings=True)


def zrn(matrix):
    """Gates in the order in which Keras and ONNX store a GRU's."""
    reset, update, new = matrix.chunk(3)
    return torch.cat([update, reset, new])


def iofc(matrix):
    """Gates in the order in which ONNX stores an LSTM's."""
    gates = matrix.chunk(4)
    return torch.cat([gates[0], gates[3], gates[1], gates[2]])


def matrices(weights):
    return {weight.name: (weight.kind, weight.layout, weight.reason, weight.matrices) for weight in weights}


def same(found, expected):
    assert set(found) == set(expected)
    for name, (kind, layout, reason, values) in expected.items():
        assert found[name][:3] == (kind, layout, reason), name
        assert torch.equal(found[name][3], values), name


def network():
    torch.manual_seed(0)
    layers = {
        "conv2d": nn.Conv2d(6, 10, (3, 2)),
        "conv1d": nn.Conv1d(6, 10, 5),
        "conv2d_transpose": nn.ConvTranspose2d(6, 10, 3),
        "depthwise_conv2d": nn.Conv2d(6, 12, 3, groups=6),
        "dense": nn.Linear(7, 9),
        "lstm": nn.LSTM(7, 5),
        "gru": nn.GRU(7, 5),
        "simple_rnn": nn.RNN(7, 5),
        "embedding": nn.Embedding(11, 4),
    }
    return nn.ModuleDict(layers)


def keras_arrays(net):
    """{layer of Keras 3: its variables in order}."""
    lstm, gru, rnn = net["lstm"], net["gru"], net["simple_rnn"]
    depthwise = net["depthwise_conv2d"].weight
    return {
        "conv2d": [net["conv2d"].weight.permute(2, 3, 1, 0), net["conv2d"].bias],
        "conv1d": [net["conv1d"].weight.permute(2, 1, 0), net["conv1d"].bias],
        "conv2d_transpose": [net["conv2d_transpose"].weight.permute(2, 3, 1, 0), net["conv2d_transpose"].bias],
        "depthwise_conv2d": [depthwise.reshape(6, 2, 3, 3).permute(2, 3, 0, 1), net["depthwise_conv2d"].bias],
        "dense": [net["dense"].weight.T, net["dense"].bias],
        "lstm/cell": [lstm.weight_ih_l0.T, lstm.weight_hh_l0.T, lstm.bias_ih_l0],
        "gru/cell": [zrn(gru.weight_ih_l0).T, zrn(gru.weight_hh_l0).T, torch.stack([gru.bias_ih_l0, gru.bias_hh_l0])],
        "simple_rnn/cell": [rnn.weight_ih_l0.T, rnn.weight_hh_l0.T, rnn.bias_ih_l0],
        "embedding": [net["embedding"].weight],
        "batch_normalization": [torch.ones(10), torch.zeros(10), torch.zeros(10), torch.ones(10)],
    }


def test_layers_of_keras_3(tmp_path):
    net = network()
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for layer, variables in keras_arrays(net).items():
            for number, tensor in enumerate(variables):
                file[f"layers/{layer}/vars/{number}"] = tensor.detach().numpy()
        for number in range(2, 12):  # of the optimizer, as large as weights
            file[f"optimizer/vars/{number}"] = numpy.ones((7, 9), dtype=numpy.float32)
    same(matrices(checkpoint_weights(tmp_path / "a.weights.h5", EVERYTHING)), matrices(layer_weights(net, EVERYTHING)))


NAMES = {"conv2d": "kernel", "dense": "kernel", "embedding": "embeddings", "depthwise_conv2d": "depthwise_kernel"}


def test_layers_of_keras_2(tmp_path):
    net = network()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for layer, variables in keras_arrays(net).items():
            names = ["kernel", "recurrent_kernel", "bias"] if "cell" in layer else ["kernel", "bias"]
            names[0] = NAMES.get(layer, names[0])
            start = layer.partition("/")[0]
            place = f"model_weights/{start}/{start}/{layer.rpartition('/')[2] if 'cell' in layer else ''}"
            for name, tensor in zip(names, variables, strict=False):
                file[f"{place.rstrip('/')}/{name}:0"] = tensor.detach().numpy()
        file["optimizer_weights/Adam/m/dense/kernel:0"] = numpy.ones((7, 9), dtype=numpy.float32)
    found = matrices(checkpoint_weights(tmp_path / "a.h5", EVERYTHING))
    found["depthwise_conv2d"] = found.pop("depthwise_conv2d.depthwise_weight")
    same(found, matrices(layer_weights(net, EVERYTHING)))


def test_projections_of_attention_of_keras(tmp_path):
    torch.manual_seed(0)
    query, output = torch.randn(12, 3, 5), torch.randn(3, 5, 12)  # (inputs, heads, size), (heads, size, outputs)
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/multi_head_attention/query_dense/vars/0"] = query.numpy()
        file["layers/multi_head_attention/output_dense/vars/0"] = output.numpy()
    found = matrices(checkpoint_weights(tmp_path / "a.weights.h5"))
    assert torch.equal(found["multi_head_attention.query_dense"][3][0], query.flatten(1).T)
    assert torch.equal(found["multi_head_attention.output_dense"][3][0], output.flatten(0, 1).T)


def test_hdf5_reads_no_other_file_and_claims_nothing(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = numpy.ones((4, 4), dtype=numpy.float32)
    (tmp_path / "raw").write_bytes(bytes(64))
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = numpy.ones((4, 4), dtype=numpy.float32)
        file["layers/nothing/vars/0"] = h5py.Empty("f4")
        file["layers/linked/vars/0"] = h5py.ExternalLink("secret.h5", "/x")
        outside = [(str(tmp_path / "raw"), 0, 64)]
        file.create_dataset("layers/raw/vars/0", shape=(4, 4), dtype="f4", external=outside)
        file.create_dataset("layers/huge/vars/0", shape=(2**20, 2**20), dtype="f4", chunks=(64, 64))
    opened = open_checkpoint(tmp_path / "a.weights.h5")
    assert set(opened) == {"dense.weight", "raw.weight", "huge.weight"}
    with pytest.raises(UnreadableTensor, match=r"in another file"):
        opened["raw.weight"]
    with pytest.raises(UnreadableTensor, match=r"claims .* but 0 are stored"):
        opened["huge.weight"]


def test_a_flipped_bit_in_an_archive_of_keras_is_known(tmp_path):
    weight = torch.randn(20, 30)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/dense/vars/0"] = weight.numpy()
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.write(tmp_path / "w.h5", "model.weights.h5")
    content = bytearray((tmp_path / "a.keras").read_bytes())
    content[content.index(weight.numpy().tobytes())] ^= 1
    (tmp_path / "a.keras").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.keras' is damaged"):
        open_checkpoint(tmp_path / "a.keras")
    assert not torch.equal(open_checkpoint(tmp_path / "a.keras", check=False)["dense.weight"], weight.T)


def onnx_model(nodes, arrays):
    onnx = pytest.importorskip("onnx")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    constants = [onnx.numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in arrays.items()]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "net", values[:1], values[1:], constants))


def written(nodes, arrays, path):
    pytest.importorskip("onnx").save(onnx_model(nodes, arrays), path)
    return path


def node(operation, *inputs, name="", **attributes):
    helper = pytest.importorskip("onnx").helper
    return helper.make_node(operation, ["x", *inputs], [f"out{operation}{name}"], name=name, **attributes)


def test_initialisers_of_onnx_by_the_nodes_that_use_them(tmp_path):
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {
            "gemm": nn.Linear(7, 9),
            "product": nn.Linear(7, 9),
            "plain": nn.Linear(7, 9, bias=False),
            "grouped": nn.Conv2d(6, 10, 3, groups=2),
            "up": nn.ConvTranspose2d(6, 10, 3, groups=2),
            "rnn": nn.LSTM(7, 5, bidirectional=True),
            "gru": nn.GRU(7, 5),
            "table": nn.Embedding(11, 4),
        }
    )
    rnn, gru = net["rnn"], net["gru"]
    arrays = {
        "gemm.weight": net["gemm"].weight,
        "gemm.bias": net["gemm"].bias,
        "onnx::MatMul_12": net["product"].weight.T.contiguous(),
        "plain.weight": net["plain"].weight,
        "grouped.weight": net["grouped"].weight,
        "up.weight": net["up"].weight,
        "onnx::LSTM_3": torch.stack([iofc(rnn.weight_ih_l0), iofc(rnn.weight_ih_l0_reverse)]),
        "onnx::LSTM_4": torch.stack([iofc(rnn.weight_hh_l0), iofc(rnn.weight_hh_l0_reverse)]),
        "onnx::GRU_5": zrn(gru.weight_ih_l0)[None],
        "onnx::GRU_6": zrn(gru.weight_hh_l0)[None],
        "table.weight": net["table"].weight,
    }
    helper = pytest.importorskip("onnx").helper
    nodes = [
        node("Gemm", "gemm.weight", "gemm.bias", transB=1),
        node("MatMul", "onnx::MatMul_12", name="/product/MatMul"),
        helper.make_node("Transpose", ["plain.weight"], ["turned"], perm=[1, 0]),
        node("MatMul", "turned", name="/plain/MatMul"),
        node("Conv", "grouped.weight", group=2),
        node("ConvTranspose", "up.weight", group=2),
        node("LSTM", "onnx::LSTM_3", "onnx::LSTM_4", name="/rnn/LSTM", hidden_size=5, direction="bidirectional"),
        node("GRU", "onnx::GRU_5", "onnx::GRU_6", name="/gru/GRU", hidden_size=5),
        helper.make_node("Gather", ["table.weight", "i"], ["y"]),
    ]
    found = matrices(checkpoint_weights(written(nodes, arrays, tmp_path / "a.onnx"), EVERYTHING))
    same(found, matrices(layer_weights(net, EVERYTHING)))


def test_a_table_that_is_a_heads_weight_too_is_the_heads(tmp_path):
    helper = pytest.importorskip("onnx").helper
    nodes = [helper.make_node("Gather", ["tied.weight", "i"], ["a"]), node("Gemm", "tied.weight", transB=1)]
    path = written(nodes, {"tied.weight": torch.randn(11, 4)}, tmp_path / "a.onnx")
    assert [weight.kind for weight in checkpoint_weights(path)] == ["linear"]


def test_constants_without_a_product_are_no_weights(tmp_path):
    path = written([node("Add", "pos")], {"pos": torch.randn(11, 4)}, tmp_path / "a.onnx")
    [weight] = checkpoint_weights(path)
    assert weight.reason == "no product of the graph uses it, but Add"


def test_packed_initialisers_have_a_reason(tmp_path):
    weight = torch.randint(-99, 99, (7, 9), dtype=torch.int8)
    path = written([node("MatMulInteger", "fc.weight")], {"fc.weight": weight}, tmp_path / "a.onnx")
    for dequantize in (False, True):
        [layer] = checkpoint_weights(open_checkpoint(path, dequantize=dequantize))
        assert "ONNX MatMulInteger" in layer.reason


@pytest.mark.parametrize("location", ["../secret", "gone", "link"])
def test_onnx_reads_no_file_elsewhere(tmp_path, location):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(400))
    (folder / "link").symlink_to(tmp_path / "secret")
    model = onnx_model([node("Gemm", "fc.weight", transB=1)], {"fc.weight": torch.randn(9, 7)})
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location=location, length=252)
    model.graph.initializer[0].ClearField("raw_data")
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    [weight] = checkpoint_weights(folder / "a.onnx")
    assert "not beside the model" in weight.reason or "to be in its folder" in weight.reason
