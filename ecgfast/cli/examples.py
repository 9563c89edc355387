"""A line to copy for each command: what stands at the end of its help page."""

EXAMPLES = {
    "synth": "ecgfast synth cohort --records 2000 --sites 4",
    "convert": "ecgfast convert /share/ecg --out cohort --labels echo.csv",
    "label": "ecgfast label cohort echo.csv --label-window-days 14 --dry-run",
    "splits": "ecgfast splits cohort --export splits.csv --readable",
    "erase": "ecgfast erase cohort --patients ids.txt",
    "info": "ecgfast info cohort --target 'ejection_fraction<40'",
    "quality": "ecgfast quality cohort --out quality.html",
    "verify": "ecgfast verify cohort",
    "fetch": "ecgfast fetch s3://bucket/cohort /nvme/cohort",
    "pretrain": "ecgfast pretrain cohort --out runs/mae --preset vit_base --select 'site=1'",
    "finetune": "ecgfast finetune cohort --out runs/lvsd --init runs/mae",
    "evaluate": "ecgfast evaluate runs/lvsd runs/cnn cohort --out report",
    "reproduce": "ecgfast reproduce cohort --out experiment --fractions 0.1,1 --seeds 3",
    "predict": "ecgfast predict runs/lvsd new_ecg.hea --out probabilities.csv",
    "embed": "ecgfast embed runs/mae cohort --out features.parquet --pool mean",
    "reconstruct": "ecgfast reconstruct runs/mae cohort --record 1998/77 --out ecg.png",
    "bench": "ecgfast bench step --preset vit_base --json rows.jsonl",
    "estimate": "ecgfast estimate --preset vit_base --gpu A100 --gpus 1 --records 50000",
    "doctor": "ecgfast doctor",
    "demo": "ecgfast demo --out demo",
}
