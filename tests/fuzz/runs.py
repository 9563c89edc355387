"""Damages run folders in thousands of ways and loads them: an error of ours, or the same values.

    python tests/fuzz/runs.py PRETRAINED FINETUNED --mutants 2000 --flips 200 --seed 0

The pretraining run needs two checkpoints. Each mutant is a copy with one file damaged, or with an
index that holds code and fits every digest. A mutant fails when it loads other values than the run
had, raises anything but an `EcgfastError` of one line, takes longer than a minute, or unpickles,
runs or imports anything by name that a sound run does not.
"""

import argparse
import hashlib
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ecgfast import log
from ecgfast.errors import EcgfastError
from ecgfast.runs.loading import LoadedRun, load_model
from ecgfast.runs.register import read_register

LIMIT_S = 60  # of a load
LIMIT_MIB = 1024  # that all loads together may add to this process
COPIED = ("config.toml", "metrics.jsonl", "register.parquet", "result.json", "best.safetensors")
HARM = ("os.system", "subprocess.Popen", "os.exec", "pickle.find_class", "exec")
Damage = Callable[[bytes, random.Random], bytes]


class Watch(logging.Handler):
    """What a load said and did: warnings, and events that only code from a file would cause."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []
        self.harm: list[str] = []
        self.is_on = False
        sys.addaudithook(self._audit)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self.warnings.append(record.getMessage())

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.is_on and event in HARM:
            self.harm.append(f"{event} {arguments!r:.80}")


def values(run: Path) -> str:
    """Digest of everything that a loaded run says: weights, settings, facts, register, losses."""
    model, config, meta = load_model(run)
    register = read_register(run)
    loaded = LoadedRun(
        name="run", path=run, model=lambda: model, config=config, meta=meta, register=register
    )
    digest = hashlib.sha256(repr(config).encode())
    digest.update(repr(meta).encode())
    digest.update(repr(loaded.loss_curves()).encode())
    digest.update(repr(None if register is None else register.rows.to_pydict()).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def flipped(data: bytes, draw: random.Random) -> bytes:
    """One bit."""
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """A part at the end is gone."""
    return data[: draw.randrange(len(data))]


def longer(data: bytes, draw: random.Random) -> bytes:
    """Something comes behind."""
    return data + draw.randbytes(draw.randint(1, 5000))


def overwritten(data: bytes, draw: random.Random) -> bytes:
    """Some bytes in a row are others, or zeros."""
    start, count = draw.randrange(len(data)), draw.randint(1, 64)
    new = bytes(count) if draw.random() < 0.5 else draw.randbytes(count)
    return data[:start] + new + data[start + count :]


def moved(data: bytes, draw: random.Random) -> bytes:
    """A part lies elsewhere."""
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[:a] + data[b:] + data[a:b]


def deep(data: bytes, draw: random.Random) -> bytes:
    """Brackets without end."""
    del data
    return draw.choice([b"[", b'{"a":']) * 100_000


def other_value(data: bytes, draw: random.Random) -> bytes:
    """One value of a JSON file is of another type, larger, or gone; its old digest stays."""
    try:
        tree = json.loads(data)
    except ValueError:
        return flipped(data, draw)
    return json.dumps(_changed(tree, draw), indent=1).encode()


def forged(data: bytes, draw: random.Random) -> bytes:
    """As `other_value`, with a digest that fits."""
    tree = json.loads(other_value(data, draw))
    if isinstance(tree, dict):
        tree.pop("digest", None)
        tree["digest"] = hashlib.sha256(json.dumps(tree, indent=1).encode()).hexdigest()
    return json.dumps(tree, indent=1).encode()


def _changed(tree: object, draw: random.Random) -> object:
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        key = draw.choice(list(tree))
        if draw.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: _changed(tree[key], draw)}
    return draw.choice([None, True, -1, 10**9, 1e300, "", "x" * 99, [], {}, [1, "2"], "../../x"])


DAMAGES: tuple[Damage, ...] = (flipped, cut, longer, overwritten, moved, deep, other_value)


class _Planted:
    """Unpickles as a call."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self._call = call, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def harmful_index(index: bytes, mark: Path, draw: random.Random) -> bytes:
    """An index that would make a file, run forever, or take all memory when it is unpickled."""
    kind = draw.randrange(6)
    if kind == 0:  # calls a function and continues as before
        return pickle.dumps(_Planted(os.mkdir, str(mark)), 4)[:-1] + b"0" + index[2:]
    if kind == 1:
        return pickle.dumps(_Planted(eval, f"__import__('os').mkdir({str(mark)!r})"), 4)
    if kind == 2:  # the names of a sound index lead elsewhere
        return index.replace(b"\x8c\x05torch\x94\x8c\x04Size", b"\x8c\x05posix\x94\x8c\x05mkdir", 1)
    if kind == 3:  # a key whose hash takes 2^60 steps
        pairs = b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60))
        return b"\x80\x04)\x94" + pairs + b"}h\x3cNs."
    if kind == 4:  # a memo of 2^31 entries
        return b"\x80\x04Nr\xff\xff\xff\x7f."
    return flipped(index, draw)


