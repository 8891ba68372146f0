"""Folders of several files: distributed, ZeRO, shards, caches, pipelines; written as the programs write them."""

import json
import math
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from lightning_farms.analysis import open_checkpoint
from lightning_farms.common.checkpoints import read_stored
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor


def state(seed=0):
    torch.manual_seed(seed)
    return {"a.weight": torch.randn(7, 5), "a.bias": torch.randn(7), "b.weight": torch.randn(3, 7)}


def same(opened, expected):
    assert set(opened) == set(expected)
    assert all(torch.equal(opened[name], tensor) for name, tensor in expected.items())


def save_distributed(content, folder):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        dcp.save(content, checkpoint_id=folder, no_dist=True)


@pytest.mark.parametrize("content", ["alone", "model", "state_dict"])
def test_distributed_folders_as_torch_writes_them(tmp_path, content):
    optimizer = {"state": {"a.weight": {"exp_avg": torch.ones(7, 5)}}}
    saved = state() if content == "alone" else {content: state(), "optimizer": optimizer, "epoch": 3}
    save_distributed(saved, tmp_path)
    same(open_checkpoint(tmp_path), state())
    same(open_checkpoint(tmp_path / ".metadata"), state())
    assert [tuple(t.shape) for t in map(read_stored(tmp_path).tensors.without_values, state())] == [
        (7, 5),
        (7,),
        (3, 7),
    ]


