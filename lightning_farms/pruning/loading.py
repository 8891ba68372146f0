"""Loading of a language model and its tokenizer from a folder or a GGUF file, never from the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from lightning_farms.common.devices import chosen_device
from lightning_farms.common.extras import import_extra
from lightning_farms.pruning._model_folder import ModelFolder, find_model, has_tokenizer
from lightning_farms.pruning.prunable import decoder_blocks
from lightning_farms.pruning.text import vocabulary_size

_ALWAYS_DECODERS = ("gpt_neox", "gpt_neox_japanese")  # kinds whose models ignore `is_decoder` in their configurations
_Config: TypeAlias = Any  # transformers has no types: PreTrainedConfig
_Model: TypeAlias = Any  # PreTrainedModel
_Tokenizer: TypeAlias = Any  # PreTrainedTokenizerBase


class CausalLM(NamedTuple):
    """A language model and its tokenizer, as :func:`load_causal_lm` returns them."""

    model: Any
    """transformers.PreTrainedModel, in evaluation mode."""
    tokenizer: Any
    """transformers.PreTrainedTokenizerBase, or None if the folder has none and it was not required."""


def load_causal_lm(
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    offload_folder: str | os.PathLike[str] | None = None,
    tokenizer_required: bool = True,
) -> CausalLM:
    """Load a decoder and its tokenizer from disk; all but complete, unquantised decoders are refused with a reason.

    Only files in the folder are read: nothing is downloaded, and no code in the folder is run. A GGUF file is unpacked
    into floating point, after which the model is like any other: `save_pretrained` writes it.

    Args:
        folder: a Hugging Face model's folder (config.json, safetensors or .bin), a .gguf file, or a folder with one.
        device: where the model goes; `"auto"` is CUDA if available.
        dtype: type of the weights, such as `"bfloat16"`; by default as they are stored (float32 for GGUF).
        offload_folder: leave the decoder blocks on disk and bring each to the device when it is needed (by accelerate),
            for models larger than memory. Blocks stay in the model's own files if these are safetensors, and are
            otherwise written to this folder.
        tokenizer_required: whether a folder without a tokenizer is refused.

    Returns:
        The model, in evaluation mode, and its tokenizer; when saved, their configurations are like the folder's.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if there is no config.json, weights are missing, damaged or quantised, there is no tokenizer or its
            ids go beyond the model's embedding, the folder has code of its own, or the model is not a decoder.
        ImportError: if transformers (for GGUF also gguf, to offload accelerate) is not installed: extra `llm`.

    Example:
        >>> model, tokenizer = load_causal_lm("SmolLM2-135M")  # doctest: +SKIP
    """
    found, device, dtype = find_model(folder), chosen_device(device), _checked_dtype(dtype)
    transformers = import_extra("transformers", extra="llm", what="Loading a language model")
    if found.gguf is not None:
        import_extra("gguf", extra="llm", what="Reading a GGUF file")
        import_extra("accelerate", extra="llm", what="Reading a GGUF file")
    with _quiet(transformers):
        config = _decoder_config(transformers, found)
        tokenizer = _tokenizer(transformers, found) if tokenizer_required or has_tokenizer(found) else None
        options = _offload_options(transformers, found, config, device, offload_folder)
        model = _model(transformers, found, config, dtype, options)
    if tokenizer is not None:
        _check_fits(tokenizer, model, found)
    if offload_folder is None:
        model = model.to(device)
    return CausalLM(_like_any_other(model), tokenizer)


def _checked_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if chosen == "auto" or (isinstance(chosen, torch.dtype) and chosen.is_floating_point):
        return chosen
    raise ValueError(f"Expected argument `dtype` to be 'auto' or a floating-point dtype of torch, but got {dtype!r}.")


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Hide the progress bars of transformers temporarily."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _source(found: ModelFolder) -> dict[str, Any]:
    options = {"pretrained_model_name_or_path": str(found.path), "local_files_only": True, "trust_remote_code": False}
    return options if found.gguf is None else {**options, "gguf_file": found.gguf}


def _decoder_config(transformers: ModuleType, found: ModelFolder) -> _Config:
    """The configuration, checked to be of a class in transformers that predicts the next token."""
    kind = found.config.get("model_type")
    if found.gguf is None and kind not in transformers.CONFIG_MAPPING:
        own = " and asks for code in its folder to be run, which is refused" if "auto_map" in found.config else ""
        raise ValueError(
            f"Expected argument `folder` to hold a model of a kind that transformers {transformers.__version__} has, "
            f"but {str(found.path)!r} is a {kind!r}{own}."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(**_source(found))
    except Exception as error:  # transformers raises errors of any kind, above all for GGUF files
        raise _damaged(found, "configuration", error) from error
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    named = set(config.architectures or [])
    decoders = {cls.__name__ for cls in known.values()} if named else set()
    no_decoder = type(config) not in known or (named and not named & decoders)
    if no_decoder or getattr(config, "is_encoder_decoder", False) or _sees_both_ways(config):
        what = ", ".join(sorted(named)) or config.model_type
        raise ValueError(
            f"Expected argument `folder` to hold a decoder that predicts the next token, but {str(found.path)!r} is "
            f"none ({what})."
        )
    return config


def _sees_both_ways(config: _Config) -> bool:
    """Whether the model is an encoder such as BERT that is not configured as a decoder."""
    return getattr(config, "is_decoder", None) is False and config.model_type not in _ALWAYS_DECODERS


def _tokenizer(transformers: ModuleType, found: ModelFolder) -> _Tokenizer:
    if not has_tokenizer(found):
        raise ValueError(
            f"Expected argument `folder` to hold the model's tokenizer (tokenizer.json or tokenizer.model), but there "
            f"is none in {str(found.path)!r}. Copy it there from the model's release."
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**_source(found))
    except Exception as error:
        raise _damaged(found, "tokenizer", error) from error
    for how_it_was_read in ("local_files_only", "is_local"):  # transformers would save these with the configuration
        getattr(tokenizer, "init_kwargs", {}).pop(how_it_was_read, None)
    return tokenizer


def _offload_options(
    transformers: ModuleType,
    found: ModelFolder,
    config: _Config,
    device: torch.device,
    folder: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    if folder is None:
        return {}
    if found.gguf is not None:
        raise ValueError(
            "Expected argument `offload_folder` to be left out with a GGUF file, which is unpacked in memory, but got "
            f"{os.fspath(folder)!r}. Save the model with save_pretrained on a larger machine, and load that."
        )
    import_extra("accelerate", extra="llm", what="Leaving blocks on disk")
    with torch.device("meta"):
        shell = transformers.AutoModelForCausalLM.from_config(config)
    return {"device_map": _blocks_on_disk(shell, device), "offload_folder": os.fspath(folder)}


def _blocks_on_disk(model: nn.Module, device: torch.device) -> dict[str, str]:
    """Device map for accelerate that leaves the decoder blocks on disk and puts everything else on the device."""
    return _placed(model, "", set(decoder_blocks(model)), str(device))


def _placed(module: nn.Module, name: str, blocks: set[str], device: str) -> dict[str, str]:
    """Places of a module's parts if there is a block among them, otherwise of the whole module."""
    if name in blocks:
        return {name: "disk"}
    prefix = f"{name}." if name else ""
    if not any(block.startswith(prefix) for block in blocks):
        return {name: device}
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    places = {f"{prefix}{key}": device for key, _ in own}
    for key, child in module.named_children():
        places |= _placed(child, f"{prefix}{key}", blocks, device)
    return places


