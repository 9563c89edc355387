"""Folders in object storage: listed, read whole or by ranges, written; errors in one line each.

A `Path` made of an address loses a slash: s3:/bucket/store. `address_of` gives it back, so that one
type serves folders of this machine and of others.
"""

import datetime
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ecgfast.errors import BackendUnavailableError, ConfigError, CorruptStoreError, EcgfastError
from ecgfast.store.durable import DurableFile, explained
from ecgfast.store.format import MANIFEST, SCHEMES, address_of

_PART_BYTES = 1 << 20
_GAP_BYTES = 4096  # ranges this near to each other are one request; the default reads a megabyte
_CREDENTIALS = (
    "give credentials as the provider's own tools take them, such as AWS_ACCESS_KEY_ID, "
    "GOOGLE_APPLICATION_CREDENTIALS or AZURE_STORAGE_ACCOUNT_KEY"
)


class MissingObjectError(CorruptStoreError):
    """There is nothing at an address."""


class BrokenConnectionError(EcgfastError):
    """A connection that may be better the next time."""


class ObjectFacts(NamedTuple):
    """What a listing says of an object: its name in its folder, bytes, and time of its writing."""

    name: str
    num_bytes: int
    mtime_ns: int


def absolute(path: str | Path) -> str:
    """A path that is the same from every folder, links resolved; or its address."""
    # Not Path.resolve, which raises RuntimeError for a link to itself.
    return address_of(path) or os.path.realpath(path)


def at(path: str | Path) -> "tuple[Objects, str] | None":
    """The folder behind the address of an object, and its name there; None for a local file."""
    url = address_of(path)
    if url is None:
        return None
    folder, _, name = url.rpartition("/")
    return objects_at(folder), name


def exists(path: Path) -> bool:
    """Whether there is a file, a folder or an object."""
    return path.exists() if address_of(path) is None else size_of(path) is not None


def size_of(path: Path) -> int | None:
    """Bytes of a file or object, None where there is none."""
    if there := at(path):
        return there[0].size(there[1])
    return path.stat().st_size if path.is_file() else None


def names_below(folder: Path) -> list[str]:
    """The names of all files or objects below a folder, with those of their folders, sorted."""
    if url := address_of(folder):
        return sorted(objects_at(url).names())
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in files)


@lru_cache
def objects_at(url: str) -> "Objects":
    """The folder behind an address; connections are kept for the process."""
    return Objects(url)


@lru_cache
def _client(root: str) -> Any:  # noqa: ANN401 - of the provider's class
    """Connections to a bucket."""
    import obstore

    return obstore.store.from_url(
        root,
        client_options={"allow_http": True} if root.startswith("http://") else None,
        retry_config={"max_retries": 5, "retry_timeout": datetime.timedelta(seconds=60)},
    )


def _facts(found: Mapping[str, Any], name: str) -> ObjectFacts:
    mtime_ns = int(found["last_modified"].timestamp() * 1e6) * 1000
    return ObjectFacts(name, found["size"], mtime_ns)


