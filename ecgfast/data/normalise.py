"""Normalisation modes, each reduced to one mean and one factor per record and lead.

Every engine computes z = (adc - mean) * rstd in fp32 and rounds once to fp16, so the mode is
decided here and nowhere else. Shapes: R records, C leads.
"""

import math
from dataclasses import dataclass
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.records import LEADS, NUM_TIMESTEPS
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
    mean_RC, std_RC = _microvolt_statistics(LeadStatistics.of(store, index_R))
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


@dataclass(frozen=True, kw_only=True)
class LeadStatistics:
    """What normalisation needs to know of R records; a store has the same arrays of all of its own.

    Attributes:
        scale_uv: (R, C) float32, microvolt per ADC unit.
        offset_adc: (R, C) float32, ADC units.
        lead_mean: (R, C) float32, ADC units.
        lead_std: (R, C) float32, ADC units.
    """

    scale_uv: NDArray[np.float32]
    offset_adc: NDArray[np.float32]
    lead_mean: NDArray[np.float32]
    lead_std: NDArray[np.float32]

    @classmethod
    def of(cls, store: StoreReader, index_R: NDArray[np.int64]) -> Self:
        """Those of some rows of a store."""
        return cls(
            scale_uv=store.scale_uv[index_R],
            offset_adc=store.offset_adc[index_R],
            lead_mean=store.lead_mean[index_R],
            lead_std=store.lead_std[index_R],
        )


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How ADC units become what a model sees.

    Attributes:
        mode: `record_lead` z-scores each lead by itself; `record` divides all leads by one standard
            deviation, so that relative amplitudes stay; `cohort_lead` uses microvolt statistics of
            training records; `none` gives millivolt.
        cohort: statistics for `cohort_lead`; by default those of a store's training split.
        leads: names of the leads that a model takes, in the order of `LEADS`: batches have the
            patches of these alone, and `record` knows no others. None: all twelve.
    """

    mode: str = "record_lead"
    cohort: CohortStatistics | None = None
    leads: tuple[str, ...] | None = None

    @property
    def lead_numbers(self) -> list[int]:
        """Numbers in `LEADS` of the leads that a model takes."""
        return [LEADS.index(lead) for lead in self.leads or LEADS]

    def mean_and_rstd(
        self, records: StoreReader | LeadStatistics
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what to subtract and to multiply by, in ADC units, for every record.

        Args:
            records: an open store, or R records.
        Returns:
            mean and factor, both (R, C) float32; the factor is 0 where a standard deviation is 0,
            and where a wrong gain would make infinite values of fp16.
        Raises:
            ConfigError: an unknown mode, or `cohort_lead` without statistics.
        """
        scale_RC = records.scale_uv.astype(np.float64)
        if self.mode == "record_lead":
            inverse_RC = _reciprocal(records.lead_std.astype(np.float64))
            # A gain below 0 stores a lead upside down.
            return records.lead_mean, np.copysign(inverse_RC, records.scale_uv)
        if self.mode == "record":
            _, std_RC = _microvolt_statistics(records)
            taken_RC = std_RC if self.leads is None else std_RC[:, self.lead_numbers]
            pooled_R1 = np.sqrt((taken_RC**2).mean(axis=1, keepdims=True))
            return records.lead_mean, (scale_RC * _reciprocal(pooled_R1)).astype(np.float32)
        if self.mode == "cohort_lead":
            cohort = self.cohort or _of_training_split(records)
            mean_RC = records.offset_adc + np.asarray(cohort.mean_uv) / scale_RC
            rstd_RC = scale_RC * _reciprocal(np.asarray(cohort.std_uv))
            return _within_half(records, mean_RC, rstd_RC)
        if self.mode == "none":
            return _within_half(records, records.offset_adc.astype(np.float64), scale_RC / 1000)
        raise ConfigError(f"normalise must be one of {', '.join(MODES)}, got {self.mode!r}")


def _of_training_split(records: StoreReader | LeadStatistics) -> CohortStatistics:
    if not isinstance(records, StoreReader):
        raise ConfigError(
            "normalise=cohort_lead needs the statistics of training records, got none"
        )
    return cohort_statistics(records, training_rows(records))


def _within_half(
    records: StoreReader | LeadStatistics,
    mean_RC: NDArray[np.float64],
    rstd_RC: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Set leads to 0 whose values fp16 cannot hold: one infinite value undoes a whole batch.

    No value of T timesteps lies further from their mean than sqrt(T) standard deviations.
    """
    reach_RC = math.sqrt(NUM_TIMESTEPS) * records.lead_std.astype(np.float64)
    reach_RC += np.abs(records.lead_mean - mean_RC)
    fits_RC = reach_RC * np.abs(rstd_RC) <= _LARGEST_HALF
    if num_wrong := int((~fits_RC.all(axis=1)).sum()):
        log.warning(
            f"{num_wrong} of {len(mean_RC)} records have leads beyond {_LARGEST_HALF:g} after "
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
    records: StoreReader | LeadStatistics,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each record and lead, both (R, C) microvolt."""
    scale_RC = records.scale_uv.astype(np.float64)
    mean_RC = (records.lead_mean - records.offset_adc) * scale_RC
    return mean_RC, records.lead_std.astype(np.float64) * np.abs(scale_RC)


def _reciprocal(std: NDArray[np.float64]) -> NDArray[np.float32]:
    nonzero = std > 0
    return np.divide(1.0, std, out=np.zeros_like(std), where=nonzero).astype(np.float32)
