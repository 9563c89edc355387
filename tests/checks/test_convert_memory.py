"""tests/checks/convert_memory.py on few records: what a convert holds of each in memory."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).with_name("convert_memory.py")


@pytest.mark.slow  # 220,000 rows: fewer drown in what every process takes
def test_a_record_takes_few_bytes_of_memory() -> None:
    spec = importlib.util.spec_from_file_location("convert_memory", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    grown = module.growth(60_000, 160_000)
    assert grown["plan"] < 60
    assert grown["seal"] < 300  # 1,100 when its tables were in memory
