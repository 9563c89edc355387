"""The report in headless Chromium: nothing clipped on a phone, a screen and paper, no error."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report_pages import fixed, html_of

from ecgfast.evaluate import findings, planning
from ecgfast.evaluate.baselines import Fitted
from ecgfast.evaluate.flow import Branch, Flow, Step
from ecgfast.evaluate.results import summarise
from ecgfast.runs.ecg_paper import printed

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
RUNS = ("ViT, pretrained", "ViT, random init", "ImageNet-MAE, fine-tuned", "CNN")
# How far what is drawn reaches over the page, its boxes that scroll aside, as a title that
# --dump-dom shows; errors of the page as well.
PROBE = """<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(
    each => !each.closest(".wide") && each.getBoundingClientRect().right > innerWidth + 1);
  const broken = [...document.images].filter(each => !each.naturalWidth);
  document.body.insertAdjacentHTML("beforeend", `<p id="probe">width ${innerWidth} ` +
    `page ${document.documentElement.scrollWidth} wide ${wide.length} broken ${broken.length}</p>`);
});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of section that could be too wide."""
    rng, number = np.random.default_rng(0), 120
    y, rows = np.arange(number) % 4 == 0, np.arange(number)
    cohorts = {f"site {site}, external": dict.fromkeys(RUNS, rows) for site in range(2)}
    plan = planning.TestPlan(
        target="ejection_fraction<40", is_case=y, patients=rows, cohorts=cohorts, notes=(),
        training=dict.fromkeys(RUNS, rows), validation=dict.fromkeys(RUNS, rows),
    )  # fmt: skip
    scores = {name: np.clip(0.3 * y + 0.7 * rng.random(number), 0, 1) for name in RUNS}
    records = pa.table({"age": rng.uniform(20, 90, number), "device": ["a device " * 4] * number})
    simple = Fitted(probability=rng.random(number), how="fitted on 120 training records")
    results = summarise(
        plan, scores, dict.fromkeys(RUNS, fixed(0.5)), records, dict.fromkeys(RUNS, simple)
    )
    mv_CT = rng.normal(0, 0.2, (12, 5000))
    ecg = printed(mv_CT, title="SYNTHETIC   record 0123456789abcdef", weight_CT=mv_CT.clip(-1, 1))
    html = html_of(
        synthetic=True,
        heading="data: a_store_of_a_long_name_without_any_place_to_break_it, 400 ECGs of 6 sites",
        key_finding=findings.key_finding(results),
        flow=Flow(
            steps=[Step(name="recordings", number=10**9, left_out=["5 refused: " + "why " * 30])],
            branches=[Branch(names=RUNS, lines=["trained on: 2" * 9]) for _ in range(4)],
        ),
        detection=findings.detection(results),
        comparison=findings.comparison(results),
        baselines=findings.baselines(results),
        operating=findings.operating(results),
        calibration=findings.calibration(results),
        net_benefit=findings.net_benefit(results),
        groups=findings.groups(results),
        saliencies=[
            {"name": "CNN", "cohort": "site 1", "threshold": 0.5, "largest": 0.2,
             "figures": [{"kind": "case", "figure": ecg}]}
        ],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_text(html.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    return path


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_clipped_on_a_screen(page: Path, width: int) -> None:
    done = chromium(page, f"--window-size={width},2000", "--dump-dom")
    found = re.search(r'<p id="probe">width (\d+) page (\d+) wide (\d+) broken (\d+)', done.stdout)
    assert found is not None
    inner, whole, wide, broken = map(int, found.groups())
    # Chromium has a smallest window; whatever it took, nothing is wider
    assert inner <= max(width, 500)
    assert (whole <= inner, wide, broken) == (True, 0, 0)
    assert "CONSOLE" not in done.stderr


def test_the_probe_finds_what_is_clipped(tmp_path: Path) -> None:
    path = tmp_path / "wide.html"
    path.write_text(f'<body><div style="width:3000px">x</div><img src="data:,">{PROBE}</body>')
    done = chromium(path, "--window-size=1280,800", "--dump-dom")
    found = re.search(r"wide (\d+) broken (\d+)", done.stdout)
    assert found is not None
    assert [int(number) > 0 for number in found.groups()] == [True, True]


def test_paper_holds_the_whole_width(page: Path, tmp_path: Path) -> None:
    """Printed, a page is as wide as A4 across without its margins; all tables and pictures fit."""
    printed_page = tmp_path / "print.html"
    text = page.read_text(encoding="utf-8")
    # the rules of print on a screen as wide as the paper: what does not fit is cut in a PDF
    text = text.replace("@media print{", "@media all{").replace(
        'closest(".wide")', 'closest(".none")'
    )
    text = text.replace("<body>", '<body style="width:285mm">').replace("innerWidth + 1", "1078")
    printed_page.write_text(text, encoding="utf-8")
    done = chromium(printed_page, "--window-size=1280,2000", "--dump-dom")
    found = re.search(r"wide (\d+) broken (\d+)", done.stdout)
    assert found is not None
    assert found.groups() == ("0", "0")
    pdf = tmp_path / "report.pdf"
    chromium(page, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") >= 5
