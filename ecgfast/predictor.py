"""A trained model with the preprocessing of its records: `ecgfast.load_model`, and raw signals."""

# n windows, C leads, T timesteps, N patches, P padded patch length, D width, K targets

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from ecgfast_kernels.codec import lead_statistics, patches_from_int16
from ecgfast_kernels.codec.signals import fingerprints
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ecgfast.config import Config
from ecgfast.convert.measures import LEAST_TIMESTEPS
from ecgfast.convert.preprocess import Samples, Window, cut, to_samples
from ecgfast.convert.quality import quality_of
from ecgfast.data.batch import patches_of_leads
from ecgfast.data.normalise import LeadStatistics
from ecgfast.errors import ConfigError, FormatError
from ecgfast.model.classifier import Classifier
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.records import NUM_LEADS, SAMPLING_RATE_HZ, EcgRecord
from ecgfast.runs.inference import predictions
from ecgfast.runs.leads import leads_of, model_on_leads, on_leads
from ecgfast.runs.loading import load_model as load_run_model
from ecgfast.runs.located import located
from ecgfast.runs.meta import RunMeta
from ecgfast.store.quality import default_limits


class EcgModel(nn.Module):
    """A model of a run, ready for raw signals.

    Args:
        model: as trained.
        config: settings of its run.
        meta: what the run says about itself.

    Attributes:
        model: as trained; `parameters()` are its.
        config: settings of its run.
        meta: what the run says about itself.
        leads: names of the leads that it takes, in the order of `ecgfast.records.LEADS`.
        thresholds: name of each target of the run -> its threshold with the highest Youden index
            on the run's validation records, or None; empty for an autoencoder.
    """

    def __init__(
        self, model: Classifier | MaskedAutoencoder, config: Config, meta: RunMeta
    ) -> None:
        super().__init__()
        self.model = model
        self.config, self.meta = config, meta
        self.leads = leads_of(meta)
        numbers = range(len(meta.task.outputs) if meta.target else 0)
        outputs = [meta.of_output(number) for number in numbers]
        self.thresholds = {output.target: output.threshold for output in outputs}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def on_leads(self, leads: Iterable[str]) -> "EcgModel":
        """The same weights on fewer leads: patches of the others are left out, as masks do.

        Args:
            leads: names of some of `leads`, in any order.
        Raises:
            ConfigError: others, or a model that needs all that it was trained on.
        """
        meta = on_leads(self.meta, leads)
        if meta is self.meta:
            return self
        model = model_on_leads(self.model, meta)
        assert isinstance(model, Classifier | MaskedAutoencoder)
        return EcgModel(model, self.config, meta).eval()

    def forward(self, patches_nNP: Tensor) -> Tensor:
        """Score or encode records.

        Args:
            patches_nNP: (n, N, 256) of `prepare`; or of `ecgfast.build_loader`, where the model
                takes fewer leads with its `Normalisation`. N is 20 for each lead.
        Returns:
            (n,) logits of a classifier, or (n, K) of several targets; (n, 1 + N, D) tokens of an
            autoencoder's encoder, the class token first.
        """
        patches_nNP = patches_nNP.to(self.device).float()
        if isinstance(self.model, Classifier):
            out: Tensor = self.model(patches_nNP)
            return out
        return self.model.encode(patches_nNP)

    def prepare(self, samples: Samples, windows: Sequence[Window]) -> Tensor:
        """Turn windows of a recording into what the model sees.

        Args:
            samples: the recording; gives the windows their units.
            windows: n windows of it.
        Returns:
            (n, N, 256) fp16 on the CPU, normalised as the run's training records were; N is 20
            for each of `leads`.
        """
        signal_nCT, valid_nCT = _stacked(windows)
        mean_nC, std_nC = lead_statistics(signal_nCT, valid_nCT)
        shape = mean_nC.shape
        statistics = LeadStatistics(
            scale_uv=np.broadcast_to(samples.scale_uv, shape).astype(np.float32),
            offset_adc=np.broadcast_to(samples.offset_adc, shape).astype(np.float32),
            lead_mean=mean_nC,
            lead_std=std_nC,
        )
        normalisation = self.meta.preprocessing.normalisation
        mean, rstd = normalisation.mean_and_rstd(statistics)
        patches_nNP = torch.from_numpy(patches_from_int16(signal_nCT, mean, rstd))
        if normalisation.leads is None:
            return patches_nNP
        return patches_of_leads(patches_nNP, torch.tensor(normalisation.lead_numbers))

    def patches(
        self, signal_uv_CT: ArrayLike, sampling_rate_hz: float = SAMPLING_RATE_HZ
    ) -> Tensor:
        """Cut a recording into windows, and prepare them as `convert` and the loader would.

        Args:
            signal_uv_CT: (12, T) microvolt, leads in the order of `ecgfast.records.LEADS`, or
                those of `leads` alone; NaN where there is no measurement.
            sampling_rate_hz: of the signal; another one than 500 is resampled.
        Returns:
            (n, N, 256) fp16: a window for a recording of ten seconds, more for longer ones
            where the run's store has them all.
        Raises:
            FormatError: the recording is too short, too much of it is missing, or impossible.
            ShapeError: it has not 12 leads, nor as many as the model takes.
        """
        signal = self._twelve_leads(np.asarray(signal_uv_CT, dtype=np.float32))
        ones = np.ones(NUM_LEADS, np.float32)
        record = EcgRecord(
            record_id="the signal", signal=signal, scale_uv=ones, offset_adc=0 * ones,
            sampling_rate_hz=float(sampling_rate_hz),
        )  # fmt: skip
        samples = to_samples(record)
        made = self.meta.preprocessing.store
        windows: list[Window] = []
        for each in cut(samples, window=made["window"], short=made["short"]):
            if isinstance(each, FormatError):
                raise each
            windows.append(each)
        return self.prepare(samples, windows)

    def _twelve_leads(self, signal: NDArray[np.float32]) -> NDArray[np.float32]:
        """A signal of the model's leads, or of all, with zeros in those that it does not take."""
        if len(self.leads) == NUM_LEADS or len(signal) not in (NUM_LEADS, len(self.leads)):
            return signal
        numbers = self.meta.preprocessing.normalisation.lead_numbers
        whole = np.zeros((NUM_LEADS, *signal.shape[1:]), np.float32)
        whole[numbers] = signal if len(signal) < NUM_LEADS else signal[numbers]
        return whole

    def scores(self, patches_nNP: Tensor) -> NDArray[np.float64]:
        """Probabilities of the target, (n,) float64, or (n, K) of several.

        Arguments as for `forward`.

        Raises:
            ConfigError: an autoencoder gives none.
        """
        if not isinstance(self.model, Classifier):
            raise ConfigError(
                f"a {self.meta.kind} run gives no probabilities; fine-tune it, or take its "
                "features by calling the model on patches"
            )
        batches, meaning = [patches_nNP.to(self.device).float()], self.meta.task.predictions
        (scores_n,) = predictions(self.model, batches, meaning)
        return scores_n

    def predict(
        self, signal_uv_CT: ArrayLike, sampling_rate_hz: float = SAMPLING_RATE_HZ
    ) -> NDArray[np.float64]:
        """Probabilities for each window of a recording, (n,) float64, or (n, K) of several targets.

        Arguments and errors as for `patches` and `scores`.
        """
        return self.scores(self.patches(signal_uv_CT, sampling_rate_hz))


