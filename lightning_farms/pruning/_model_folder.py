"""Inspection of a language model's folder, which is refused with a reason before any file is read as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDICES = tuple(f"{name}.index.json" for name in _SINGLE)
_LFS_POINTER = b"version https://git-lfs"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tiktoken.model")


class ModelFolder(NamedTuple):
    """The folder of a model, the name of its GGUF file if it is one, and its configuration (empty for GGUF)."""

    path: Path
    gguf: str | None
    config: dict[str, Any]


def find_model(folder: str | os.PathLike[str]) -> ModelFolder:
    """Find out from its files alone what model a path holds."""
    path = Path(folder)
    if path.suffix == ".gguf" and path.is_file():
        return ModelFolder(path.parent, path.name, {})
    if not path.is_dir():
        raise FileNotFoundError(
            f"Expected argument `folder` to be an existing folder of a Hugging Face model, or a .gguf file, but got "
            f"{os.fspath(folder)!r}. Nothing is downloaded: fetch a model by its name with `hf download NAME "
            "--local-dir FOLDER`."
        )
    if not (path / "config.json").is_file():
        return ModelFolder(path, _only_gguf(path), {})
    config = _read_config(path)
    _check_not_quantised(path, config)
    _check_weights(path)
    return ModelFolder(path, None, config)


def has_tokenizer(folder: ModelFolder) -> bool:
    """Whether the folder has a file from which a tokenizer can be made."""
    return folder.gguf is not None or any((folder.path / name).is_file() for name in _TOKENIZER_FILES)


def _only_gguf(path: Path) -> str:
    files = sorted(file.name for file in path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(
            f"Expected argument `folder` to name one of the {len(files)} .gguf files in {str(path)!r} "
            f"({', '.join(files[:4])}{', ...' if len(files) > 4 else ''}), but got the folder."
        )
    if (path / "adapter_config.json").is_file():
        raise ValueError(_adapter(path))
    deeper = sorted(str(file.parent) for depth in ("*", "*/*") for file in path.glob(f"{depth}/config.json"))
    listed = f"{', '.join(deeper[:4])}{', ...' if deeper[4:] else ''}"
    instead = f" Give the folder that has one: {listed}." if deeper else ""
    raise ValueError(
        f"Expected argument `folder` to hold a model's config.json, or a .gguf file, but there is none in "
        f"{str(path)!r}.{instead}"
    )


def _adapter(path: Path) -> str:
    return (
        f"Expected argument `folder` to hold a whole model, but {str(path)!r} holds an adapter (adapter_config.json). "
        "Merge it into its model first: peft's merge_and_unload(), then save_pretrained."
    )


def _read_config(path: Path) -> dict[str, Any]:
    if (path / "adapter_config.json").is_file():
        raise ValueError(_adapter(path))
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:  # invalid JSON or invalid characters
        raise ValueError(
            f"Expected argument `folder` to hold a readable config.json, but that of {str(path)!r} is damaged "
            f"({error})."
        ) from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(
            f"Expected argument `folder` to hold a Hugging Face model's config.json, but that of {str(path)!r} has no "
            "model_type."
        )
    return config


def _check_not_quantised(path: Path, config: dict[str, Any]) -> None:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    found = [part["quantization_config"] for part in parts if part.get("quantization_config")]
    if found:
        method = found[0].get("quant_method", "unknown") if isinstance(found[0], dict) else found[0]
        raise ValueError(
            f"Expected argument `folder` to hold a model whose weights are numbers of floating point, but those in "
            f"{str(path)!r} are quantised (quantization_config: {method}). Take the model from before quantisation."
        )


def _check_weights(path: Path) -> None:
    """Raise an error if a file of the weights is missing or truncated."""
    index = next((path / name for name in _INDICES if (path / name).is_file()), None)
    single = next((path / name for name in _SINGLE if (path / name).is_file()), None)
    if single is not None and (index is None or single.suffix == ".safetensors"):
        names = [single.name]
    elif index is not None:
        names = _shards(index)
    else:
        raise ValueError(
            f"Expected argument `folder` to hold a model's weights ({', '.join(_SINGLE)}, or the index of their "
            f"shards), but there are none in {str(path)!r}."
        )
    absent = [name for name in names if not (path / name).is_file()]
    if absent:
        raise ValueError(
            f"Expected argument `folder` to hold all {len(names)} files of weights, but {len(absent)} are not in "
            f"{str(path)!r}: {', '.join(absent[:4])}{', ...' if len(absent) > 4 else ''}."
        )
    for name in names:
        _check_file(path / name)


def _shards(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected argument `folder` to hold a readable index of its weights, but {str(index)!r} is damaged."
        ) from error


def _check_file(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(
                f"Expected argument `folder` to hold a model's weights, but {str(file)!r} only points to them. Fetch "
                "them with `git lfs pull`."
            )
    if file.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):  # reads the header, and compares it with the file's size
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"Expected argument `folder` to hold whole files of weights, but {str(file)!r} is damaged ({error})."
        ) from error
