#!/usr/bin/env bash
# Submits a convert to SLURM: convert.sh SOURCE STORE [PARTS]
# Run it again after a failure: what is finished is not done again.
set -euo pipefail
source=$(printf %q "$1")
store=$(printf %q "$2")
parts=${3:-16}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

plan=$(sbatch --parsable --job-name=plan --cpus-per-task=1 --time=04:00:00 \
    --wrap="ecgfast convert $source --out $store --stage plan")
units=$(sbatch --parsable --array="0-$((parts - 1))" --dependency="afterok:$plan" \
    "$here/units.sbatch" "$2")
# Not afterok: the seal names the units that are missing.
sbatch --job-name=seal --cpus-per-task=1 --mem=16G --time=04:00:00 --dependency="afterany:$units" \
    --wrap="ecgfast convert --out $store --stage seal"
