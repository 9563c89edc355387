"""Pages of a report with some of their sections alone, and what its numbers are made from."""

import pyarrow as pa

from ecgfast.evaluate.figures import Pictures
from ecgfast.evaluate.flow import Flow
from ecgfast.evaluate.operating import Fixed, Recalibration
from ecgfast.evaluate.report import render
from ecgfast.evaluate.views import Table


def html_of(*, synthetic: bool = False, **views: object) -> str:
    """A page of the given sections; those that every report has are empty unless given."""
    nothing = Table(header=(), rows=())
    page = {
        "heading": "",
        "made_with": {"date": "", "commit": "", "versions": {"ecgfast": ""}},
        "disclosures": (),
        "key_finding": (),
        "flow": Flow(steps=(), branches=()),
        "cohort": nothing,
        **dict.fromkeys(
            ("detection", "comparison", "label_efficiency", "baselines", "operating", "calibration")
        ),
        **dict.fromkeys(("net_benefit", "groups", "several", "agreement")),
        "training": (),
        "reconstructions": (),
        "saliencies": (),
        "origin": {"table": nothing, "store": "", "identity": "", "codec": ""},
    }
    return render({**page, **views}, Pictures(synthetic=synthetic))


def fixed(youden: float | None) -> Fixed:
    """What a run without validation records fixed, but for a threshold."""
    nothing = Recalibration(num_cases=0, num_controls=0, reason="no labelled records")
    return Fixed(thresholds={"youden": youden}, recalibration=nothing)


def nobody(num_records: int) -> pa.Table:
    """Records of whom neither age nor sex nor site is known."""
    return pa.table({"record_id": [str(row) for row in range(num_records)]})
