#!/usr/bin/env bash
# demo_usi.sh CONVPASS: a small ResNet from scratch, as a TorchScript module, learns Fashion-MNIST by
# USI from the demo's fine-tuned ViT-S/14. Prints top-1 of its weights and of their average. The network
# is made by PYTHON (default .venv's), which needs torch. A finished run is kept; delete runs/demo-usi to
# train again.
set -euo pipefail
cd "$(dirname "$0")/.."
convpass=$1
python=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3

if [ ! -e runs/demo-convpass/result.json ]; then
  echo "demo-usi: the teacher is runs/demo-convpass, which make demo trains" >&2
  exit 2
fi
[ -e demo/student.pt ] || "$python" scripts/demo_student.py demo/student.pt
run=runs/demo-usi
if [ -e "$run/result.json" ]; then
  echo "demo-usi: $run is finished (delete it to train again)" >&2
else
  echo "demo-usi: $convpass train recipes/demo/usi.json --out $run" >&2
  "$convpass" train recipes/demo/usi.json --out "$run" --resume >/dev/null
fi
python3 scripts/usi_table.py "$run"
