"""The values that options and settings may have: each list once, for command line and engines."""

from typing import Literal

# Settings of a run.
RunKind = Literal["pretrain", "finetune"]
ModelKind = Literal["vit", "cnn", "resnet1d_wang"]
Pool = Literal["cls", "mean", "lead_mean_max"]
HeadInit = Literal["xavier", "prior"]
ClassWeights = Literal["none", "balanced"]
TaskKind = Literal["binary"]
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
