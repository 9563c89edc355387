"""The values that options and settings may have: each list once, for command line and engines."""

from collections.abc import Iterable
from typing import Literal, get_args

Lead = Literal["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]

# Settings of a run.
RunKind = Literal["pretrain", "finetune"]
ModelKind = Literal["vit", "cnn", "resnet1d_wang"]
Pool = Literal["cls", "mean", "lead_mean_max"]
HeadInit = Literal["xavier", "prior"]
ClassWeights = Literal["none", "balanced"]
NumberLoss = Literal["squared", "huber"]
Schedule = Literal["constant", "cosine"]
Kernels = Literal["auto", "triton", "reference"]
AttentionKernel = Literal[
    "auto", "triton", "xformers", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "math"
]
Fused = Literal["off", "separate", "triton", "quack"]
Precision = Literal["fp32", "bf16"]
Parallel = Literal["fsdp", "replicas"]
Mesh = Literal["auto", "flat", "hybrid"]
EngineName = Literal["auto", "resident", "dali", "cpu"]
Normalise = Literal["record_lead", "record", "cohort_lead", "none"]

# Options of stores and labels.
Codec = Literal["ecgpack", "zstd", "none"]
WindowChoice = Literal["first", "all"]
Short = Literal["quarantine", "pad"]
Quality = Literal["flag", "strict"]
OnBad = Literal["quarantine", "fail"]
Stage = Literal["all", "plan", "units", "seal"]
PatientIds = Literal["site", "global"]
SplitMethod = Literal["patient", "column"]
LabelPick = Literal["nearest", "first"]

# Open data sets of `ecgfast recipe`, each a section of recipes/catalogue.toml.
RecipeName = Literal["ptb-xl", "chapman", "code-15", "mimic-iv-ecg", "echonext", "cinc2021"]

# What `ecgfast estimate` answers for.
EstimateOf = Literal["pretrain", "convert"]

MOST_SEEDS = 100  # of an experiment: each is a training of every model


def leads_in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Some of the twelve leads, in the order in which every record has them.

    Raises:
        ValueError: there is none, an unknown one, or one twice; says what is allowed.
    """
    every, given = get_args(Lead), list(names)
    if not given or len({*given}) < len(given) or not {*given} <= {*every}:
        got = ", ".join(map(str, given)) or "none"
        raise ValueError(f"one or more of {', '.join(every)}, each once, got {got}")
    return tuple(lead for lead in every if lead in given)
