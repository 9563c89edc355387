"""Attention: kernels agree; the choice is explained, remembered, and falls back with a warning."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_mae import SMALL, small_model
from torch._subclasses.fake_tensor import FakeTensorMode

from ecgfast import log
from ecgfast.errors import BackendUnavailableError
from ecgfast.model.attention import (
    KERNELS,
    attention,
    explain_unavailable,
    pack_gradients,
    xformers_attention,
)
from ecgfast.model.attention_choice import (
    Shape,
    cache_path,
    choose_attention,
    fastest,
    probe,
    shapes_of,
)
from ecgfast.model.block import Attention, Block
from ecgfast.vocabulary import AttentionKernel

CPU = torch.device("cpu")
SHAPE = Shape(num_tokens=13, num_heads=2, head_width=8, dtype=torch.float32)
GPU_ONLY: tuple[AttentionKernel, ...] = ("sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "xformers")
TRITON: tuple[AttentionKernel, float] = ("triton", 1e-6)


@pytest.fixture
def _lenient() -> Iterator[None]:
    log._strict = False
    log._reported.clear()
    yield
    log._strict = False
    log._reported.clear()


def qkv(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 13, 3, 2, 8, generator=generator, dtype=dtype).requires_grad_()


# "triton" keeps softmax statistics in fp32, between forward and backward and on the CPU too
@pytest.mark.parametrize(("backend", "tolerance"), [("auto", 1e-11), ("math", 1e-11), TRITON])
def test_kernels_that_run_on_a_cpu_follow_the_formula(
    backend: AttentionKernel, tolerance: float
) -> None:
    packed = qkv()
    out = attention(packed, backend)
    query, key, value = packed.detach().unbind(2)
    for record in range(2):
        for head in range(2):
            q, k, v = (x[record, :, head] for x in (query, key, value))
            weights = torch.exp(q @ k.T / 8**0.5)
            expected = weights / weights.sum(1, keepdim=True) @ v
            mine = out[record, :, 8 * head : 8 * head + 8]
            torch.testing.assert_close(mine, expected, rtol=0, atol=tolerance)


def gradient(backend: AttentionKernel) -> torch.Tensor:
    packed = qkv()
    loss = attention(packed, backend).square().sum()
    (grad,) = torch.autograd.grad(loss, packed)
    return grad


@pytest.mark.parametrize(("backend", "tolerance"), [("auto", 1e-10), TRITON])
def test_gradients_agree_with_plain_softmax(backend: AttentionKernel, tolerance: float) -> None:
    torch.testing.assert_close(gradient(backend), gradient("math"), rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", GPU_ONLY)
def test_probe_says_why_a_gpu_kernel_cannot_run_here(backend: AttentionKernel) -> None:
    reason = probe(backend, CPU, SHAPE)
    assert reason is not None
    assert backend.removeprefix("sdpa_") in reason
    assert "\n" not in reason


def test_probe_finds_plain_softmax_right() -> None:
    assert probe("math", CPU, SHAPE) is None


def test_xformers_is_explained_on_a_cpu() -> None:
    assert explain_unavailable(CPU) == "xformers has no CPU operator"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ModuleNotFoundError", "No module named xformers"),
        ("OSError", "libcudart.so.12: cannot open shared object file"),
    ],
)
def test_an_xformers_that_does_not_load_is_explained_with_its_cure(
    kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not installed, or lacks the runtime of CUDA 12 beside a newer torch."""
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").write_text(f"raise {kind}({words!r})")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "xformers"]:
        monkeypatch.delitem(sys.modules, name)
    reason = explain_unavailable(torch.device("cuda"))
    assert reason is not None
    assert words in reason
    assert "install xformers>=0.0.35, and nvidia-cuda-runtime-cu12" in reason


@pytest.mark.usefixtures("_lenient")
@pytest.mark.parametrize("backend", GPU_ONLY)
def test_a_kernel_that_cannot_run_falls_back_with_one_warning(
    backend: AttentionKernel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log.logger, "propagate", True)
    for _ in range(2):
        choice = choose_attention(backend, CPU, SHAPE)
        assert choice.backend == "auto"
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"attention={backend}" in warnings[0]
    assert "CUDA" in warnings[0]