class Objects:
    """A folder behind an address; safe to share between threads.

    Args:
        url: s3://, gs://, az://, https://, http:// or file://.

    Raises:
        ConfigError: no such kind of address.
        BackendUnavailableError: obstore is not installed.
        MissingObjectError: from every method, nothing is there.
        BrokenConnectionError: from every method, another try may help.
        EcgfastError: from every method, no permission.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(SCHEMES):
            raise ConfigError(
                f"the address of a store begins with {', '.join(SCHEMES)}, got {url!r}"
            )
        try:
            import obstore
        except ImportError as error:
            raise BackendUnavailableError(
                f"{url} needs the package obstore; pip install 'ecgfast[cloud]'"
            ) from error
        self.url = url.rstrip("/")
        self._obstore = obstore
        scheme, _, rest = self.url.partition("://")
        bucket, _, self._prefix = rest.partition("/")
        try:
            self._store = _client(f"{scheme}://{bucket or '/'}")
        except (obstore.exceptions.BaseError, ValueError) as error:
            line = str(error).partition("\n")[0]
            raise ConfigError(f"{url} cannot be opened: {line}; check the address") from error

    def read(self, name: str) -> bytes:
        """A small object as a whole."""
        with self._explained(name):
            return bytes(self._obstore.get(self._store, self._key(name)).bytes())

    def parts(self, name: str) -> Iterator[memoryview]:
        """Yield an object in parts of about a megabyte."""
        with self._explained(name):
            for part in self._obstore.get(self._store, self._key(name)).stream(_PART_BYTES):
                yield memoryview(part)

    def read_end(self, name: str, num_bytes: int) -> tuple[int, bytes]:
        """Size of an object, and its last bytes."""
        with self._explained(name):
            key = self._key(name)
            found = self._obstore.get(self._store, key, options={"range": {"suffix": num_bytes}})
            return int(found.meta["size"]), bytes(found.bytes())

    def read_ranges(
        self, name: str, starts: Sequence[int], ends: Sequence[int]
    ) -> list[memoryview]:
        """Parts of an object; near ones are one request."""
        with self._explained(name):
            key = self._key(name)
            found = self._obstore.get_ranges(
                self._store, key, starts=starts, ends=ends, coalesce=_GAP_BYTES
            )
            return [memoryview(part) for part in found]

    def size(self, name: str) -> int | None:
        """Bytes of an object, None where there is none."""
        try:
            with self._explained(name):
                return int(self._obstore.head(self._store, self._key(name))["size"])
        except MissingObjectError:
            return None

    def sha256(self, name: str) -> str:
        """Digest of an object, in hex."""
        digest = hashlib.sha256()
        for part in self.parts(name):
            digest.update(part)
        return digest.hexdigest()

    def copy(self, name: str, path: Path) -> Mapping[str, int | str]:
        """Write an object to a file, whole or not at all; returns its {"bytes", "sha256"}."""
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        file = DurableFile(path)
        try:
            for part in self.parts(name):
                file.write([part])
        except BaseException:
            file.discard()
            raise
        return file.finish()

    def put(self, name: str, content: bytes | Path, *, create: bool = False) -> bool:
        """Write an object.

        Args:
            name: in this folder.
            content: its bytes, or the file that holds them.
            create: only where there is none.
        Returns:
            whether it was written.
        """
        mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
        try:
            with self._explained(name):
                self._obstore.put(self._store, self._key(name), content, mode=mode)
        except FileExistsError:
            return False
        return True

    def folder(self, inner: str = "") -> tuple[list[str], list[ObjectFacts]]:
        """Names of the folders in a folder, and its objects."""
        with self._explained(inner):
            found = self._obstore.list_with_delimiter(self._store, self._key(inner) or None)
        objects = [_facts(each, each["path"].rpartition("/")[2]) for each in found["objects"]]
        return [each.rpartition("/")[2] for each in found["common_prefixes"]], objects

    def names(self) -> Iterator[str]:
        """Yield the names of all objects below, with those of their folders."""
        return (each.name for each in self.below())

    def below(self) -> Iterator[ObjectFacts]:
        """Yield what a listing says of all objects below; their names with those of folders."""
        start = len(self._prefix) + 1 if self._prefix else 0
        with self._explained(""):
            for some in self._obstore.list(self._store, self._prefix or None):
                yield from (_facts(each, each["path"][start:]) for each in some)

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects."""
        with self._explained(""):
            self._obstore.delete(self._store, [self._key(name) for name in names])

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn errors of the connection into one line."""
        errors, where = self._obstore.exceptions, f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except (errors.NotFoundError, FileNotFoundError) as error:
            raise MissingObjectError(
                f"there is no {where}; a store's address is that of the folder with {MANIFEST}"
            ) from error
        except errors.AlreadyExistsError as error:
            raise FileExistsError(where) from error
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            raise EcgfastError(f"{where} was refused; {_CREDENTIALS}") from error
        except (errors.BaseError, ValueError) as error:
            line = str(error).partition("\n")[0]
            raise BrokenConnectionError(
                f"{where} cannot be reached: {line}; run the same command again, it resumes where "
                "it stopped"
            ) from error
