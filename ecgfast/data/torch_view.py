"""A store as a map-style and an iterable `torch.utils.data` data set, for other people's training.

Shapes: B records, C leads, T timesteps.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ecgfast.data.loader import RankOrder, labelled_rows, selected_rows
from ecgfast.data.normalise import Normalisation
from ecgfast.records import INVALID
from ecgfast.store.reader import StoreReader, as_store

_BLOCK_RECORDS = 64  # read at once


class Item(TypedDict, total=False):
    """One record.

    Attributes:
        signal: (C, T) float32, normalised; 0 where nothing was recorded. Of the leads that the
            `Normalisation` names.
        row: its row in the store.
        label: 1.0 for a case, 0.0 for a control; only where the data set has labels.
    """

    signal: Tensor
    row: int
    label: float


class EcgDataset(Dataset[Item]):
    """Records of a store by number, for `torch.utils.data.DataLoader` with any sampler and workers.

    Args:
        store: an open store, or its path.
        select: an expression such as ``split=train and site=1``, or (R,) int64 store rows.
        labels: what a case is, such as ``ejection_fraction<40``: items have labels, and records of
            which this is not known are left out.
        normalise: "record_lead" z-scores each lead, "record" all leads together, "none" gives
            millivolt, or a `Normalisation` with the statistics that it needs.

    Attributes:
        rows: (R,) int64, the store's row of each item.
    """

    def __init__(
        self,
        store: StoreReader | str | Path,
        *,
        select: str | NDArray[np.int64] | None = None,
        labels: str | None = None,
        normalise: str | Normalisation = "record_lead",
    ) -> None:
        self._store = as_store(store)
        self.rows = selected_rows(self._store, select)
        self._labels: NDArray[np.float32] | None = None
        if labels is not None:
            self.rows, self._labels = labelled_rows(self._store, self.rows, labels)
        if isinstance(normalise, str):
            normalise = Normalisation(mode=normalise)
        self._mean_NC, self._rstd_NC = normalise.mean_and_rstd(self._store)
        self._leads: slice | list[int] = slice(None)
        if normalise.leads is not None:
            self._leads = normalise.lead_numbers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Item:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Item]:
        """Several records in one read; `DataLoader` calls it for each batch."""
        return self.of_rows(self.rows[np.asarray(numbers, np.int64)])

    def of_rows(self, rows: NDArray[np.int64]) -> list[Item]:
        """Items of some rows of the store, in one read."""
        adc_BCT = self._store.read(rows)
        signal_BCT = adc_BCT.astype(np.float32)
        signal_BCT -= self._mean_NC[rows][..., None]
        signal_BCT *= self._rstd_NC[rows][..., None]
        signal_BCT[adc_BCT == INVALID] = 0
        items = []
        taken_BCT = torch.from_numpy(signal_BCT)[:, self._leads]
        for row, signal_CT in zip(rows.tolist(), taken_BCT, strict=True):
            item = Item(signal=signal_CT, row=row)
            if self._labels is not None:
                item["label"] = float(self._labels[row])
            items.append(item)
        return items


class EcgStream(IterableDataset[Item]):
    """Records of a store one after the other, each in one `DataLoader` worker and one rank.

    Args:
        dataset: whose items come.
        seed: with the epoch, fixes the order.
        shuffle: random order, new in each epoch.
        rank: of this process.
        world_size: number of processes that share an epoch.
    """

    def __init__(
        self,
        dataset: EcgDataset,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._dataset = dataset
        self._order = RankOrder(
            index=dataset.rows,
            batch_size=_BLOCK_RECORDS,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=False,
            shuffle=shuffle,
        )
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass, as of `torch.utils.data.DistributedSampler`."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for rows in self._order.batches(self._epoch)[first::step]:
            yield from self._dataset.of_rows(rows)
