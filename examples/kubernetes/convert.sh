#!/usr/bin/env bash
# Runs the Jobs of convert.yaml, each when the one before it is complete
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for step in plan units seal; do
    kubectl apply --filename "$here/convert.yaml" --selector "step=$step"
    kubectl wait --for=condition=complete --timeout=24h "job/convert-$step"
done
