"""Recognition of folders in known formats that are not read here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

AS_STATE_DICT = "Load it with the library that wrote it, and save {name: torch.from_numpy(array)} with torch.save"
"""Remedy for arrays of other programs."""

MADE_FROM = "Analyse the model that it was made from"
"""Remedy for programs compiled for devices."""


class OtherFolder(NamedTuple):
    """A format that is recognised by a file in its folders, or a pattern for it."""

    name: str
    remedy: str
    holds: str


_FOLDERS = (
    OtherFolder("a TensorFlow SavedModel", f"Read it by tf.saved_model.load. {AS_STATE_DICT}", "saved_model.pb"),
    OtherFolder("a TensorFlow checkpoint", f"Read it by tf.train.load_checkpoint. {AS_STATE_DICT}", "*.index"),
    OtherFolder("an Orbax checkpoint (JAX)", f"Read it by orbax's PyTreeCheckpointer. {AS_STATE_DICT}", "_METADATA"),
    OtherFolder("an Orbax checkpoint (JAX)", f"Read it by orbax's PyTreeCheckpointer. {AS_STATE_DICT}", "*.ocdbt"),
    OtherFolder("an OpenVINO model", MADE_FROM, "*.xml"),
    OtherFolder("a Core ML model", MADE_FROM, "*.mlmodel"),
    OtherFolder("a Core ML model", MADE_FROM, "Data/com.apple.CoreML"),
    OtherFolder("a Flax checkpoint", f"Read it by flax.serialization.msgpack_restore. {AS_STATE_DICT}", "*.msgpack"),
)


def other_folder(folder: Path) -> OtherFolder | None:
    """The known format of a folder whose weights cannot be read here; None if it is not recognised."""
    return next((known for known in _FOLDERS if any(folder.glob(known.holds))), None)