def load_model(name: str | Path, *, leads: Iterable[str] | None = None) -> EcgModel:
    """Load a trained model with its preprocessing, on the CPU in fp32 and in evaluation mode.

    Args:
        name: folder of a run or of an exported model; or ``hf://OWNER/NAME[@REVISION]``, a model
            of the Hugging Face hub. Nothing else is looked for on the hub.
        leads: names of some of the leads that it was trained on, as for `EcgModel.on_leads`; None
            takes all of these.
    Raises:
        ConfigError: a weight is NaN or infinite, no such model on the hub, or leads that it does
            not take.
        ResumeError: no such folder, or a damaged one.
        BackendUnavailableError: the hub cannot be reached, or its package is not installed.
    """
    folder = located(name)
    model, config, meta = load_run_model(folder)
    assert isinstance(model, Classifier | MaskedAutoencoder)
    whole = EcgModel(model, config, meta).eval()
    return whole if leads is None else whole.on_leads(leads)


def _stacked(windows: Sequence[Window]) -> tuple[NDArray[np.int16], NDArray[np.bool_] | None]:
    """Signals (n, 12, T) in ADC units, and which timesteps are valid; None where all are."""
    signal_nCT = np.stack([window.signal for window in windows])
    if all(window.valid is None for window in windows):
        return signal_nCT, None
    full = np.ones(signal_nCT.shape[1:], dtype=bool)
    return signal_nCT, np.stack([full if w.valid is None else w.valid for w in windows])


def signal_checks(samples: Samples, windows: Sequence[Window]) -> list[list[str]]:
    """What the signal checks of convert find in each window, by their default limits.

    Args:
        samples: a recording.
        windows: of it.
    """
    signal_nCT, valid_nCT = _stacked(windows)
    scale_nC, offset_nC = (
        np.broadcast_to(each, signal_nCT.shape[:2])
        for each in (samples.scale_uv, samples.offset_adc)
    )
    correlation = fingerprints(signal_nCT, least_timesteps=LEAST_TIMESTEPS).correlation
    rows = quality_of(signal_nCT, valid_nCT, scale_nC, offset_nC, correlation, default_limits())
    return [[*filter(None, row["quality"].split(";"))] for row in rows]
