"""The public functions in a notebook: every name is found, whatever was imported before."""

import subprocess
import sys

CODE = """
import ecgfast
assert "torch" not in __import__("sys").modules
import ecgfast.convert.run, ecgfast.evaluate.report, ecgfast.predict
from ecgfast import convert, evaluate, predict
for name in "convert label build_loader pretrain finetune embed evaluate predict plot_ecg".split():
    function = getattr(ecgfast, name)
    assert callable(function) and function.__doc__ and function.__annotations__, name
assert (convert, evaluate, predict) == (ecgfast.convert, ecgfast.evaluate, ecgfast.predict)
"""


def test_a_submodule_of_the_same_name_does_not_hide_a_function() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", CODE], check=True)
