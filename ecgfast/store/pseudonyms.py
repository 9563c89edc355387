"""Keyed pseudonyms: stable under one key, and they say nothing without it."""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ecgfast.errors import ConfigError
from ecgfast.store.durable import explained, write_durably

KEY_BYTES = 32


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 of ids under one key, cut to 128 bits.

    Attributes:
        key: 32 random bytes.
        keep: give readable ids back unchanged (`--keep-identifiers`).
    """

    key: bytes
    keep: bool = False

    def of(self, kind: str, readable: str) -> str:
        """The pseudonym of an id.

        Args:
            kind: "record" or "patient"; the same text gives unrelated pseudonyms in two kinds.
            readable: the id as the source has it.
        """
        return readable if self.keep else self.digest(kind, readable).hex()[:32]

    def digest(self, kind: str, text: str) -> bytes:
        """The whole HMAC-SHA256 of a text in one domain, whether ids are kept or not."""
        return hmac.digest(self.key, f"{kind}\0{text}".encode(), hashlib.sha256)

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without giving them away."""
        return self.digest("fingerprint", "").hex()[:16]


def read_key(path: Path) -> bytes:
    """Read a pseudonym key.

    Raises:
        ConfigError: the file is missing or holds no key.
    """
    try:
        text = path.read_text().strip()
        key = bytes.fromhex(text)
    except FileNotFoundError as error:
        raise ConfigError(
            f"pseudonym key {path}: no such file; give the key of this store with --key-file"
        ) from error
    except ValueError as error:
        raise ConfigError(f"pseudonym key {path}: expected {2 * KEY_BYTES} hex digits") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"pseudonym key {path}: got {len(key)} bytes, expected {KEY_BYTES}")
    return key


def read_or_create_key(path: Path) -> bytes:
    """Read the key, or make one that only this user may read (mode 0600)."""
    if not path.exists():
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, [secrets.token_hex(KEY_BYTES).encode() + b"\n"], mode=0o600)
        os.chmod(path, 0o600)
    return read_key(path)
