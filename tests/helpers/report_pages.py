"""Pages of a report with some of their sections alone."""

from ecgfast.evaluate.report import render
from ecgfast.evaluate.views import Table


def html_of(*, synthetic: bool = False, **views: object) -> str:
    """A page of the given sections; those that every report has are empty unless given."""
    nothing = Table(header=(), rows=())
    page = {
        "heading": "",
        "disclosures": (),
        "detection": None,
        "comparison": None,
        "cohort": nothing,
        "training": (),
        "reconstructions": (),
        "operating": None,
        "origin": {"table": nothing, "store": "", "identity": "", "codec": ""},
    }
    return render({**page, **views}, synthetic=synthetic)
