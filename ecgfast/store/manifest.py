"""The manifest: what a finished store holds, with a digest of every file and of itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ecgfast.errors import CorruptStoreError, FormatError
from ecgfast.store.durable import write_durably
from ecgfast.store.format import FORMAT, FORMAT_VERSION, MANIFEST, SIGNALS

Manifest = dict[str, Any]


def write_manifest(store: Path, content: Manifest) -> Manifest:
    """Seal a store: add identity and digest, write the manifest atomically.

    Args:
        store: the folder, every other file written and synced.
        content: all entries except "format", "version", "identity" and "digest"; "files" maps each
            relative path to {"bytes", "sha256"}.
    """
    sealed = {"format": FORMAT, "version": FORMAT_VERSION, **content}
    sealed["identity"] = _identity(sealed)
    sealed["digest"] = _digest(sealed)
    write_durably(store / MANIFEST, [_text(sealed)])
    return sealed


def read_manifest(store: Path) -> Manifest:
    """Read and check the manifest of a finished store.

    Raises:
        FormatError: no store, or one of another version.
        CorruptStoreError: the store is unfinished or the manifest is damaged.
    """
    path = store / MANIFEST
    if not path.exists():
        if (store / SIGNALS).exists():
            raise CorruptStoreError(
                f"{store} is an unfinished store: it has no {MANIFEST}; run the convert command "
                "that began it again, it goes on where it stopped"
            )
        raise FormatError(
            f"{store} is not a store: it has no {MANIFEST}; make one with ecgfast convert"
        )
    damaged = f"{path} is damaged: its digest is wrong; restore it from a copy or convert again"
    try:
        manifest: Manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(damaged) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorruptStoreError(damaged)
    # The raw text is compared, so that no byte of the file is outside the check.
    if manifest.get("digest") != _digest(manifest) or _text(manifest) != path.read_bytes():
        raise CorruptStoreError(damaged)
    if manifest["version"] != FORMAT_VERSION:
        raise FormatError(
            f"{store} has format version {manifest['version']}, this ecgfast reads "
            f"{FORMAT_VERSION}; update ecgfast or convert again"
        )
    return manifest


def _text(manifest: Manifest) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


def _digest(manifest: Manifest) -> str:
    body = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(_text(body)).hexdigest()


def _identity(manifest: Manifest) -> str:
    """Digest of the signals alone: joining labels does not change what a model was trained on."""
    signals = {name: entry for name, entry in manifest["files"].items() if name.startswith(SIGNALS)}
    kept = {key: manifest[key] for key in ("version", "codec", "num_records", "preprocessing")}
    return hashlib.sha256(_text(kept | {"files": signals})).hexdigest()
