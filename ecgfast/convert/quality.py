"""Simple signal checks of whole batches: flat leads and limb leads that do not add up."""

import numpy as np
from numpy.typing import NDArray

_EINTHOVEN_LIMIT_UV = 100.0  # 500 Hz recordings of real devices: 1 unit, at most 5 microvolt


def flat_leads(lead_std_NC: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Records with a lead that never changes; (N, 12) ADC units -> (N,)."""
    flat: NDArray[np.bool_] = (lead_std_NC == 0).any(axis=1)
    return flat


def einthoven_uv(
    signal_NCT: NDArray[np.int16], scale_NC: NDArray[np.float32], offset_NC: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Largest deviation of III from II - I.

    Args:
        signal_NCT: (N, 12, T) int16, ADC units.
        scale_NC: (N, 12) float32, microvolt per unit.
        offset_NC: (N, 12) float32, ADC units.
    Returns:
        (N,) float32, microvolt.
    """
    scale = scale_NC[:, :3] * np.array([1, -1, 1], np.float32)
    constant = (offset_NC[:, :3] * scale).sum(axis=1)
    deviation = np.matmul(scale[:, None, :], signal_NCT[:, :3].astype(np.float32))[:, 0]
    high, low = deviation.max(axis=1) - constant, deviation.min(axis=1) - constant
    largest: NDArray[np.float32] = np.maximum(high, -low)
    return largest


def breaks_einthoven(deviation_uv: float) -> bool:
    """Whether the limb leads contradict each other."""
    return deviation_uv > _EINTHOVEN_LIMIT_UV


def signal_flags(*, flat: bool, deviation_uv: float) -> list[str]:
    """What the checks found in one window, as convert and predict say it.

    Args:
        flat: of `flat_leads`.
        deviation_uv: of `einthoven_uv`.
    """
    return ["flat_lead"] * flat + ["einthoven"] * breaks_einthoven(deviation_uv)
