"""Signal quality from the command line to the columns: limits, strict, sites, selections."""

import csv
from pathlib import Path

import numpy as np
import pytest
from recordings import ecg_like, write_wfdb

from ecgfast.cli import main
from ecgfast.labels.selection import selected
from ecgfast.store.quality import default_limits
from ecgfast.store.reader import open_store


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four good records of two hospitals, one noisy, and one of twice the gain."""
    folder = tmp_path_factory.mktemp("quality")
    signals = ecg_like(26, seed=0, largest=500)
    noise = np.random.default_rng(0).normal(0, 9, 5000)  # 45 microvolt
    signals[24, 9] += np.rint(noise).astype(np.int16)
    for number, signal in enumerate(signals):
        write_wfdb(folder / f"in/r{number:02d}", signal * (2 if number == 25 else 1))
    with (folder / "sites.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["record_id", "patient_id", "site"])
        lines.writerows([f"r{n:02d}", f"p{n}", "A"] for n in range(26))
    return folder


def _quality(store: Path) -> list[str]:
    found: list[str] = open_store(store).records["quality"].to_pylist()
    return found


def test_limits_of_a_user_and_strict(source: Path, tmp_path: Path) -> None:
    convert = ["convert", str(source / "in"), "--workers", "1", "--out"]
    assert main([*convert, str(tmp_path / "a")]) == 0
    assert _quality(tmp_path / "a")[24] == "noise"
    records = open_store(tmp_path / "a").records
    good = selected(records, 'quality=""')
    assert good.sum() == sum(not flags for flags in _quality(tmp_path / "a"))
    assert not good[24]
    assert not selected(records, "noise_uv<40")[24]

    limits = tmp_path / "limits.toml"
    limits.write_text("noise_uv = 60\nsite_factor = 1.5\n")
    options = ["--quality-limits", str(limits)]
    assert main([*convert, str(tmp_path / "b"), *options]) == 0
    store = open_store(tmp_path / "b")
    assert store.manifest["quality_limits"] == default_limits() | {
        "noise_uv": 60,
        "site_factor": 1.5,
    }
    found = _quality(tmp_path / "b")
    assert (found[24], found[25]) == ("", "amplitude_site")
    assert np.array_equal(store.read(np.arange(26)), open_store(tmp_path / "a").read(np.arange(26)))

    assert main([*convert, str(tmp_path / "c"), "--quality", "strict"]) == 0
    lines = (tmp_path / "c/quarantine.csv").read_text().splitlines()[1:]
    assert [line.partition(",,")[0].rsplit(",", 1)[1] for line in lines] == [
        "signal check: noise; --quality flag takes it"
    ] * 2  # twice the gain makes twice the noise

    limits.write_text("noise = 60\n")
    assert main([*convert, str(tmp_path / "d"), *options]) == 2
    assert not (tmp_path / "d").exists()


def test_a_plan_and_a_copy_keep_the_limits(source: Path, tmp_path: Path) -> None:
    limits, out = tmp_path / "limits.toml", str(tmp_path / "a")
    limits.write_text("noise_uv = 60\n")
    plan = ["convert", str(source / "in"), "--out", out, "--stage", "plan"]
    assert main([*plan, "--quality-limits", str(limits)]) == 0
    limits.unlink()  # the units of another machine do not see it
    assert main(["convert", "--out", out, "--stage", "units", "--workers", "1"]) == 0
    assert main(["convert", "--out", out, "--stage", "seal"]) == 0
    assert _quality(tmp_path / "a")[24] == ""
    assert main(["convert", out, "--out", str(tmp_path / "b"), "--codec", "none"]) == 0
    assert open_store(tmp_path / "b").manifest["quality_limits"]["noise_uv"] == 60
    assert _quality(tmp_path / "b") == _quality(tmp_path / "a")


def test_a_site_that_label_gives_decides_again(source: Path, tmp_path: Path) -> None:
    """Half as many records a site as a distribution needs: nothing stands out any more."""
    out = tmp_path / "a"
    limits = tmp_path / "limits.toml"
    limits.write_text("site_factor = 1.5\n")
    convert = ["convert", str(source / "in"), "--out", str(out), "--workers", "1"]
    assert main([*convert, "--quality-limits", str(limits)]) == 0
    assert "amplitude_site" in _quality(out)[25]
    table = tmp_path / "sites.csv"
    rows = "".join(f"r{n:02d},p{n},{'A' if n % 2 else 'B'}\n" for n in range(26))
    table.write_text(f"record_id,patient_id,site\n{rows}")
    assert main(["label", str(out), str(table)]) == 0
    assert not any("amplitude_site" in flags for flags in _quality(out))
    assert main(["label", str(out), str(source / "sites.csv")]) == 0
    assert "amplitude_site" in _quality(out)[25]


def test_info_counts_and_the_page_is_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a")
    assert main(["convert", str(source / "in"), "--out", out, "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["info", out]) == 0
    assert "quality   " in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["quality", out, "--out", str(page)]) == 0
    assert "Quality of the signals" in page.read_text()
    assert main(["quality", out, "--out", f"{out}/page.html"]) == 2
