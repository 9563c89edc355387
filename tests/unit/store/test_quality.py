"""Limits of the signal checks, as a user sets them, and the check that needs a whole site."""

from pathlib import Path

import pyarrow as pa
import pytest

from ecgfast.errors import ConfigError
from ecgfast.store.quality import default_limits, read_limits, table_of_limits, with_site_flags


def test_every_limit_says_what_it_means() -> None:
    for name, limit in table_of_limits().items():
        assert limit.value > 0
        assert all((limit.flag, limit.means, limit.source)), name


def test_limits_of_a_user(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("noise_uv = 50\nwander_uv = 1500.5\n")
    assert read_limits(file) == {"noise_uv": 50.0, "wander_uv": 1500.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise_mv = 1", "unknown limit 'noise_mv', did you mean 'noise_uv'?; allowed: flat_s, "),
        ("noise_uv = 'low'", "noise_uv must be a number above 0, got 'low'"),
        ("noise_uv = 0", "noise_uv must be a number above 0, got 0"),
        ("noise_uv = -1.5", "got -1.5"),
        ("noise_uv = true", "got True"),
        ("noise_uv = nan", "got nan"),
        ("noise_uv = inf", "got inf; a large number turns an upper limit off"),
        ("[noise_uv]\nvalue = 3", "got {'value': 3}"),
        ("noise_uv", "is not valid TOML"),
    ],
)
def test_wrong_limits_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_limits(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_limits_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        read_limits(tmp_path / "limits.toml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory"):
        read_limits(tmp_path)


def _table(sites: list[str | None], amplitudes: list[float], quality: list[str]) -> pa.Table:
    return pa.table(
        {
            "site": pa.array(sites, pa.string()),
            "amplitude_uv": pa.array(amplitudes, pa.float64()),
            "quality": quality,
        }
    )


def test_a_gain_that_is_wrong_in_all_leads_stands_out_of_its_site() -> None:
    """Site A has hearts of 1 mV, B, whose devices filter more, of 0.5 mV."""
    sites = ["A"] * 21 + ["B"] * 21 + [None] * 3
    amplitudes = [1000.0] * 20 + [3100.0] + [500.0] * 20 + [1600.0] + [400.0, 4000.0, 0.0]
    quality = ["noise"] + [""] * 19 + ["noise"] + [""] * 24
    flagged = with_site_flags(_table(sites, amplitudes, quality), default_limits())
    found = flagged["quality"].to_pylist()
    assert (found[0], found[20], found[41]) == ("noise", "amplitude_site;noise", "amplitude_site")
    assert sum("amplitude_site" in each for each in found) == 2  # three records are no distribution
    assert flagged.schema == _table(sites, amplitudes, quality).schema


def test_a_site_that_changes_changes_what_is_flagged() -> None:
    quality = ["amplitude_site;noise"] + [""] * 19 + ["amplitude_site"]
    table = _table(["A"] * 21, [1000.0] * 20 + [300.0], quality)
    assert with_site_flags(table, default_limits())["quality"].to_pylist() == [
        *("noise", *[""] * 19, "amplitude_site"),
    ]
    apart = default_limits() | {"site_factor": 4.0}
    assert with_site_flags(table, apart)["quality"].to_pylist() == ["noise", *[""] * 20]
