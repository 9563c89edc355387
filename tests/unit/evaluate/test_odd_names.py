"""Sites and runs with odd names neither end nor falsify a report."""

import base64
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from report_pages import html_of

from ecgfast.evaluate import charts
from ecgfast.evaluate.cohort import cohort_table
from ecgfast.evaluate.discrimination import delong

NAMES = (r"$\frac{x$", "a\x00b\x1b[2J", "c\nd", "_hidden", "<script>", "100 $ and $", r"\$x\$")
IS_CASE = np.array([False, True] * 10)
SCORES = np.linspace(0, 1, 20)
AUROC = delong(IS_CASE, SCORES, np.arange(20))
FIGURES: dict[str, Callable[[str], Figure]] = {
    "curves": lambda name: charts.roc_curves({name: {name: (IS_CASE, SCORES)}})[0],
    "areas": lambda name: charts.auroc_by_site({name: {name: AUROC}})[0],
    "losses": lambda name: charts.losses({name: ([1, 2], [3.0, 2.0])}, y_label="loss"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FIGURES)
def test_figures_hold_any_name(kind: str, name: str) -> None:
    html = html_of(training=[{"name": f"Of {name}.", "losses": FIGURES[kind](name)}])
    (svg,) = re.findall(r"base64,([A-Za-z0-9+/=]+)", html)
    texts = ["".join(each.itertext()) for each in ET.fromstring(base64.b64decode(svg)).iter()]
    shown = {"a\x00b\x1b[2J": r"a\x00b\x1b[2J", "c\nd": r"c\nd"}.get(name, name)
    assert any(shown == text.strip() for text in texts)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)


def test_sites_called_as_sums_are_no_sums() -> None:
    sites = ["all", "all", "-", None, "x"]
    records = pa.table(
        {
            "site": pa.array(sites, pa.string()),
            "split": ["train"] * 5,
            "patient_id": list("abcde"),
            "flags": [""] * 5,
        }
    )
    rows = [(row.site, row.split, row.num_records) for row in cohort_table(records, None)]
    assert sorted(rows) == sorted(
        [
            ('"all"', "train", 2),
            ('"-"', "train", 1),
            ("-", "train", 1),
            ("x", "train", 1),
            ("all", "all", 5),
        ]
    )
