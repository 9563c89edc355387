"""quack's products behind `linear_gelu`: what it is called with, by a stand-in with its contract.

The stand-in checks what quack 0.6.5 checks (shapes of operands and of the sums, arguments) and
calls the epilogues with whole tiles. On Hopper, `test_kernels_gpu.py` runs the package itself.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from ecgfast_kernels.ops import reference
from torch import Tensor


class Mod:
    """An epilogue with the method that launches it."""

    def __init__(self, fn: Callable[..., dict[str, Tensor]], names: tuple[str, ...]) -> None:
        self.fn, self.names = fn, names

    def gemm(
        self,
        A: Tensor,
        B: Tensor,
        D: Tensor,
        C: Tensor | None = None,
        *,
        epi_args: dict[str, Tensor],
        tile_M: int,
        tile_N: int,
        cluster_M: int,
        cluster_N: int,
        pingpong: bool,
        b_kn: bool = False,
    ) -> None:
        product = A.float() @ (B if b_kn else B.t()).float()
        assert C is None or C.shape == D.shape == product.shape
        operands = {"c": C} if C is not None else {}
        if "bias" in epi_args:
            assert epi_args["bias"].shape == (1, D.shape[1])
            operands["bias"] = epi_args["bias"]
        results = self.fn(product, **operands)
        D.copy_(results["D"])
        for name in self.names:
            if name == "sums":  # of each tile of rows
                assert epi_args[name].shape == (-(-len(D) // tile_M), D.shape[1])
                tiles = [tile.sum(0) for tile in results[name].split(tile_M)]
                epi_args[name].copy_(torch.stack(tiles))
            else:
                assert epi_args[name].shape == D.shape
                epi_args[name].copy_(results[name])


def gemm_epilogue(
    outputs: tuple[str, ...] = (),
    ops: dict[str, str] | None = None,
    reduces: dict[str, str] | None = None,
) -> Callable[[Callable[..., dict[str, Tensor]]], Mod]:
    return lambda fn: Mod(fn, (*outputs, *(reduces or {})))


def dgelu_erf(x: Tensor, dout: Tensor | float) -> tuple[Tensor, Tensor]:
    zero, one = x.new_zeros(()), torch.ones_like(x)
    return dout * reference.bias_gelu_backward(one, x, zero)[0], reference.bias_gelu(x, zero)


@pytest.fixture
def launchers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    parts: dict[str, dict[str, object]] = {
        "quack": {},
        "quack.activation": {"dgelu_erf": dgelu_erf},
        "quack.epilogue": {},
        "quack.epilogue.frontend": {"gemm_epilogue": gemm_epilogue},
        "quack.epilogue.ops": {"RowVecLoad": str, "RowVecReduce": str},
    }
    for name, values in parts.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "ecgfast_kernels.ops.gelu_quack", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield importlib.import_module("ecgfast_kernels.ops.gelu_quack")
    sys.modules.pop("ecgfast_kernels.ops.gelu_quack", None)


@pytest.mark.parametrize("rows", [3, 128, 300])
def test_it_computes_the_reference(launchers: Any, rows: int) -> None:
    x, weight, bias, grad, out_weight = (
        torch.randn(shape).half() for shape in ((rows, 16), (40, 16), (40,), (rows, 24), (24, 40))
    )
    act, slope = launchers.forward(x, weight, bias)
    for got, want in zip((act, slope), reference.linear_gelu(x, weight, bias), strict=True):
        torch.testing.assert_close(got, want, rtol=4e-3, atol=4e-3)  # fp16 rounds x W^T in one
    grad_hidden, grad_bias = launchers.backward(grad, out_weight, slope)
    wanted = reference.linear_gelu_backward(grad, out_weight, slope)
    torch.testing.assert_close(grad_hidden, wanted[0], rtol=4e-3, atol=1e-2)
    torch.testing.assert_close(grad_bias, wanted[1], rtol=4e-3, atol=0.2)


def test_other_gpus_and_types_are_refused(launchers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"got torch\.float32 on 9\.0; use fused=triton"):
        launchers.forward(torch.zeros(2, 8), torch.zeros(8, 8), torch.zeros(8))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    half = torch.zeros(2, 8).half()
    with pytest.raises(ValueError, match=r"on Hopper .* got torch\.float16 on 10\.0"):
        launchers.backward(half, half.t(), half)
