"""Writes DICOM waveforms for tests, with pydicom."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.records import LEADS

CODES = dict(zip(LEADS, (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8), strict=True))


def group(
    signal_CT: NDArray[Any],
    leads: Any = LEADS,
    *,
    scheme: str = "MDC",
    interpretation: str = "SS",
    originality: str = "ORIGINAL",
    sensitivity: float = 2.5,
    correction: float = 1.0,
    baseline: float = 0.0,
    unit: str = "uV",
) -> Any:
    """A multiplex group as pydicom holds it."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.WaveformOriginality = originality
    item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = signal_CT.shape
    item.SamplingFrequency = 500
    item.WaveformBitsAllocated = 8 * signal_CT.dtype.itemsize
    item.WaveformSampleInterpretation = interpretation
    item.ChannelDefinitionSequence = []
    for lead in leads:
        prefix = "2:" if scheme == "MDC" else "5.6.3-9-"
        source, units, channel = Dataset(), Dataset(), Dataset()
        source.CodeValue, source.CodingSchemeDesignator = f"{prefix}{CODES.get(lead, 99)}", scheme
        source.CodeMeaning = "a meaning that is not looked at"
        units.CodeValue, units.CodingSchemeDesignator = unit, "UCUM"
        channel.ChannelSourceSequence, channel.ChannelSensitivityUnitsSequence = [source], [units]
        channel.ChannelSensitivity = sensitivity
        channel.ChannelSensitivityCorrectionFactor = correction
        channel.ChannelBaseline, channel.ChannelSampleSkew = baseline, 0
        channel.WaveformBitsStored = item.WaveformBitsAllocated
        channel.FilterLowFrequency, channel.FilterHighFrequency = 0.05, 150
        item.ChannelDefinitionSequence.append(channel)
    item.WaveformData = np.ascontiguousarray(signal_CT.T).tobytes()
    return item


def write(path: Path, *groups: Any, syntax: str = "1.2.840.10008.1.2.1", **elements: Any) -> Path:
    """A waveform object of some groups, with further elements, in a transfer syntax."""
    from pydicom.dataset import Dataset, FileMetaDataset

    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    dataset.SOPInstanceUID = "1.2.3"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.WaveformSequence = list(groups)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path
