"""Rates of reading object storage, from nginx here: `python benchmarks/object_storage.py`.

Records per second of CPU time of this process, and of wall time: nginx runs on the other core.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ecgfast.bench.measuring import append_rows, device_slug, make_rows, render
from ecgfast.store.format import SHARD_RECORDS
from ecgfast.store.objects import Objects

RECORD_BYTES, SHARDS, TURNS, PORT = 25_000, 9, 5, 18_573
TOTAL = SHARDS * SHARD_RECORDS
CONFIG = """
daemon off; worker_processes 1; pid {0}/pid; events {{ worker_connections 512; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000;
  server {{ listen 127.0.0.1:{1}; root {0}/files; }} }}
"""


def rates(num_records: int, call: Callable[[], None]) -> dict[tuple[str, str], list[float]]:
    """Records per second of CPU time, and of wall time, of each turn."""
    core, whole = ("throughput of a core", "records/s"), ("throughput", "records/s")
    found: dict[tuple[str, str], list[float]] = {core: [], whole: []}
    for _ in range(TURNS):
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        found[core].append(num_records / (time.process_time() - cpu))
        found[whole].append(num_records / (time.perf_counter() - wall))
    return found


def measure(folder: Path, objects: Objects, pool: ThreadPoolExecutor) -> None:
    """Read ranges, shards, and copies of shards, which are hashed and synced; add the rows."""
    random = np.random.default_rng(0)
    numbers = [np.sort(random.choice(TOTAL, 256, replace=False)) for _ in range(32)]

    def ranges(shard: int, rows: np.ndarray) -> None:
        starts = (rows * RECORD_BYTES).tolist()
        objects.read_ranges(str(shard), starts, [start + RECORD_BYTES for start in starts])

    def batches() -> None:
        for shards, rows in (np.divmod(batch, SHARD_RECORDS) for batch in numbers):
            each = [(shard, rows[shards == shard]) for shard in np.unique(shards).tolist()]
            list(pool.map(lambda pair: ranges(*pair), each))

    def shards(read: Callable[[str], object]) -> None:
        list(pool.map(read, map(str, range(SHARDS))))

    for provider, count, call in (
        ("ranges, 256 at a time", 32 * 256, batches),
        ("shards", TOTAL, lambda: shards(lambda name: sum(map(len, objects.parts(name))))),
        ("copied shards", TOTAL, lambda: shards(lambda name: objects.copy(name, folder / name))),
    ):
        what = {"case": "object_storage", "provider": provider, "shape": "25 KB records"}
        rows = list(make_rows(rates(count, call), **what))
        append_rows(Path(f"benchmarks/results/{device_slug()}/objects.jsonl"), rows)
        print(*map(render, rows), sep="\n")


with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(8) as threads:
    place = Path(name)
    place.chmod(0o755)
    (place / "files").mkdir()
    for number in range(SHARDS):
        content = np.random.default_rng(number).bytes(RECORD_BYTES * SHARD_RECORDS)
        (place / f"files/{number}").write_bytes(content)
    (place / "conf").write_text(CONFIG.format(place, PORT))
    server = subprocess.Popen(["nginx", "-c", place / "conf"])
    time.sleep(1)
    measure(place, Objects(f"http://127.0.0.1:{PORT}"), threads)
    server.terminate()
    server.wait()
