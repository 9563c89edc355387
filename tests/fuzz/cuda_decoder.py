"""Feeds the CUDA decoder hostile chunks, to run under compute-sanitizer.

    compute-sanitizer python tests/fuzz/cuda_decoder.py [--chunks 400] [--seed 0]

Every tensor is an allocation of its own and of its exact size, so that the sanitizer sees a single
byte too many. Exit status 1 when the decoder and the NumPy reference disagree about a chunk.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import numpy as np
import torch
from codec_records import CORNERS, damage, signal_of, status_of
from ecgfast_kernels import codec
from ecgfast_kernels.codec import cuda as codec_cuda

SHAPES = ((12, 1000), (3, 250), (16, 500))


def main() -> int:
    """Decode good and damaged chunks of every kind; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=40, help="damaged chunks per kind and shape")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    wrong = total = 0
    for shape in SHAPES:
        for kind in CORNERS:
            (good,) = codec.encode(signal_of(kind, *shape)[None])
            chunks = [good, *(damage(good, rng) for _ in range(options.chunks))]
            wrong += check(chunks, shape, rng)
            total += len(chunks)
    print(f"{total} chunks, {wrong} with a status other than the reference's")
    return int(wrong > 0)


def check(chunks: list[bytes], shape: tuple[int, int], rng: np.random.Generator) -> int:
    """Decode chunks both ways; return how many got another status than the reference gives."""
    gap = int(rng.integers(0, 16))
    lengths = np.array([len(chunk) for chunk in chunks])
    data = b"".join(bytes(gap) + chunk for chunk in chunks)
    held = codec_cuda.ResidentChunks(
        bytes=torch.frombuffer(bytearray(data), dtype=torch.uint8).cuda(),
        offsets=torch.from_numpy(np.cumsum(lengths + gap) - lengths).cuda(),
        lengths=torch.from_numpy(lengths).cuda(),
        num_leads=shape[0],
        num_timesteps=shape[1],
    )
    records = torch.arange(len(chunks), device="cuda")
    status = [torch.zeros(len(chunks), dtype=torch.int32, device="cuda") for _ in range(2)]
    signal = torch.empty((len(chunks), *shape), dtype=torch.int16, device="cuda")
    codec_cuda.decode(held, records, out=signal, status=status[0])
    patches = torch.empty(
        (len(chunks), shape[0] * shape[1] // 250, 256), dtype=torch.float16, device="cuda"
    )
    moments = [torch.ones((len(chunks), shape[0]), device="cuda") for _ in range(2)]
    codec_cuda.decode_patches(held, records, *moments, out=patches, status=status[1])
    expected = [status_of(chunk, shape) for chunk in chunks]
    return sum(
        not same(code, *found)
        for code, *found in zip(expected, *(s.tolist() for s in status), strict=True)
    )


def same(code: int, *found: int) -> bool:
    """Codes up to 6 are a record's; of several bad columns any may answer."""
    return all(got == code if code < 7 else 7 <= got <= 9 for got in found)


if __name__ == "__main__":
    sys.exit(main())