def mutate(run: Path, mark: Path, draw: random.Random) -> tuple[str, bool]:
    """Damage a copy of a run; returns what was done, and whether its digests were made to fit."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    path = draw.choice(files)
    facts = [path for path in files if path.name in ("meta.json", "result.json")]
    indices = [path for path in files if path.name == ".metadata"]
    choice = draw.random()
    if choice < 0.1:
        path = draw.choice(facts)
        path.write_bytes(forged(path.read_bytes(), draw))
        return f"forged {path.name}", True
    if choice < 0.2 and indices:
        path = indices[-1]
        path.write_bytes(harmful_index(path.read_bytes(), mark, draw))
        meta = json.loads((path.parent / "meta.json").read_bytes())
        del meta["digest"]
        data = path.read_bytes()
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        meta["files"][".metadata"] = entry
        meta["digest"] = hashlib.sha256(json.dumps(meta, indent=1).encode()).hexdigest()
        (path.parent / "meta.json").write_text(json.dumps(meta, indent=1))
        return "harmful index", True
    if choice < 0.25:
        path.unlink()
        make = draw.choice([None, Path.mkdir, os.mkfifo])
        if make is not None:
            make(path)
        return f"{path.name} gone", False
    damage = draw.choice(DAMAGES)
    path.write_bytes(damage(path.read_bytes(), draw))
    return f"{damage.__name__} {path.name}", False


def flip_weights(run: Path, draw: random.Random) -> str:
    """Flip one bit of the weights, or of a tensor file of the newest checkpoint."""
    (path,) = [*run.glob("best.safetensors"), *sorted(run.glob("checkpoints/*/*.distcp"))[-1:]][:1]
    path.write_bytes(flipped(path.read_bytes(), draw))
    return f"bit of {path.name}"


def copy(run: Path, target: Path) -> None:
    """Copy what is read of a run."""
    target.mkdir()
    for name in COPIED:
        if (run / name).exists():
            shutil.copy(run / name, target)
    if not (run / "result.json").exists():
        shutil.copytree(run / "checkpoints", target / "checkpoints")


def judge(
    run: Path, sound: dict[str, str], watch: Watch, *, fits: bool, mark: Path
) -> tuple[str, str | None]:
    """Load a mutant; returns what came of it, and what is wrong with that."""
    watch.warnings, watch.harm, watch.is_on = [], [], True
    signal.alarm(LIMIT_S)
    problem = None
    try:
        found = values(run)
        came = sound.get(found, "other values")
        if came == "the checkpoint before" and not watch.warnings:
            problem = "an older checkpoint was taken without a word"
        elif came == "other values" and not fits:
            problem = "it loads other values"
    except EcgfastError as error:
        came = "an error of ours"
        if "\n" in str(error):
            problem = f"more than one line: {error!s:.80}"
    except BaseException as error:  # a fuzzer reports whatever comes
        came, problem = "another error", f"{type(error).__name__}: {error!s:.120}"
    finally:
        signal.alarm(0)
        watch.is_on = False
    if watch.harm or mark.exists():
        problem = f"code of the file ran: {watch.harm[:1]}"
    return came, problem


def fuzz(
    runs: list[Path], *, mutants: int, flips: int, seed: int
) -> tuple[Counter[str], list[str]]:
    """Load mutants of runs.

    Returns:
        how many loads ended in which way, and one line per mutant that failed.
    """
    watch, draw = Watch(), random.Random(seed)
    signal.signal(signal.SIGALRM, _too_long)
    log.logger.addHandler(watch)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        work, mark = Path(scratch) / "run", Path(scratch) / "mark"
        sound = [_sound(run, work) for run in runs]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(mutants + flips):
            which = number % len(runs)
            copy(runs[which], work)
            if number < mutants:
                what, fits = mutate(work, mark, draw)
            else:
                what, fits = flip_weights(work, draw), False
            came, problem = judge(work, sound[which], watch, fits=fits, mark=mark)
            if number >= mutants and came == "the same values":
                problem = "a flipped bit was not noticed"
            counts[f"{'mutants' if number < mutants else 'flips'}: {came}"] += 1
            if problem is not None:
                failures.append(f"{number} of {runs[which].name}, {what}: {problem}")
            shutil.rmtree(work)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if more > LIMIT_MIB:
            failures.append(f"memory grew by {more:.0f} MiB")
    log.logger.removeHandler(watch)
    return counts, failures


def _sound(run: Path, work: Path) -> dict[str, str]:
    """Digests of what a sound run says, and of what it says without its newest checkpoint."""
    copy(run, work)
    sound = {values(work): "the same values"}
    checkpoints = sorted((work / "checkpoints").glob("step-*"))
    if len(checkpoints) > 1:
        shutil.rmtree(checkpoints[-1])
        sound[values(work)] = "the checkpoint before"
    shutil.rmtree(work)
    return sound


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a load took more than {LIMIT_S} s")


def main() -> int:
    """Fuzz, print the counts; 1 where a mutant failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    for name, default in (("mutants", 2000), ("flips", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments: Any = parser.parse_args()
    log.logger.propagate = False
    counts, failures = fuzz(
        arguments.runs, mutants=arguments.mutants, flips=arguments.flips, seed=arguments.seed
    )
    for what, count in sorted(counts.items()):
        print(f"{count:6} {what}")
    for line in failures:
        print(f"FAILED {line}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
