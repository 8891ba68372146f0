"""Quantised weights of every common format: one row with the reason, and what comes with them is no weight."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lightning_farms.analysis import checkpoint_weights


def u8(*shape):
    return torch.randint(0, 255, shape, dtype=torch.uint8)


def i8(*shape):
    return u8(*shape).view(torch.int8)


def i32(*shape):
    return torch.randint(0, 2**31 - 1, shape, dtype=torch.int32)


def f16(*shape):
    return torch.randn(*shape).half()


FORMATS = {
    "MXFP4": ("e.down_proj_blocks", {"e.down_proj_blocks": u8(2, 64, 2, 16), "e.down_proj_scales": u8(2, 64, 2)}),
    "bitsandbytes, 4 bits": (
        "up",
        {
            "up.weight": u8(2048, 1),
            "up.weight.absmax": f16(64, 2),
            "up.weight.quant_map": f16(16, 2),
            "up.weight.nested_absmax": f16(4, 4),
            "up.weight.quant_state.bitsandbytes__nf4": u8(80),
        },
    ),
    "bitsandbytes, 8 bits": ("up", {"up.weight": u8(64, 64).view(torch.int8), "up.SCB": f16(64, 2)}),
    "quanto": ("up.weight._data", {"up.weight._data": u8(64, 64), "up.weight._scale": f16(64, 2)}),
    "HQQ": ("up.W_q", {"up.W_q": u8(64, 64), "up.scale": f16(64, 2), "up.zero": f16(64, 2)}),
    "EXL3": ("up.trellis", {"up.trellis": i32(4, 4, 48).short(), "up.suh": f16(8, 8), "up.svh": f16(64)}),
    "EXL2": ("up.q_weight", {"up.q_weight": i32(8, 64), "up.q_scale": i32(4, 8), "up.q_scale_max": f16(4, 2)}),
    "AQLM": (
        "up.codes",
        {"up.codes": i32(64, 8, 1).short(), "up.codebooks": f16(1, 256, 2, 8), "up.scales": f16(8, 8)},
    ),
    "QuIP#": ("up.Qidxs", {"up.Qidxs": i32(64, 8).short(), "up.SU": f16(8, 8), "up.SV": f16(8, 8)}),
    "VPTQ": ("up.indices", {"up.indices": i32(1, 8, 64), "up.centroids": f16(1, 256, 8)}),
    "Marlin": ("up.B", {"up.B": i32(4, 128), "up.s": f16(16, 64)}),
    "GPTQ or AWQ": ("up.qweight", {"up.qweight": i32(8, 64), "up.qzeros": i32(4, 8), "up.scales": f16(16, 64)}),
    "compressed-tensors": ("up.weight_packed", {"up.weight_packed": i32(64, 8), "up.weight_scale": f16(64, 4)}),
    "torchao": ("up._weight_qdata", {"up._weight_qdata": i8(64, 64), "up._weight_scale": f16(64, 16)}),
    "torch.int8": ("up", {"up.weight": i8(64, 64), "up.scale_weight": f16(64, 16)}),
    "NVFP4": ("up", {"up.weight": u8(64, 32), "up.weight_scale": f16(64, 4), "up.weight_scale_2": f16(1)}),
    "fp8 with scales": (
        "up",
        {"up.weight": torch.randn(64, 64).to(torch.float8_e4m3fn), "up.weight_scale_inv": torch.randn(16, 16)},
    ),
    "integers with scales": ("e.w1", {"e.w1": u8(4, 64, 64).view(torch.int8), "e.w1_scales": torch.randn(4, 64)}),
    "float8_e5m2": ("e.gate_up_proj", {"e.gate_up_proj": torch.randn(4, 64, 64).to(torch.float8_e5m2)}),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("prefix", ["", "module.net."])
def test_one_skipped_row_with_the_formats_name(name, prefix):
    row, tensors = FORMATS[name]
    state = {f"{prefix}{key}": tensor for key, tensor in {"q.weight": torch.randn(64, 64), **tensors}.items()}
    start = prefix.removeprefix("module.")
    for values in (True, False):
        plain, packed = checkpoint_weights(state, values=values)
        assert (plain.name, plain.reason) == (f"{start}q", "")
        assert packed.name == f"{start}{row}"
        assert name in packed.reason
        assert packed.matrices.numel() == 0


def test_scales_and_zeros_of_plain_layers_are_weights():
    """Names alone, without packed numbers beside them, say nothing."""
    state = {"gate.scale": torch.randn(16, 16), "mix.zero": torch.randn(16, 16), "index": i32(16, 16)}
    assert [weight.name for weight in checkpoint_weights(state)] == ["gate.scale", "mix.zero"]


def test_the_config_beside_the_file_names_a_new_format(tmp_path):
    tensors = {"up.packed_bits": i32(8, 64), "up.row_scales": torch.randn(8, 8), "q.weight": torch.randn(64, 64)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert {weight.name for weight in checkpoint_weights(tmp_path)} == {"up.row_scales", "q"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "newq"}}))
    found = {weight.name: weight.reason for weight in checkpoint_weights(tmp_path)}
    assert found.keys() == {"up.packed_bits", "q"}
    assert "torch.int32; newq" in found["up.packed_bits"]


def test_what_a_packed_layer_holds_beside_its_numbers_is_no_weight():
    """Tables, rotations and low-rank corrections of formats that nobody has named yet; adapters' products are rows."""
    state = {
        "up.qweight": i32(8, 64), "up.proj_down": f16(64, 32), "up.tables": f16(64, 16),
        "up.lora_A": torch.randn(16, 64), "up.lora_B": torch.randn(48, 16),
        "sharp.Qidxs": torch.randint(0, 9, (64, 8)), "sharp.A": torch.randn(16, 16),
        "q.weight": torch.randn(64, 64),
    }  # fmt: skip
    found = {weight.name: weight.reason for weight in checkpoint_weights(state)}
    assert set(found) == {"up.qweight", "up.lora", "sharp.Qidxs", "q"}
    assert (found["q"], found["up.lora"]) == ("", "")
    assert "QuIP#" in found["sharp.Qidxs"]


def test_a_weight_compressed_to_its_nonzero_numbers_is_packed():
    state = {"up.weight_compressed": f16(64, 32), "up.weight_bitmask": u8(64, 8)}
    [weight] = checkpoint_weights(state)
    assert (weight.name, "2:4" in weight.reason) == ("up.weight_compressed", True)


def test_one_packed_tensor_says_nothing_of_the_others_of_fused_experts():
    state = {"experts.up": u8(4, 64, 64).view(torch.float8_e4m3fn), "experts.down": torch.randn(4, 64, 64)}
    assert [(weight.name, bool(weight.reason)) for weight in checkpoint_weights(state)] == [
        ("experts.up", True),
        ("experts.down", False),
    ]
