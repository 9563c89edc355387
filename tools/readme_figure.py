"""Draw docs/reconstruction.png from a pretraining run: `python tools/readme_figure.py RUN STORE`.

The record with the middle error among those that pretraining never read, as in the report.
"""

import io
import sys
from pathlib import Path

from PIL import Image

from ecgfast.evaluate.reconstruct import sample_of
from ecgfast.runs.ecg_paper import draw
from ecgfast.runs.loading import load_run
from ecgfast.store.reader import open_store

OUT = Path(__file__).parents[1] / "docs" / "reconstruction.png"
NUM_COLOURS = 64  # a quarter of the bytes of full colour, and no difference to see


def main() -> None:
    """Draw leads II and V5 and write them with few colours."""
    store = open_store(sys.argv[2])
    run = load_run(Path(sys.argv[1]), store)
    middle = sample_of(run, store).middle
    buffer = io.BytesIO()
    draw(store, middle, ("II", "V5")).savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    picture.save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size} bytes, error {middle.loss:.3f}")


if __name__ == "__main__":
    main()
