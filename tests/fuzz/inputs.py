"""Fuzz the readers of files: `python tests/fuzz/inputs.py --cases 20000 --seed 1`.

Each case damages one good input (WFDB headers and signals, segments, arrays with their sidecar,
XML and binary formats of vendors, a CSV of labels) and takes it through the code of a convert up to
the table's rows. It must end in records or in one of our errors, in ten seconds, and without asking
for more memory than `--memory-gib`. `--cases 2000 --kind each` runs as many of each kind in turn.
`--fail-calls` makes instead each call of a list fail in turn, on good inputs: want of memory must
refuse the file, and an error of the share must end the convert. Exit status 1 when a case does
anything else; `--only N` runs that case alone, with its traceback.
"""

import argparse
import builtins
import errno
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import numpy as np
import wfdb  # noqa: F401 (here, and not below the limit of memory, as are the next two)
from scipy.signal import resample_poly  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from good_inputs import KINDS, csv, muse_xml

from ecgfast.convert.inputs import num_slots
from ecgfast.convert.plan import ConvertOptions, PlannedInput
from ecgfast.convert.work import EncodedRecord, Refusal, encode_inputs
from ecgfast.errors import EcgfastError, Reason
from ecgfast.ingest.inventory import discover
from ecgfast.labels.table import check_labels
from ecgfast.store.patients import Pseudonyms
from ecgfast.store.table import PendingRows

Kind = Callable[[Path], None]
LIMIT_S = 10  # of processor time; of the clock, twelve times as much
REASONS = set(get_args(Reason))
OPTIONS = ConvertOptions(window="all", short="pad", columns=("note", "qrs_ms", "diagnosis"))
TOKENS = [
    *(b"0", b"-1", b"1", b"nan", b"NaN", b"inf", b"-Infinity", b"1e999", b"1e-999", b"1e39"),
    *(b"9" * 20, b"9" * 400, b"9" * 5000, b"-" + b"9" * 20, b"99999999", b"2147483648", b"0.1"),
    *(b"null", b"true", b"{}", b"[]", b"[[[1]]]", b'"x"', b"[" * 3000, b'{"a":' * 3000, b'""'),
    *(b"\xff\xfe", b"\x00", b"\xed\xa0\x80", "\u202e\U0001f600é".encode()),
    *(b"\\ud800", b"\n", b"\r"),
    *(b"212", b"61", b"80", b"508", b"24", b"32", b"8", b"16x9", b"16:99", b"16+99999999999", b"~"),
    *(b"../x", b"/dev/zero", b"a::b", b"http://x", b"mmHg", b"/mV", b"(5)", b"V1", b"-aVR", b"#"),
    *(b"|O", b">i2", b"<f8", b"<c16", b"<U9999999", b"True", b"(12,", b"()", b"(0, 12, 5000)"),
]


class TooSlowError(BaseException):
    """No `except Exception` takes it."""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file with one to four changes, most of them in its first bytes, where the meaning is."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = _place(data, rng)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 3:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            data[at:at] = data[at : at + rng.randint(1, 80)] * rng.randint(1, 30)
        else:  # a number or word, whole
            start = end = at
            while start > 0 and chr(data[start - 1]).isalnum():
                start -= 1
            while end < len(data) and chr(data[end]).isalnum():
                end += 1
            data[start:end] = rng.choice(TOKENS)
    return bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    """Where to change a file: near its begin, near markup, or anywhere."""
    where = rng.random()
    anywhere = rng.randint(0, max(len(data) - 1, 0))
    if where < 0.2:
        return anywhere
    tag = data.find(b"<", anywhere)
    if where < 0.6 and tag >= 0:
        return min(tag + rng.randint(0, 60), len(data) - 1)
    return rng.randint(0, max(min(len(data), 600) - 1, 0))


