"""What tables of labels call their columns and records, and what a store calls them."""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.columns import KEYS
from ecgfast.store.patients import Pseudonyms

_VENDOR_SUFFIX = re.compile(r"\.[A-Za-z]\w{1,7}$")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What tables call the columns and ids that they are joined on.

    Attributes:
        id_column: holds the record ids; "patient_id" joins by patient where there are both.
        renamed: name in a table -> name here, such as LVEF -> ejection_fraction.
        id_prefix: what record ids of a table begin with, and those of the store do not.
    """

    id_column: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    id_prefix: str = ""

    @property
    def ids(self) -> list[str]:
        """Names of columns that can identify a line."""
        more = [self.id_column] if self.id_column else []
        return [*KEYS, *more, *(old for old, new in self.renamed.items() if new in KEYS)]

    def check(self, names: Sequence[str], where: str) -> None:
        """Refuse names that no table has.

        Args:
            names: columns of all tables.
            where: the tables, for the message.
        Raises:
            ConfigError: names the first of them.
        """
        asked = {"--id-column": [self.id_column] if self.id_column else []}
        for option, wanted in {**asked, "--rename": [*self.renamed]}.items():
            for name in wanted:
                if name not in {each.strip() for each in names}:
                    raise ConfigError(
                        f"{option}: {name!r} is not in {where}; it has {', '.join(names)}"
                    )


def named(table: pa.Table, naming: Naming, path: Path) -> pa.Table:
    """The columns that have names, without the blanks around them, as they are called here."""
    names = [name.strip() for name in table.column_names]
    wanted = naming.id_column
    if wanted in names:
        if wanted != "record_id" and "record_id" in names:
            log.info(f"labels {path}: record_id is not used, --id-column names {wanted}")
            names[names.index("record_id")] = ""
        if wanted != "patient_id":
            names = ["record_id" if name == wanted else name for name in names]
    names = [naming.renamed.get(name, name) for name in names]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigError(f"labels {path}: column {twice[0]!r} occurs twice; rename one")
    # A row number without a name is what pandas writes first.
    return table.rename_columns(names).select([name for name in names if name])


def stored_id(name: str, known: Container[str], pseudonyms: Pseudonyms) -> str:
    """Return the id under which a store has a recording.

    Args:
        name: the stored id itself, or the readable one; of a vendor's file with its suffix, which
            the readable id has only where another file has its stem.
        known: ids of the store.
        pseudonyms: of the store.
    """
    if name in known:
        return name
    whole = pseudonyms.of("record", name)
    return whole if whole in known else pseudonyms.of("record", _VENDOR_SUFFIX.sub("", name))
