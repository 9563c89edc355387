"""Small data sets in the layouts that their publishers chose, file by file; all signals are noise.

Each function writes a folder as it lies after the download. Two cases in three per target differ
by parity of the record's number, so that a label that moved to another record is seen.
"""

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
from recordings import ecg_like, write_wfdb

NUM_RECORDS = 24
CODES = ("164889003", "426783006")  # atrial fibrillation in even records, sinus rhythm in odd ones


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def ptb_xl(folder: Path) -> None:
    """Records at 500 Hz, table of records with folds, table of statements."""
    statements = [
        ("NORM", "normal ECG", "1.0", "", "", "NORM", "NORM"),
        ("IMI", "inferior myocardial infarction", "1.0", "", "", "MI", "IMI"),
        ("LVH", "left ventricular hypertrophy", "1.0", "", "", "HYP", "LVH"),
        ("SR", "sinus rhythm", "", "", "1.0", "", ""),
    ]
    names = ("", "description", "diagnostic", "form", "rhythm", "diagnostic_class")
    folder.mkdir(parents=True)
    write_csv(folder / "scp_statements.csv", (*names, "diagnostic_subclass"), statements)
    codes = ("{'NORM': 100.0, 'SR': 0.0}", "{'IMI': 15.0, 'LVH': 0.0, 'SR': 0.0}", "{'SR': 0.0}")
    header = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold")
    rows = []
    for number, signal in enumerate(ecg_like(NUM_RECORDS, seed=1)):
        path = f"records500/00000/{number + 1:05d}_hr"
        write_wfdb(folder / path, signal)
        fold, lr = 1 + number % 10, path.replace("500", "100").replace("hr", "lr")
        known = (number + 1, f"{number + 1000}.0", 300.0 if number == 3 else 50.0, number % 2)
        rows.append((*known, "sinus\nrhythm", codes[number % 3], fold, lr, path))
    write_csv(folder / "ptbxl_database.csv", (*header, "filename_lr", "filename_hr"), rows)


def snomed(folder: Path, paths: Sequence[str]) -> None:
    """Records of the challenges and of Chapman: codes in the comments of the headers."""
    for number, signal in enumerate(ecg_like(NUM_RECORDS, seed=2)):
        path = folder / paths[number % len(paths)] / f"JS{number:05d}"
        dx = f"Dx: {CODES[number % 2]},55827005"
        write_wfdb(path, signal, comments=["Age: 59", "Sex: Female", dx, "Rx: Unknown"])


def chapman(folder: Path) -> None:
    """WFDBRecords/01/010/JS00001, and the table of codes."""
    snomed(folder, ["WFDBRecords/01/010", "WFDBRecords/01/011"])
    names = [("AFIB", "Atrial Fibrillation", CODES[0]), ("SR", "Sinus Rhythm", CODES[1])]
    write_csv(
        folder / "ConditionNames_SNOMED-CT.csv", ("Acronym Name", "Full Name", "Snomed_CT"), names
    )


def cinc2021(folder: Path) -> None:
    """training/georgia/g1/..., a folder for each database."""
    snomed(folder, ["training/georgia/g1", "training/ningbo/g1"])


def code_15(folder: Path) -> None:
    """Two parts of tracings, each with a last row of zeros, and exams.csv in another order."""
    folder.mkdir(parents=True)
    signals = ecg_like(NUM_RECORDS, seed=3, num_timesteps=4096) / np.float32(1000)
    half, rows = NUM_RECORDS // 2, []
    for part in range(2):
        numbers = range(part * half, (part + 1) * half)
        tracings = np.zeros((half + 1, 4096, 12), np.float32)
        tracings[:half] = signals[list(numbers)].transpose(0, 2, 1)
        with h5py.File(folder / f"exams_part{part}.hdf5", "w") as file:
            file["exam_id"] = np.array([*(1000 + n for n in numbers), 0])
            file["tracings"] = tracings
        for number in numbers:
            flags = [str(number % 2 == 0), *["False"] * 5]
            who = (1000 + number, 60, number % 2 == 1, 61.5)
            rows.append((*who, *flags, 500 + number, "", "", "True", f"exams_part{part}.hdf5"))
    header = "exam_id age is_male nn_predicted_age 1dAVb RBBB LBBB SB ST AF patient_id death timey"
    names = (*header.split(), "normal_ecg", "trace_file")
    write_csv(folder / "exams.csv", names, reversed(rows))


def mimic_iv_ecg(folder: Path, *, with_echo: bool = False) -> None:
    """files/p1000/p10000032/s40689238/40689238, the list, the measurements, perhaps echoes."""
    listed, measured, echo = [], [], []
    marks = ("p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis", "t_axis")
    reports = [f"report_{number}" for number in range(18)]
    for number, signal in enumerate(ecg_like(NUM_RECORDS, seed=4)):
        patient, study, day = 10_000_032 + number, 40_689_238 + number, f"2180-03-{number + 1:02d}"
        path = f"files/p1000/p{patient}/s{study}/{study}"
        date = f"20:09:00 {number + 1:02d}/03/2180"
        write_wfdb(folder / path, signal, comments=[f"<subject_id>: {patient}"], date=date)
        listed.append((patient, study, study, f"{day} 20:09:00", path))
        said = "Atrial fibrillation" if number % 2 == 0 else "Sinus rhythm"
        words = [said, "Abnormal ECG", *[""] * 16]
        times = (29_999 if number % 2 == 0 else 40, 140, 180, 276, 600, 29_999, 10, 20)
        measured.append((patient, study, 6, f"{day} 20:09:00", *words, "", "", 800, *times))
        for name, result in (("lvef", "30" if number % 2 == 0 else "60"), ("height_cm", "170")):
            echo.append((patient, number, f"{day} 09:00:00", "tte", name, "", result, ""))
        echo.append((patient, number + 100, f"{day} 10:00:00", "tee", "lvef", "", "45", "%"))
    write_csv(
        folder / "record_list.csv",
        ["subject_id", "study_id", "file_name", "ecg_time", "path"],
        listed,
    )
    names = ("subject_id", "study_id", "cart_id", "ecg_time", *reports, "bandwidth", "filtering")
    write_csv(folder / "machine_measurements.csv", (*names, "rr_interval", *marks), measured)
    if with_echo:
        header = "subject_id measurement_id measurement_datetime test_type measurement"
        names = (*header.split(), "measurement_description", "result", "unit")
        write_csv(folder / "structured-measurement.csv.gz", names, echo)


def echonext(folder: Path, flags: Sequence[str]) -> None:
    """Three arrays (N, 1, 2500, 12) of z-scores, and the metadata with rows of no split between."""
    folder.mkdir(parents=True)
    splits = ["train"] * 14 + ["val"] * 5 + ["test"] * 5
    signals = ecg_like(NUM_RECORDS, seed=5, num_timesteps=2500) / 200.0
    for split in ("train", "val", "test"):
        chosen = [number for number, each in enumerate(splits) if each == split]
        array = signals[chosen].transpose(0, 2, 1)[:, None]
        np.save(folder / f"EchoNext_{split}_waveforms.npy", array)
    rows = []
    for number, split in enumerate(splits):
        rows.append((900 + number, split, 70, number % 2, *[int(number % 2 == 0)] * len(flags)))
        rows.append((100 + number, "no_split", 70, 1, *[1] * len(flags)))
    names = ("patient_key", "split", "age_at_ecg", "sex", *flags)
    write_csv(folder / "echonext_metadata_100k.csv", names, rows)
