"""Measure time and memory of pruning a 7B-shaped model: python -m tests.benchmarks.bench_pruning [--offload].

A model of LLaMA-7B's shapes (4096 wide, 11008 inside, 32 heads, 32000 tokens), with random bf16 weights and few
blocks, is written to a temporary folder and pruned by a process of its own, which reports the peak of its resident
memory and the seconds of a block. What 32 blocks and the paper's 128 sequences of 2048 tokens would take is calculated
from that and shown term by term: weights of the other blocks (none with --offload: they stay on disk), hidden states.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lightning_farms.pruning import PrunedFolder, UniformAllocation, allocate, load_causal_lm, prune

WIDTH, INSIDE, VOCABULARY, BLOCKS = 4096, 11008, 32000, 32
GB = 1e9


def write_model(folder: Path, blocks: int) -> None:
    """Write a model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INSIDE,
        num_attention_heads=32,
        num_hidden_layers=blocks,
        vocab_size=VOCABULARY,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)


def peak() -> float:
    """Peak of resident memory so far, in GB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GB


def measure(folder: Path, args: argparse.Namespace) -> tuple[float, float, float, list[float]]:
    """Peak after the imports and of all, in GB; seconds in all, and of each block."""
    torch.set_num_threads(args.threads)
    import transformers  # noqa: F401  (counts as imported)

    imports = peak()
    offload = folder / "offload" if args.offload else None
    model = load_causal_lm(folder / "model", offload_folder=offload, tokenizer_required=False).model
    ids = torch.randint(0, VOCABULARY, (args.sequences, args.length), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    store = PrunedFolder(folder / "out", model, vars(args))
    report = prune(
        model,
        allocate(model, 0.7, UniformAllocation()),
        args.method,
        ids if args.method != "magnitude" else None,
        store=store,
        hidden_folder=folder if args.hidden_on_disk else None,
    )
    store.finish(report)
    return imports, peak(), time.perf_counter() - start, [block.seconds for block in report.blocks]


def main() -> None:
    """Measure, calculate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=["magnitude", "wanda", "sparsegpt"], default="wanda")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--hidden_on_disk", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, processes.Pool(1, maxtasksperchild=1) as pool:
        folder = Path(name)
        pool.apply(write_model, (folder / "model", args.blocks))
        imports, most, seconds, blocks = pool.apply(measure, (folder, args))
    block = 2 * (4 * WIDTH**2 + 3 * WIDTH * INSIDE) / GB
    more_weights = 0.0 if args.offload else (BLOCKS - args.blocks) * block
    more_hidden = 0.0 if args.hidden_on_disk else 2 * WIDTH * (128 * 2048 - args.sequences * args.length) / GB
    print(f"{args.method}, {args.blocks} blocks, {args.sequences} x {args.length} tokens, {args.threads} threads")
    print(f"  peak memory {most:.2f} GB (of it imports {imports:.2f}); {seconds:.1f} s in all")
    print(f"  a block: median {statistics.median(blocks):.1f} s; its weights {block:.3f} GB")
    print(
        f"  for 32 blocks and 128 x 2048 tokens: {most:.2f} + {more_weights:.2f} (weights of the other blocks) + "
        f"{more_hidden:.2f} (hidden states) = {most + more_weights + more_hidden:.2f} GB"
    )


if __name__ == "__main__":
    main()
