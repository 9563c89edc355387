"""What a convert did, in counts that its store has."""

from dataclasses import dataclass, field
from pathlib import Path

from ecgfast import log
from ecgfast.store.csv_files import passed_over_examples
from ecgfast.store.format import address_of, passed_over_beside
from ecgfast.store.generations import generation_of
from ecgfast.store.info import kinds_in_words
from ecgfast.store.manifest import read_manifest
from ecgfast.vocabulary import OnBad


@dataclass(frozen=True, kw_only=True)
class ConvertSummary:
    """What a convert did; inputs = converted + quarantined, and every other file has its kind.

    Attributes:
        store: the finished store: its folder, or a path made of its address.
        num_inputs: files (or rows of batch files) found.
        num_converted: inputs with at least one record in the store.
        num_quarantined: inputs without; quarantine.csv says why for each.
        num_records: records in the store, more than inputs with `--window all`.
        generation: of the store; each convert that appends makes another one.
        num_duplicates: records that are another record's ECG once more; None for a transcoded
            store that was made before they were counted.
        failed: True when `--on-bad fail` was asked for and an input was quarantined (exit code 1).
        num_files: files below the sources; None where the store does not know.
        passed_over: of them, those that nothing read, by kind; the others belong to inputs.
        examples: kind -> some of their readable paths, where the table beside the store has them.
    """

    store: Path
    num_inputs: int
    num_converted: int
    num_quarantined: int
    num_records: int
    num_duplicates: int | None
    failed: bool
    generation: int = 1
    num_files: int | None = None
    passed_over: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """The counts in a line or two, without a path of a source: it ends in logs of clusters."""
        found = self.num_duplicates
        duplicates = "" if found is None else f" ({found} of them duplicates)"
        text = (
            f"{log.counted(self.num_inputs, 'input')} = {self.num_converted:,} converted + "
            f"{self.num_quarantined:,} quarantined; {log.counted(self.num_records, 'record')}"
            f"{duplicates} in {address_of(self.store) or self.store}"
        )
        if self.generation > 1:
            text = f"{text}, generation {self.generation}"
        if not self.passed_over:
            return text
        number = log.counted(sum(self.passed_over.values()), "file")
        here = Path(self.store.name) if address_of(self.store) else self.store
        shown = f"; {passed_over_beside(here)} names some" if self.examples else ""
        return f"{text}\n{number} passed over: {kinds_in_words(self.passed_over)}{shown}"


def summary_of(out: Path, on_bad: OnBad, url: str = "") -> ConvertSummary:
    """The summary of a finished store, which may have an address; `on_bad` as in `convert`."""
    manifest = read_manifest(out)
    counts = manifest["counts"]
    return ConvertSummary(
        store=Path(url or out),
        num_inputs=counts["inputs"],
        num_converted=counts["converted"],
        num_quarantined=counts["quarantined"],
        num_records=counts["records"],
        num_duplicates=counts.get("duplicates"),
        failed=on_bad == "fail" and counts["quarantined"] > 0,
        generation=generation_of(manifest),
        num_files=manifest.get("source_files"),
        passed_over=manifest.get("passed_over", {}),
        examples=passed_over_examples(out),
    )
