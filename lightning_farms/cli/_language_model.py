"""Options and JSON output that the subcommands for language models share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_farms.cli._parser import OptionParser
from lightning_farms.cli._target import check_file
from lightning_farms.common.atomic import write_text
from lightning_farms.common.texts import json_text
from lightning_farms.pruning.loading import CausalLM, load_causal_lm

USER_MISTAKES = (ValueError, TypeError, OSError, ImportError)


@dataclass(frozen=True)
class ModelOptions:
    """The options that the subcommands for language models share."""

    model: str
    device: str
    dtype: str
    offload_folder: str | None
    batch_size: int
    json: str | None

    def load(self, texts: Iterable[str] = ()) -> CausalLM:
        """Load the model and its tokenizer, if the result can be written; `texts` are files that are read too."""
        if self.json is not None:
            check_file(Path(self.json), "--json", map(Path, texts))
        return load_causal_lm(self.model, device=self.device, dtype=self.dtype, offload_folder=self.offload_folder)


def add_model_options(parser: OptionParser) -> None:
    """Add the options for the model, its placement and the result file to a parser."""
    parser.add_argument(
        "model", metavar="DIR", type=str, help="folder of a Hugging Face model with its tokenizer, or a .gguf file"
    )
    parser.add_argument(
        "--device",
        type=str,
        default="auto",
        help="device to compute on, such as cuda:1; auto: CUDA if there is any",
    )
    parser.add_argument(
        "--dtype",
        type=str,
        default="auto",
        help="type of the weights in memory, such as bfloat16; auto: as they are stored",
    )
    parser.add_argument(
        "--offload_folder",
        type=str,
        default=None,
        metavar="DIR",
        help="folder for the model's blocks, which stay on disk but for one at a time (safetensors stay in DIR)",
    )
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="sequences that are computed at once")
    parser.add_argument(
        "--json", type=str, default=None, metavar="OUT", help="JSON file to write the result to as well"
    )


def write_json(result: Mapping[str, object], target: str) -> None:
    """Write a result to a file, completely or not at all; values that are not finite become null."""
    write_text(Path(target), json_text(result))
