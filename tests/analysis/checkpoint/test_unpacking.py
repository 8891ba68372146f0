"""Packed weights are unpacked to the numbers that they stand for; the tests pack them by the formats' definitions."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_farms.analysis import analyze_weights, checkpoint_weights, open_checkpoint
from lightning_farms.analysis._difference import differences

OUTPUTS, INPUTS, GROUP = 32, 128, 32
E2M1 = np.array([s * x for s in (1, -1) for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], dtype=np.float32)
random = np.random.default_rng(0)


def stream(numbers, bits, word=32):
    """Write numbers along the last axis one after the other into words, low bits first."""
    ones = (numbers[..., None] >> np.arange(bits)) & 1
    ones = ones.reshape(*numbers.shape[:-1], -1)
    ones = np.pad(ones, [(0, 0)] * (ones.ndim - 1) + [(0, -ones.shape[-1] % word)])
    words = ones.reshape(*ones.shape[:-1], -1, word).astype(np.uint64) @ (1 << np.arange(word, dtype=np.uint64))
    return words.astype(np.uint32).view(np.int32) if word == 32 else words.astype(np.uint8)


def parts(bits, zeros=True):
    numbers = random.integers(0, 2**bits, (OUTPUTS, INPUTS))
    scales = random.random((OUTPUTS, INPUTS // GROUP)).astype(np.float16).astype(np.float32) + np.float32(0.0078125)
    points = random.integers(1, 2**bits, scales.shape) if zeros else np.full(scales.shape, 2 ** (bits - 1))
    return numbers, scales, points


def gptq(bits, version="gptq", act_order=False):
    numbers, scales, zeros = parts(bits)
    groups = np.arange(INPUTS) // GROUP
    groups = random.permutation(groups) if act_order else groups
    stored = zeros - (version == "gptq")
    tensors = {
        "up.qweight": stream(numbers, bits).T, "up.qzeros": stream(stored.T, bits), "up.scales": scales.T,
        "up.g_idx": groups.astype(np.int32),
    }  # fmt: skip
    config = {"quantization_config": {"quant_method": "gptq", "checkpoint_format": version}}
    return "up.qweight", tensors, config, (numbers - zeros[:, groups]) * scales[:, groups]


def awq():
    numbers, scales, zeros = parts(4)

    def interleaved(matrix):
        return stream(matrix.reshape(len(matrix), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(matrix.shape), 4)

    tensors = {"up.qweight": interleaved(numbers.T), "up.qzeros": interleaved(zeros.T), "up.scales": scales.T}
    return "up.qweight", tensors, {}, (numbers - zeros.repeat(GROUP, 1)) * scales.repeat(GROUP, 1)


def compressed(bits, zeros):
    numbers, scales, points = parts(bits, zeros)
    tensors = {"up.weight_packed": stream(numbers, bits), "up.weight_scale": scales}
    tensors["up.weight_shape"] = np.array([OUTPUTS, INPUTS])
    if zeros:
        tensors["up.weight_zero_point"] = stream(points.T, bits).T
    return "up.weight_packed", tensors, {}, (numbers - points.repeat(GROUP, 1)) * scales.repeat(GROUP, 1)


def mlx(bits):
    numbers, scales, _ = parts(bits)
    biases = scales * -4
    tensors = {"up.weight": stream(numbers, bits).view(np.uint32), "up.scales": scales, "up.biases": biases}
    true = numbers * scales.repeat(GROUP, 1) + biases.repeat(GROUP, 1)
    return "up", tensors, {"quantization": {"group_size": GROUP, "bits": bits}}, true


def hqq():
    numbers, scales, zeros = parts(4)
    rows = numbers.reshape(-1, GROUP)
    half = len(rows) // 2
    tensors = {
        "up.W_q": (rows[:half] << 4 | rows[half:]).astype(np.uint8), "up.scale": scales.reshape(-1, 1),
        "up.zero": zeros.reshape(-1, 1).astype(np.float32), "up.shape": np.array([OUTPUTS, INPUTS]),
        "up.packing": np.frombuffer(b"4bit_u8", np.uint8),
    }  # fmt: skip
    return "up.W_q", tensors, {}, (numbers - zeros.repeat(GROUP, 1)) * scales.repeat(GROUP, 1)


def mxfp4():
    codes, exponents = random.integers(0, 16, (3, OUTPUTS, 4, 32)), random.integers(115, 130, (3, OUTPUTS, 4))
    tensors = {"experts.up_blocks": stream(codes, 4, 8), "experts.up_scales": exponents.astype(np.uint8)}
    true = E2M1[codes] * 2.0 ** (exponents[..., None] - 127)
    return "experts.up_blocks", tensors, {}, true.reshape(3, OUTPUTS, 128)


def nvfp4(packed, second, divides):
    codes = random.integers(0, 16, (OUTPUTS, 8, 16))
    scales = torch.from_numpy(random.random((OUTPUTS, 8)) * 100 + 1).to(torch.float8_e4m3fn)
    factor = np.array([0.25], np.float32)
    tensors = {packed: stream(codes, 4, 8).reshape(OUTPUTS, -1), "up.weight_scale": scales, second: factor}
    true = E2M1[codes] * scales.float().numpy()[..., None] * (1 / factor if divides else factor)
    return packed.removesuffix(".weight"), tensors, {}, true.reshape(OUTPUTS, -1)


FORMATS = {
    **{f"GPTQ {bits}": lambda bits=bits: gptq(bits) for bits in (2, 3, 4, 8)},
    "GPTQ v2": lambda: gptq(4, "gptq_v2"),
    "GPTQ, in the order of activations": lambda: gptq(4, act_order=True),
    "AWQ": awq,
    **{f"compressed {bits} {zeros}": lambda b=bits, z=zeros: compressed(b, z) for bits in (4, 8) for zeros in (0, 1)},
    **{f"MLX {bits}": lambda bits=bits: mlx(bits) for bits in (2, 3, 4, 6, 8)},
    "HQQ": hqq,
    "MXFP4": mxfp4,
    "NVFP4": lambda: nvfp4("up.weight", "up.weight_scale_2", False),
    "NVFP4, compressed": lambda: nvfp4("up.weight_packed", "up.weight_global_scale", True),
}


def saved(folder, tensors, config):
    held = {name: torch.as_tensor(np.array(t)) if isinstance(t, np.ndarray) else t for name, t in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_unpacked_numbers_are_those_that_were_packed(name, tmp_path):
    row, tensors, config, true = FORMATS[name]()
    folder = saved(tmp_path, tensors, config)
    [skipped] = checkpoint_weights(folder)
    assert skipped.name == row
    assert "--dequantize" in skipped.reason
    opened = open_checkpoint(folder, dequantize=True)
    [outline], [weight] = checkpoint_weights(opened, values=False), checkpoint_weights(opened)
    plain_name = "experts.up" if true.ndim > 2 else "up"
    assert (weight.name, weight.reason) == (outline.name, outline.reason) == (plain_name, "")
    assert outline.shape == weight.shape == true.shape
    expected = torch.from_numpy(np.atleast_3d(true) if true.ndim > 2 else true[None]).float()
    torch.testing.assert_close(weight.matrices.float(), expected, rtol=1e-6, atol=1e-6)
    assert weight.steps().shape == weight.matrices.shape
    original = {"experts.up" if true.ndim > 2 else "up.weight": expected.squeeze(0)}
    plain = analyze_weights(checkpoint_weights(original))
    assert analyze_weights([weight]).alphas == pytest.approx(plain.alphas, abs=1e-4)


def test_a_packed_weight_has_its_originals_as_base(tmp_path):
    """What packing rounded is no change: nothing is left of it."""
    _, tensors, config, true = gptq(4)
    packed = list(checkpoint_weights(open_checkpoint(saved(tmp_path, tensors, config), dequantize=True)))
    scales = torch.from_numpy(tensors["up.scales"].T).repeat_interleave(GROUP, 1)
    generator = torch.Generator().manual_seed(0)
    rounded_off = scales * (torch.rand(OUTPUTS, INPUTS, generator=generator) - 0.5)
    original = {"up.weight": torch.from_numpy(true).float() + rounded_off}
    [change] = differences(packed, checkpoint_weights(original))
    assert change.name == "up"
    assert "rounding" in change.reason


@pytest.mark.parametrize("name", FORMATS)
def test_shapes_that_do_not_fit_are_one_clear_reason(name, tmp_path):
    _, tensors, config, _ = FORMATS[name]()
    first = next(iter(tensors))
    for damaged in ({**tensors, first: tensors[first][:, :-1]}, {**tensors, first: tensors[first][:-1]}):
        [weight] = checkpoint_weights(open_checkpoint(saved(tmp_path, damaged, config), dequantize=True))
        assert "it is quantised (" in weight.reason
        assert "analyse the original checkpoint" in weight.reason


def test_a_format_that_is_not_unpacked_says_so(tmp_path):
    tensors = {"up.codes": torch.zeros(64, 8, 1, dtype=torch.int16), "up.codebooks": torch.zeros(1, 256, 2, 8)}
    folder = saved(tmp_path, tensors, {})
    for opened in (open_checkpoint(folder), open_checkpoint(folder, dequantize=True)):
        [weight] = checkpoint_weights(opened)
        assert "AQLM" in weight.reason
        assert "not unpacked here" in weight.reason


def test_zeros_of_gptq_without_a_configuration(tmp_path):
    """Symmetric ones tell by themselves whether they are less by 1; others are no guess."""
    _, tensors, _, _ = gptq(4)
    [weight] = checkpoint_weights(open_checkpoint(saved(tmp_path, tensors, {}), dequantize=True))
    assert "checkpoint_format" in weight.reason
    found = []
    for digit in (0x77777777, 0x88888888 - 2**32):
        tensors["up.qzeros"] = np.full_like(tensors["up.qzeros"], digit)
        [weight] = checkpoint_weights(open_checkpoint(saved(tmp_path, tensors, {}), dequantize=True))
        found.append(weight.matrices)
    assert torch.equal(*found)