def _model(
    transformers: ModuleType, found: ModelFolder, config: _Config, dtype: str | torch.dtype, options: dict[str, Any]
) -> _Model:
    given = {} if found.gguf is not None else {"config": config}
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            **_source(found), **given, dtype=dtype, output_loading_info=True, **options
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _damaged(found, "weights", error) from error
    absent = sorted(loading["missing_keys"])
    if absent:
        raise ValueError(
            f"Expected argument `folder` to hold all weights of {type(model).__name__}, but {len(absent)} are not in "
            f"{str(found.path)!r}: {', '.join(absent[:4])}{', ...' if len(absent) > 4 else ''}."
        )
    return model


def _damaged(found: ModelFolder, part: str, error: Exception) -> ValueError:
    path = found.path if found.gguf is None else found.path / found.gguf
    reason = " ".join(str(error).split())[:300]
    return ValueError(
        f"Expected argument `folder` to hold a model that transformers can read, but the {part} in {str(path)!r} "
        f"cannot be read ({type(error).__name__}: {reason})."
    )


def _check_fits(tokenizer: _Tokenizer, model: _Model, found: ModelFolder) -> None:
    """Check that token ids fit the model, except for added tokens (images, padding), which text does not contain."""
    rows = vocabulary_size(model)
    added = set(tokenizer.added_tokens_encoder)
    last = max((number for token, number in tokenizer.get_vocab().items() if token not in added), default=-1)
    if not 0 <= last < rows:
        raise ValueError(
            f"Expected argument `folder` to hold a tokenizer that fits the model, with ids in [0, {rows}), but the "
            f"ids of that in {str(found.path)!r} go up to {last}."
        )


def _like_any_other(model: _Model) -> _Model:
    """Set evaluation mode, and remove the marks of GGUF, because of which save_pretrained would refuse the model."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
        model.is_quantized = False
        for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
            if hasattr(owner, name):
                delattr(owner, name)
    return model.eval()
