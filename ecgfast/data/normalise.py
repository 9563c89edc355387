"""Normalisation modes, each reduced to one mean and one factor per record and lead.

Every engine computes z = (adc - mean) * rstd in fp32 and rounds once to fp16, so the mode is
decided here and nowhere else. Shapes: R records, C leads.
"""

import math
from dataclasses import dataclass
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.records import NUM_TIMESTEPS
from ecgfast.store.reader import StoreReader
from ecgfast.vocabulary import Normalise

# What no body gives: such records have a wrong gain, and one of them outweighs a whole cohort.
_LARGEST_MEAN_UV, _LARGEST_STD_UV = 1e6, 1e5
_LARGEST_HALF = 65504.0  # of fp16, in which batches are
MODES = get_args(Normalise)


@dataclass(frozen=True, kw_only=True)
class CohortStatistics:
    """Microvolt statistics of the training records, which travel with a checkpoint.

    Attributes:
        mean_uv: one value per lead.
        std_uv: one value per lead.
    """

    mean_uv: tuple[float, ...]
    std_uv: tuple[float, ...]


def cohort_statistics(store: StoreReader, index_R: NDArray[np.int64]) -> CohortStatistics:
    """Pool the lead statistics of some records, in microvolt.

    Records whose mean or standard deviation no body gives (over 1 V, over 100 mV) are left out.

    Args:
        store: an open store.
        index_R: (R,) rows of the training records.
    Raises:
        ConfigError: no records, or none with plausible voltages.
    """
    if len(index_R) == 0:
        raise ConfigError(
            "normalise=cohort_lead needs training records, got 0; assign splits with "
            "`ecgfast label`, or take normalise=record_lead"
        )
    mean_RC, std_RC = _microvolt_statistics(store, index_R)
    plausible_R = (np.abs(mean_RC) <= _LARGEST_MEAN_UV).all(axis=1)
    plausible_R &= (std_RC <= _LARGEST_STD_UV).all(axis=1)
    if not plausible_R.any():
        raise ConfigError(
            f"normalise=cohort_lead needs training records below {_LARGEST_STD_UV / 1000:g} mV, "
            f"got {len(index_R)} above; correct their gains, or take normalise=record_lead"
        )
    if num_left_out := int((~plausible_R).sum()):
        log.warning(
            f"{num_left_out} of {len(index_R)} training records have voltages that no body gives, "
            "and do not count in the statistics of normalise=cohort_lead; correct their gains"
        )
        mean_RC, std_RC = mean_RC[plausible_R], std_RC[plausible_R]
    mean_C = mean_RC.mean(axis=0)
    variance_C = (std_RC**2 + mean_RC**2).mean(axis=0) - mean_C**2
    std_C = np.sqrt(np.maximum(variance_C, 0))
    return CohortStatistics(mean_uv=tuple(mean_C.tolist()), std_uv=tuple(std_C.tolist()))


class LeadStatistics(Protocol):
    """What normalisation needs to know of R records: a store has it, and so have raw files."""

    def __len__(self) -> int:
        """R."""

    @property
    def scale_uv(self) -> NDArray[np.float32]:
        """(R, C) microvolt per ADC unit."""

    @property
    def offset_adc(self) -> NDArray[np.float32]:
        """(R, C) ADC units."""

    @property
    def lead_mean(self) -> NDArray[np.float32]:
        """(R, C) ADC units."""

    @property
    def lead_std(self) -> NDArray[np.float32]:
        """(R, C) ADC units."""


def mean_and_rstd(
    store: LeadStatistics, mode: str, cohort: CohortStatistics | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what to subtract and to multiply by, in ADC units, for every record of a store.

    Args:
        store: an open store, or the same arrays of other records.
        mode: `record_lead` z-scores each lead by itself; `record` divides all leads by one
            standard deviation, so that relative amplitudes stay; `cohort_lead` uses the training
            split's microvolt statistics; `none` gives millivolt.
        cohort: statistics for `cohort_lead`; by default those of the store's training split.
    Returns:
        mean and factor, both (R, C) float32; the factor is 0 where a standard deviation is 0, and
        where a wrong gain would make infinite values of fp16.
    Raises:
        ConfigError: an unknown mode.
    """
    everything = np.arange(len(store), dtype=np.int64)
    scale_RC = store.scale_uv.astype(np.float64)
    if mode == "record_lead":
        inverse_RC = _reciprocal(store.lead_std.astype(np.float64))
        # A gain below 0 stores a lead upside down.
        return store.lead_mean, np.copysign(inverse_RC, store.scale_uv)
    if mode == "record":
        _, std_RC = _microvolt_statistics(store, everything)
        pooled_R1 = np.sqrt((std_RC**2).mean(axis=1, keepdims=True))
        return store.lead_mean, (scale_RC * _reciprocal(pooled_R1)).astype(np.float32)
    if mode == "cohort_lead":
        if cohort is None:
            if not isinstance(store, StoreReader):
                raise ConfigError(
                    "normalise=cohort_lead needs the statistics of training records, got none"
                )
            cohort = cohort_statistics(store, training_rows(store))
        mean_RC = store.offset_adc + np.asarray(cohort.mean_uv) / scale_RC
        rstd_RC = scale_RC * _reciprocal(np.asarray(cohort.std_uv))
        return _within_half(store, mean_RC, rstd_RC)
    if mode == "none":
        return _within_half(store, store.offset_adc.astype(np.float64), scale_RC / 1000)
    raise ConfigError(f"normalise must be one of {', '.join(MODES)}, got {mode!r}")


def _within_half(
    store: LeadStatistics, mean_RC: NDArray[np.float64], rstd_RC: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Set leads to 0 whose values fp16 cannot hold: one infinite value undoes a whole batch.

    No value of T timesteps lies further from their mean than sqrt(T) standard deviations.
    """
    reach_RC = math.sqrt(NUM_TIMESTEPS) * store.lead_std.astype(np.float64)
    reach_RC += np.abs(store.lead_mean - mean_RC)
    fits_RC = reach_RC * np.abs(rstd_RC) <= _LARGEST_HALF
    if num_wrong := int((~fits_RC.all(axis=1)).sum()):
        log.warning(
            f"{num_wrong} of {len(store)} records have leads beyond {_LARGEST_HALF:g} after "
            "normalisation, which are set to 0; correct their gains, or take normalise=record_lead"
        )
    return (
        np.where(fits_RC, mean_RC, 0).astype(np.float32),
        np.where(fits_RC, rstd_RC, 0).astype(np.float32),
    )


def training_rows(store: StoreReader) -> NDArray[np.int64]:
    """Return the rows whose split is `train`, in store order."""
    split = store.records.column("split").to_pylist()
    return np.flatnonzero([value == "train" for value in split]).astype(np.int64)


def _microvolt_statistics(
    store: LeadStatistics, index_R: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scale_RC = store.scale_uv[index_R].astype(np.float64)
    mean_RC = (store.lead_mean[index_R] - store.offset_adc[index_R]) * scale_RC
    return mean_RC, store.lead_std[index_R].astype(np.float64) * np.abs(scale_RC)


def _reciprocal(std: NDArray[np.float64]) -> NDArray[np.float32]:
    nonzero = std > 0
    return np.divide(1.0, std, out=np.zeros_like(std), where=nonzero).astype(np.float32)
