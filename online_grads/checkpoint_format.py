"""What a checkpoint directory holds: `manifest.json` and `arrays.npz`, readable without this library.

The manifest names every leaf of the saved tree, its shape, its dtype and the SHA-256 of its bytes
(row-major, little-endian); it ends with the SHA-256 of itself, taken as JSON with sorted keys and no spaces.
Leaf number i is the array `i` of the archive, an uncompressed NumPy file without pickle. Dtypes
that NumPy lacks are there as unsigned integers of their size, a typed key as its data.
"""

import hashlib
import json
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from online_grads.checkpoint_leaves import as_stored, form, is_weak
from online_grads.versions import versions

FORMAT, VERSION = "online-grads checkpoint", 1
MANIFEST, ARRAYS = "manifest.json", "arrays.npz"


class Unreadable(Exception):
    """A directory that is no intact checkpoint; it says why."""


class Manifest(NamedTuple):
    """What a checkpoint says about itself."""

    leaves: dict[str, dict]  # name -> shape, dtype, weak, sha256; in the order of the archive
    notes: dict


def check_folder(path: Path) -> None:
    """Refuse what cannot be a checkpoint, as it holds nothing.

    Raises:
        Unreadable: if there is no directory, or an empty one.
        OSError: if it cannot be read.
    """
    if not path.exists():
        raise Unreadable("does not exist")
    if path.is_file():
        raise Unreadable("is a file: a checkpoint is a directory")
    if not any(path.iterdir()):
        raise Unreadable("is empty")


def write(folder: Path, leaves: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write the two files of a checkpoint into a folder that exists.

    Raises:
        TypeError, ValueError: if a leaf cannot be saved, or the notes are not JSON. Nothing is written then.
        OSError: if a file cannot be written.
    """
    forms = {name: form(f"state{name}", leaf) for name, leaf in leaves.items()}
    raw = {name: as_stored(f"state{name}", leaf) for name, leaf in leaves.items()}
    try:
        notes = json.loads(json.dumps(dict(notes), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(f"notes must be JSON: {error}") from None
    content = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": versions(),
        "notes": notes,
        "leaves": [
            {
                "name": name,
                "shape": list(shape),
                "dtype": dtype,
                "weak": is_weak(leaves[name]),
                "sha256": _digest(raw[name]),
            }
            for name, (shape, dtype) in forms.items()
        ],
    }
    with zipfile.ZipFile(folder / ARRAYS, "x") as archive:
        for number, array in enumerate(raw.values()):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    content["sha256"] = _digest(_canonical(content))
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """What the checkpoint in a folder says about itself.

    Raises:
        Unreadable: if it is no checkpoint, one of a newer format, or its manifest is damaged.
        OSError: if the manifest cannot be read.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except ValueError as error:
        raise Unreadable(f"is damaged: {MANIFEST} is no JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Unreadable(f"is not a checkpoint of online-grads: its {MANIFEST} is of something else")
    if content.get("version") != VERSION:
        raise Unreadable(
            f"has format {content.get('version')!r} (written by {content.get('written_by')!r}); "
            f"this version of online-grads reads format {VERSION}"
        )
    checksum = content.pop("sha256", None)
    if checksum != _digest(_canonical(content)):
        raise Unreadable(f"is damaged: the checksum of {MANIFEST} is another")
    return Manifest({leaf.pop("name"): leaf for leaf in content["leaves"]}, content["notes"])


def read_arrays(
    folder: Path, manifest: Manifest, only: Container[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint as they are stored, by name, or some of them; every checksum is compared.

    Raises:
        Unreadable: if one is missing or not what was saved.
        OSError: if the archive cannot be read.
    """
    raw = {}
    with open(folder / ARRAYS, "rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:  # a damaged archive raises nearly anything
            raise Unreadable(f"is damaged or truncated: {ARRAYS} cannot be read ({error})") from error
        for number, (name, leaf) in enumerate(manifest.leaves.items()):
            if only is not None and name not in only:
                continue
            try:
                array = archive[str(number)]
            except Exception as error:
                raise Unreadable(f"is damaged: {name} cannot be read from {ARRAYS} ({error})") from error
            if _digest(array) != leaf["sha256"]:
                raise Unreadable(f"is damaged: the checksum of {name} is another")
            raw[name] = array
    return raw


def _digest(content: np.ndarray | bytes) -> str:
    return hashlib.sha256(content.data if isinstance(content, np.ndarray) else content).hexdigest()


def _canonical(content: dict) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