def save_by(rank, world, folder):
    """What one of several processes saves of a matrix that is cut into rows (as FSDP2 does)."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    sharded = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in state().items()}
    dcp.save({"model": sharded}, checkpoint_id=f"{folder}/checkpoint")
    dist.destroy_process_group()


@pytest.mark.slow
def test_parts_of_several_processes_are_put_together(tmp_path):
    torch.multiprocessing.spawn(save_by, (2, str(tmp_path)), nprocs=2)
    folder = tmp_path / "checkpoint"
    assert len(list(folder.glob("*.distcp"))) == 2
    same(open_checkpoint(folder), state())
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 are missing: __1_0\.distcp"):
        open_checkpoint(folder)


def save_in_parts(folder, name, tensor, cuts, *, claimed=None):
    """A matrix cut into blocks, each in a file of its own, described as torch describes them."""
    folder.mkdir()
    chunks, storage = [], {}
    for number, (rows, columns) in enumerate(cuts):
        part = tensor[rows, columns].clone()
        offsets = torch.Size([rows.start, columns.start])
        torch.save(part, folder / f"__{number}_0.distcp")
        length = (folder / f"__{number}_0.distcp").stat().st_size
        chunks.append(ChunkStorageMetadata(offsets, part.shape))
        storage[MetadataIndex(name, offsets, number)] = _StorageInfo(f"__{number}_0.distcp", 0, length)
    described = {name: TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), claimed or tensor.shape, chunks)}
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(described, {name: (name,)}, storage)))


BLOCKS = [(slice(0, 4), slice(0, 5)), (slice(4, 7), slice(0, 2)), (slice(4, 7), slice(2, 5))]


def test_blocks_in_several_files_are_put_together(tmp_path):
    weight = state()["a.weight"]
    save_in_parts(tmp_path / "whole", "a.weight", weight, BLOCKS)
    same(open_checkpoint(tmp_path / "whole"), {"a.weight": weight})
    save_in_parts(tmp_path / "less", "a.weight", weight, BLOCKS[:2])
    with pytest.raises(UnreadableTensor, match="do not cover it: files of other processes are missing"):
        open_checkpoint(tmp_path / "less")["a.weight"]
    save_in_parts(tmp_path / "huge", "a.weight", weight, BLOCKS, claimed=torch.Size([2**24, 2**24]))
    with pytest.raises(UnreadableTensor, match="do not cover it"):
        open_checkpoint(tmp_path / "huge")["a.weight"]
    (tmp_path / "whole" / "__1_0.distcp").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 are missing: __1_0\.distcp"):
        open_checkpoint(tmp_path / "whole")


def test_a_flipped_bit_in_a_part_costs_its_tensor_only(tmp_path):
    save_distributed({"model": state()}, tmp_path)
    [file] = tmp_path.glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[content.index(state()["a.weight"].numpy().tobytes())] ^= 1
    file.write_bytes(content)
    opened = open_checkpoint(tmp_path)
    with pytest.raises(UnreadableTensor, match="CRC-32"):
        opened["a.weight"]
    assert torch.equal(opened["b.weight"], state()["b.weight"])
    assert not torch.equal(open_checkpoint(tmp_path, check=False)["a.weight"], state()["a.weight"])


def test_a_distributed_folder_names_no_file_elsewhere(tmp_path):
    folder = tmp_path / "checkpoint"
    save_distributed({"model": state()}, folder)
    [file] = folder.glob("*.distcp")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"to be in its folder"):
        open_checkpoint(folder)


def save_zero_3(folder, ranks, *, frozen=(), tied=()):
    """As DeepSpeed does: of each parameter every process has an equal part of its numbers, padded with zeros."""
    trained = {name: tensor for name, tensor in state().items() if name not in frozen}
    (folder / "global_step4").mkdir(parents=True)
    (folder / "latest").write_text("global_step4")

    def part(tensor, rank):
        size = math.ceil(tensor.numel() / ranks)
        return nn.functional.pad(tensor.flatten(), (0, size * ranks - tensor.numel()))[rank * size : (rank + 1) * size]

    for rank in range(ranks):
        stem = folder / "global_step4" / f"zero_pp_rank_{rank}_mp_rank_00"
        flat = torch.cat([part(tensor, rank) for tensor in trained.values()])
        groups = [flat[:3].clone(), flat[3:].clone()]
        optimizer = {"zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": groups}
        torch.save({"optimizer_state_dict": optimizer}, f"{stem}_optim_states.pt")
        model = {
            "module": {**{name: torch.empty(0) for name in state()}, "a.running_mean": torch.ones(7, 7)},
            "buffer_names": ["a.running_mean"],
            "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in trained.items())],
            "frozen_param_shapes": {name: state()[name].shape for name in frozen},
            "frozen_param_fragments": {name: part(state()[name], rank) for name in frozen},
            "shared_params": {name: source for name, source in tied},
        }
        torch.save(model, f"{stem}_model_states.pt")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("frozen", [(), ("a.weight",)])
def test_partitions_of_zero_3_are_put_together(tmp_path, ranks, frozen):
    save_zero_3(tmp_path, ranks, frozen=frozen, tied=[("c.weight", "b.weight")])
    expected = {**state(), "a.running_mean": torch.ones(7, 7), "c.weight": state()["b.weight"]}
    same(open_checkpoint(tmp_path), expected)
    stored = read_stored(tmp_path / "global_step4").tensors
    assert stored.buffers == {"a.running_mean"}
    assert stored.identity("c.weight") == stored.identity("b.weight") != stored.identity("a.weight")


def test_zero_3_without_its_optimizer_files_says_what_is_missing(tmp_path):
    save_zero_3(tmp_path, 2)
    folder = tmp_path / "global_step4"
    (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"of 2 processes, but there are 1"):
        open_checkpoint(tmp_path)
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(ValueError, match=r"no \*_optim_states.*zero_to_fp32\.py FOLDER FILE"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("place", ["checkpoint", "global_step10", "."])
def test_zero_2_has_the_model_in_one_piece(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    (tmp_path / "latest").write_text(place)
    torch.save({"module": state(), "buffer_names": []}, folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {"zero_stage": 2}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    same(open_checkpoint(tmp_path), state())
    torch.save({"module": state(), "buffer_names": []}, folder / "mp_rank_01_model_states.pt")
    with pytest.raises(ValueError, match=r"tensor or pipeline parallelism.*ds_to_universal"):
        open_checkpoint(tmp_path)


def save_shards(folder, suffix, *, first=1):
    save = save_file if suffix == "safetensors" else torch.save
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for number, (name, tensor) in enumerate(state().items(), first):
        save({name: tensor}, folder / f"{stem}-{number:05d}-of-00003.{suffix}")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("first", [0, 1])
def test_shards_without_an_index(tmp_path, suffix, first):
    save_shards(tmp_path, suffix, first=first)
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    same(open_checkpoint(tmp_path), state())
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    (tmp_path / f"{stem}-00002-of-00003.{suffix}").unlink()
    with pytest.raises(FileNotFoundError, match=rf"all 3 shards.*1 are missing: {stem}-00002-of-00003\.{suffix}"):
        open_checkpoint(tmp_path)


def test_shards_in_two_formats_are_read_once(tmp_path):
    save_shards(tmp_path, "safetensors")
    save_shards(tmp_path, "bin")
    same(open_checkpoint(tmp_path), state())


def test_one_shard_of_several_is_not_all(tmp_path):
    save_file(state(), tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        open_checkpoint(tmp_path)


def cached(root, files, revision="f00d"):
    """A model in the cache of Hugging Face: files are links to blobs."""
    folder = root / "models--org--net"
    snapshot = folder / "snapshots" / revision
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("f00d")
    for name, write in files.items():
        blob = folder / "blobs" / f"{revision}{len(list((folder / 'blobs').iterdir()))}"
        write(blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return folder


def shard_files():
    names = {name: f"model-{i:05d}-of-00003.safetensors" for i, name in enumerate(state(), 1)}
    files = {file: lambda blob, n=name: save_file({n: state()[n]}, blob) for name, file in names.items()}
    index = json.dumps({"weight_map": names})
    return {**files, "model.safetensors.index.json": lambda blob: blob.write_text(index)}


def test_the_cache_of_hugging_face(tmp_path):
    folder = cached(tmp_path, shard_files())
    cached(tmp_path, {"model.safetensors": lambda blob: save_file(state(9), blob)}, revision="beef")
    for path in (folder, tmp_path, folder / "snapshots" / "f00d"):
        same(open_checkpoint(path), state())
    (folder / "refs" / "main").unlink()
    with pytest.raises(ValueError, match=r"has beef, f00d\. Give one of its folders in snapshots"):
        open_checkpoint(folder)


def test_shards_in_the_cache_without_an_index(tmp_path):
    files = shard_files()
    del files["model.safetensors.index.json"]
    same(open_checkpoint(cached(tmp_path, files)), state())


def test_a_distributed_folder_without_its_hidden_file_says_so(tmp_path):
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"without their \.metadata, a hidden file\. Copy it there too"):
        read_stored(tmp_path)


@pytest.mark.parametrize("indexed", [True, False])
def test_links_out_of_the_cache_are_refused(tmp_path, indexed):
    files = shard_files()
    if not indexed:
        del files["model.safetensors.index.json"]
    folder = cached(tmp_path / "hub", files)
    shard = folder / "snapshots" / "f00d" / "model-00002-of-00003.safetensors"
    (tmp_path / "secret").write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"to be in its folder, but .* is a link to .*secret"):
        open_checkpoint(folder)


def test_pipelines_are_read_in_parts(tmp_path):
    index = {"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"], "tokenizer": ["t", "T"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name, file in (("unet", "diffusion_pytorch_model.safetensors"), ("vae", "diffusion_pytorch_model.bin")):
        (tmp_path / name).mkdir()
        (save_file if "safetensors" in file else torch.save)(state(len(name)), tmp_path / name / file)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "other").mkdir()
    save_file(state(), tmp_path / "other" / "model.safetensors")
    expected = {f"unet.{n}": t for n, t in state(4).items()} | {f"vae.{n}": t for n, t in state(3).items()}
    same(open_checkpoint(tmp_path), expected)


def test_checkpoints_of_adapters(tmp_path):
    save_file(
        {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(4, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        torch.save({"x": torch.ones(9, 9)}, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    stored = read_stored(tmp_path).tensors
    assert set(stored) == {"m.lora_A.weight", "m.lora_B.weight"}
    assert stored.config == {"adapter": {"r": 2}}


def test_a_folder_of_folders_is_entered_where_one_holds_weights(tmp_path):
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        save_distributed({"model": state(len(name))}, tmp_path / name)
    same(open_checkpoint(tmp_path), state(len("pytorch_model_fsdp_0")))
    save_distributed({"model": state()}, tmp_path / "second")
    with pytest.raises(ValueError, match=r"2 folders with weights: pytorch_model_fsdp_0, second\. Give one"):
        open_checkpoint(tmp_path)


def test_shards_of_a_variant_are_read_where_the_others_are_not(tmp_path):
    """As diffusers calls those in half precision, with an index of yet another name."""
    stems = [f"diffusion_pytorch_model-0000{number}-of-00002" for number in (1, 2)]
    for variant, value in ((".fp16", 16.0), ("", 32.0)):
        for stem, name in zip(stems, ("a", "b"), strict=True):
            save_file({name: torch.full((3, 4), value)}, tmp_path / f"{stem}{variant}.safetensors")
        opened = open_checkpoint(tmp_path)
        assert {name: opened[name][0, 0].item() for name in opened} == {"a": value, "b": value}
    (tmp_path / f"{stems[0]}.safetensors").unlink()
    (tmp_path / f"{stems[1]}.safetensors").unlink()
    (tmp_path / f"{stems[1]}.fp16.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002-of-00002\.fp16\.safetensors"):
        open_checkpoint(tmp_path)


def test_slices_of_every_matrix_are_no_shards(tmp_path):
    for rank in range(2):
        torch.save(state(), tmp_path / f"consolidated.{rank:02d}.pth")
    for place in (tmp_path, tmp_path / "consolidated.01.pth"):
        with pytest.raises(ValueError, match=r"tensor parallelism.*convert_llama_weights_to_hf"):
            open_checkpoint(place)


def test_slices_of_megatron_are_no_checkpoints_and_stages_of_a_pipeline_are(tmp_path):
    tensor, pipeline = tmp_path / "tensor" / "iter_1", tmp_path / "pipeline" / "iter_1"
    sliced, stage = tensor / "mp_rank_01", pipeline / "mp_rank_00_001"
    for place in (tensor / "mp_rank_00", sliced, pipeline / "mp_rank_00_000", stage):
        place.mkdir(parents=True)
        torch.save(state(), place / "model_optim_rng.pt")
    for place in (sliced.parents[1], sliced.parent, sliced, sliced / "model_optim_rng.pt"):
        with pytest.raises(ValueError, match=r"2 slices of every matrix .*: mp_rank_00, mp_rank_01\..*convert\.py"):
            open_checkpoint(place)
    same(open_checkpoint(stage), state())


def test_slices_of_one_tensor_in_two_shards_are_no_checkpoint(tmp_path):
    for number in (1, 2):
        save_file({"a.weight": torch.ones(3, 4) * number}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"'a\.weight' is in two: slices of tensor parallelism"):
        open_checkpoint(tmp_path)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("blobs/0")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is a link to nothing"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a link to 'blobs/0', which does not exist"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_folders_further_down_are_named(tmp_path):
    (tmp_path / "version_3" / "checkpoints").mkdir(parents=True)
    torch.save(state(), tmp_path / "version_3" / "checkpoints" / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"there are some in version_3/checkpoints\. Give one"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [("https://a.b/c.pt", "an address. Download"), ("owner/some-model", "hf download owner/some-model")],
)
def test_what_is_elsewhere_has_to_be_downloaded(path, remedy):
    with pytest.raises(FileNotFoundError, match=remedy):
        open_checkpoint(path)