@pytest.mark.usefixtures("_lenient")
def test_strict_makes_the_fallback_an_error() -> None:
    log._strict = True
    with pytest.raises(BackendUnavailableError, match="attention=xformers"):
        choose_attention("xformers", CPU, SHAPE)


@pytest.mark.usefixtures("_lenient")
@pytest.mark.parametrize(("requested", "taken"), [("auto", "auto"), ("math", "math")])
def test_what_a_cpu_can_do_is_taken_without_a_word(
    requested: AttentionKernel, taken: AttentionKernel, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_attention(requested, CPU, SHAPE).backend == taken
    assert not caplog.records


def test_a_model_gets_a_choice_for_both_halves() -> None:
    model = small_model()
    assert shapes_of(SMALL, num_keep=3).keys() == model.parts.keys() == {"encoder", "decoder"}
    model.set_attention(encoder="math", decoder="auto")
    backends = [m.attn.backend for m in model.modules() if isinstance(m, Block)]
    assert backends == ["math", "math", "auto"]


def test_fastest_measures_once_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def measure() -> dict[AttentionKernel, float]:
        calls.append(1)
        return {"math": 3.0, "sdpa_flash": 1.0, "xformers": 2.0}

    for _ in range(2):
        choice = fastest("a GPU", SHAPE, measure)
        assert choice.backend == "sdpa_flash"
        assert "sdpa_flash 1.00, xformers 2.00, math 3.00" in choice.reason
    assert len(calls) == 1
    fastest("another GPU", SHAPE, measure)
    assert len(calls) == 2
    assert len(json.loads(cache_path().read_text())) == 2


@pytest.mark.usefixtures("_lenient")
@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"[1]", b'{"a": 1}', b'{"GPU": {"gone": 1.0}}', b"\xff\xfe", b"[" * 100_000),
        *(b'{"GPU": {"math": "fast"}}', b'{"GPU": {"math": NaN}}', b'{"GPU": {"math": true}}'),
    ],
)
def test_a_damaged_cache_is_measured_again_with_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_path().parent.mkdir(parents=True)
    cache_path().write_bytes(content.replace(b"GPU", f"a GPU {_key_end()}".encode()))
    assert fastest("a GPU", SHAPE, lambda: {"math": 1.0}).backend == "math"
    (said,) = caplog.messages
    assert str(cache_path()) in said
    assert said.endswith(("timed again", "timed again where it is"))
    assert fastest("a GPU", SHAPE, lambda: {"xformers": 1.0}).backend == "math"
    assert len(caplog.messages) == 1


def _key_end() -> str:
    """What the key of a GPU's timings ends with."""
    return f"torch {torch.__version__} T=13 H=2 K=8 float32"


def test_xformers_operator_traces_forward_and_backward_without_a_gpu() -> None:
    with FakeTensorMode():
        packed = torch.empty(2, 61, 3, 4, 64, dtype=torch.bfloat16)
        packed.requires_grad_()
        out = xformers_attention(packed)
        assert out.shape == (2, 61, 4, 64)
        (grad,) = torch.autograd.grad(out.sum(), packed)
        assert grad.shape == packed.shape
        assert grad.is_contiguous()


def test_gradients_written_side_by_side_are_not_copied() -> None:
    packed = torch.randn(2, 5, 3, 4, 8)
    assert pack_gradients(*packed.unbind(2)).data_ptr() == packed.data_ptr()
    apart = [x.contiguous() for x in packed.unbind(2)]
    assert torch.equal(pack_gradients(*apart), packed)
    swapped = pack_gradients(packed[:, :, 1], packed[:, :, 0], packed[:, :, 2])
    assert torch.equal(swapped, packed[:, :, [1, 0, 2]])


def test_kernels_are_those_of_the_setting() -> None:
    assert set(KERNELS) >= {"xformers", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "math"}


def test_the_projection_has_the_same_gradients_when_the_kernel_sums_its_bias() -> None:
    torch.manual_seed(0)
    layer = Attention(32, 2).double()
    torch.nn.init.normal_(layer.qkv.bias)
    tokens = torch.randn(3, 5, 32, dtype=torch.float64)
    results = []
    for layer.backend in ("math", "triton"):
        out = layer(tokens)
        grads = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
        results.append((out, *grads))
    for ours, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