def revalued(document: bytes, rng: random.Random) -> bytes:
    """A well-formed document with one to three other texts or attributes."""
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(list(re.finditer(rb'(?<=>)[^<>]+(?=<)|(?<=")[^"<>]*(?=")', document)))
        token = re.sub(rb'[^ -~]|[<>&"]', b"", rng.choice(TOKENS))
        document = document[: value.start()] + token + document[value.end() :]
    return document


def repacked(path: Path, rng: random.Random) -> None:
    """Damage one member of an archive, and pack it again with the right checksum."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    members[name] = damaged(members[name], rng)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, content in members.items():
            archive.writestr(each, content)


def read(folder: Path) -> str:
    """Take every file of a folder through the code of a convert; returns what it came to."""
    if (folder / "labels.csv").exists():
        check_labels(folder / "labels.csv", None)
        return "table"
    outcomes = encoded(planned(folder))
    records = [each for each in outcomes if isinstance(each, EncodedRecord)]
    rows = PendingRows()
    rows.add([each.row for each in records])
    rows.pack({})
    check(outcomes)
    reasons = {each.row[2] for each in outcomes if isinstance(each, Refusal)}
    return "; ".join(sorted(reasons)) or "record"


def planned(folder: Path) -> list[PlannedInput]:
    """The inputs of a folder, as a plan has them."""
    inputs: list[PlannedInput] = []
    first = 0
    for position, item in enumerate(discover([folder])):
        slots = range(first, first + num_slots(item, OPTIONS))
        inputs.append(PlannedInput(item, position, slots))
        first = slots.stop
    return inputs


def encoded(inputs: list[PlannedInput]) -> list[EncodedRecord | Refusal]:
    """What a worker makes of inputs."""
    slots = range(inputs[-1].slots.stop)
    blocks = encode_inputs(inputs, slots, OPTIONS, Pseudonyms(bytes(32)))
    return [each for block in blocks for each in block]


def num_inputs_of(outcomes: list[EncodedRecord | Refusal]) -> int:
    """Inputs that have an outcome, by their readable ids."""
    return len({each.source[3] for each in outcomes})


def check(outcomes: list[EncodedRecord | Refusal]) -> None:
    """See that every input has an outcome, and every record statistics that verify takes."""
    assert outcomes
    for each in outcomes:
        if isinstance(each, Refusal):
            assert each.row[2] in REASONS
            assert "MemoryError" not in each.source[-1], "wanted more memory than allowed"
        else:
            scale, _, _, std = each.leads
            assert np.isfinite(each.leads).all()
            assert (scale != 0).all()
            assert (std >= 0).all()


def case(number: int, seed: int, kinds: Sequence[Kind] = KINDS) -> str:
    """Run one case; returns what it came to, raises what should not come out."""
    rng = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng.choice(kinds)(folder)
        path = rng.choice(sorted(folder.iterdir()))
        if path.suffix == ".npz" and rng.random() < 0.5:
            repacked(path, rng)
        else:
            change = revalued if path.suffix == ".xml" and rng.random() < 0.6 else damaged
            path.write_bytes(change(path.read_bytes(), rng))
        try:
            return read(folder)
        except EcgfastError as error:
            return type(error).__name__


# Where a call fails: of the share, and of the memory.
CALLS: tuple[tuple[Any, str], ...] = (
    *((os, "open"), (os, "read"), (os, "fstat"), (os, "stat"), (builtins, "open"), (json, "loads")),
    *((np, "frombuffer"), (np, "ascontiguousarray"), (np, "array"), (np, "abs"), (np, "stack")),
    *((np, "rint"), (np, "isfinite"), (np, "where"), (np, "empty_like"), (np, "clip")),
)


@contextmanager
def failing(place: Any, name: str, at: int, error: Exception) -> Iterator[Counter[str]]:
    """Let call number `at` of a function raise; yields whether it came to it."""
    original = getattr(place, name)
    calls: Counter[str] = Counter()

    def call(*args: Any, **options: Any) -> Any:
        calls["made"] += 1
        if calls["made"] == at:
            calls["failed"] = 1
            raise error
        return original(*args, **options)

    setattr(place, name, call)
    try:
        yield calls
    finally:
        setattr(place, name, original)


def fail_calls() -> Iterator[tuple[str, str]]:
    """Yield the name of every failing call, and what is wrong with how it came out, if anything."""
    for kind in dict.fromkeys(KINDS):
        is_other_xml = kind.__name__.endswith("_xml") and kind is not muse_xml  # opened alike
        if kind is csv or is_other_xml:
            continue
        for place, name in CALLS:
            errors: list[Exception] = [MemoryError("injected")]
            if place is os:
                errors.append(OSError(errno.EIO, "injected"))
            for error in errors:
                yield from fail_each(kind, place, name, error)


def fail_each(
    kind: Callable[[Path], None], place: Any, name: str, error: Exception
) -> Iterator[tuple[str, str]]:
    """Let the first call fail, then the second ... until a convert makes no more of them."""
    at = 0
    while True:
        at += 1
        with tempfile.TemporaryDirectory() as folder:
            kind(Path(folder))
            inputs = planned(Path(folder))
            wrong = ""
            with failing(place, name, at, error) as calls:
                try:
                    outcomes = encoded(inputs)
                    if isinstance(error, OSError) and calls["failed"]:
                        wrong = "an error of the share was taken for one of the file"
                    elif num_inputs_of(outcomes) != len(inputs):
                        wrong = f"{num_inputs_of(outcomes)} of {len(inputs)} inputs came out"
                except OSError as raised:
                    wrong = "" if isinstance(error, OSError) else repr(raised)
                except Exception as raised:  # that is what is looked for
                    wrong = repr(raised)
        if not calls["failed"]:
            return
        yield f"{kind.__name__}: {place.__name__}.{name} call {at} {error!r}", wrong


def _too_slow(*_: int | FrameType | None) -> None:
    raise TooSlowError(f"over {LIMIT_S} s")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    kinds = {kind.__name__: kind for kind in KINDS}
    parser.add_argument("--kind", choices=["each", *kinds], help="of the input, else any")
    parser.add_argument("--only", type=int)
    parser.add_argument("--memory-gib", type=float, default=1.0, help="beyond what imports take")
    parser.add_argument("--fail-calls", action="store_true")
    options = parser.parse_args()
    if options.fail_calls:
        results = list(fail_calls())
        failures = [(name, wrong) for name, wrong in results if wrong]
        for name, wrong in failures:
            print(f"{name}: {wrong}")
        print(f"{len(results)} calls failed in turn, {len(failures)} came out wrong")
        return 1 if failures else 0
    if options.only is not None:
        print(case(options.only, options.seed, [kinds[options.kind]] if options.kind else KINDS))
        return 0
    case(-1, options.seed)  # whatever is imported late
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + int(options.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, _too_slow)
    signal.signal(signal.SIGALRM, _too_slow)
    if options.kind is None:
        return 1 if run_cases(options.cases, options.seed, KINDS, "all kinds") else 0
    names = kinds if options.kind == "each" else [options.kind]
    wrong = [run_cases(options.cases, options.seed, [kinds[name]], name) for name in names]
    return 1 if any(wrong) else 0


def run_cases(cases: int, seed: int, kinds: Sequence[Kind], name: str) -> int:
    """Run cases and print what they came to; returns how many came out wrong."""
    found: Counter[str] = Counter()
    wrong = 0
    for number in range(cases):
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        signal.alarm(12 * LIMIT_S)
        try:
            found[case(number, seed, kinds)] += 1
        except (Exception, TooSlowError) as error:  # that is what is looked for
            wrong += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            print(f"case {number} of seed {seed}, {name}: {error!r:.300} at {place}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
    for words, count in found.most_common():
        print(f"{count:7,} {words}")
    print(f"{name}: {cases:,} cases of seed {seed}, {wrong} came out wrong", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
