#!/usr/bin/env bash
# demo_distill.sh CONVPASS: a small BiT from scratch learns from the demo's fine-tuned ViT-S/14 on
# 10,000 images without their labels, once with fixed views and once as FunMatch, at equal steps.
# Prints a table and draws agreement with the teacher over steps. A finished run is kept; delete
# runs/distill-* to train again.
set -euo pipefail
cd "$(dirname "$0")/.."
convpass=$1
views=(fix_rs mix)

if [ ! -e runs/demo-convpass/result.json ]; then
  echo "demo-distill: the teacher is runs/demo-convpass, which make demo trains" >&2
  exit 2
fi
for view in "${views[@]}"; do
  run=runs/distill-$view
  if [ -e "$run/result.json" ]; then
    echo "demo-distill: $run is finished (delete it to train again)" >&2
    continue
  fi
  echo "demo-distill: $convpass train recipes/demo/distill_$view.json --out $run" >&2
  "$convpass" train "recipes/demo/distill_$view.json" --out "$run" --resume >/dev/null
done
python3 scripts/distill_report.py runs/distill-agreement.svg "${views[@]/#/runs/distill-}"
