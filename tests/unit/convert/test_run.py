"""What convert refuses before it reads a file."""

from pathlib import Path

import pytest
from recordings import convert_quietly, ecg_like, write_wfdb

from ecgfast.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"workers": -2}, "--workers must be at least 1, got -2"),
        ({"window": "some"}, "'?some'?"),
        ({"short": "stretch"}, "'?stretch'?"),
        ({"codec": "zip"}, "'?zip'?"),
        ({"target": "ejection_fraction<40"}, "needs --labels"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_wfdb(tmp_path / "in" / "r0", ecg_like(1, seed=0)[0])
    with pytest.raises(ConfigError, match=message):
        convert_quietly([tmp_path / "in"], tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_one_worker_is_enough(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in" / "r0", ecg_like(1, seed=0)[0])
    assert convert_quietly([tmp_path / "in"], tmp_path / "store", workers=1) is not None
