"""ADC units to float32 microvolt, and which numbers of a file can stay ADC units."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.records import INVALID


def to_microvolt(
    signal: NDArray[np.int16], scale_uv: NDArray[np.float32], offset_adc: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Convert ADC units to float32 microvolt; invalid timesteps become NaN.

    Args:
        signal: (C, T) int16 ADC units.
        scale_uv: (C,) microvolt per ADC unit.
        offset_adc: (C,) ADC units at 0 microvolt.
    """
    out = (signal.astype(np.float32) - offset_adc[:, None]) * scale_uv[:, None]
    out[signal == INVALID] = np.nan
    return out


def wide_to_microvolt(
    signal_ST: NDArray[Any], scale_uv: Sequence[float], offset_adc: Sequence[float]
) -> NDArray[np.float32]:
    """Convert numbers that do not fit in int16 to float32 microvolt, computed in float64.

    Args:
        signal_ST: (S, T) integers or floats; every value counts, none marks an invalid timestep.
        scale_uv: (S,) microvolt per unit of the array.
        offset_adc: (S,) value at 0 microvolt.
    """
    offset, scale = np.array([offset_adc, scale_uv])[:, :, None]
    microvolt: NDArray[np.float32] = ((signal_ST - offset) * scale).astype(np.float32)
    return microvolt


def int16_or_microvolt(
    signal_ST: NDArray[Any],
    scale_uv: Sequence[float],
    offset_adc: Sequence[float],
    invalid_ST: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[Any], Sequence[float], Sequence[float]]:
    """Keep integers that fit in 16 bits; turn anything else into float32 microvolt.

    Args:
        signal_ST: (S, T) integers or floats.
        scale_uv: (S,) microvolt per unit of the array.
        offset_adc: (S,) value at 0 microvolt.
        invalid_ST: (S, T) timesteps without a measurement, beside those that the dtype marks:
            -32768 in 16 bits, NaN in floats.
    Returns:
        the signal, microvolt per unit of it, and its value at 0 microvolt.
    """
    values = signal_ST if invalid_ST is None else np.where(invalid_ST, 0, signal_ST)
    if values.dtype.kind in "iu" and (
        np.can_cast(values.dtype, np.int16)
        or values.size == 0
        or (values.min() > INVALID and values.max() < -INVALID)
    ):  # 16 bits have -32768 for an invalid timestep, wider integers as a value
        adc = values.astype(np.int16, copy=False)
        if invalid_ST is not None:
            adc[invalid_ST] = INVALID
        return adc, scale_uv, offset_adc
    microvolt = wide_to_microvolt(values, scale_uv, offset_adc)  # infinite beyond float32: invalid
    if invalid_ST is not None:
        microvolt[invalid_ST] = np.nan
    scale = [1.0 if math.isfinite(scale) else math.nan for scale in scale_uv]
    return microvolt, scale, [0.0] * len(offset_adc)
