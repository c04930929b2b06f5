#!/usr/bin/env bash
# study_usi.sh CONVPASS OUT: what USI gains on Fashion-MNIST, three seeds each, at equal epochs.
#   resnet-alone, resnet-teacher      recipes/demo/usi.json without and with the teacher
#   convpass-plain, convpass-augment, convpass-usi
#                                     the demo's frozen ViT-S/14 with Convpass: as in the demo, with USI's
#                                     augmentation, and with that and the demo's run as the teacher
# EPOCHS (default 10) is the length of a run, SEEDS the seeds. Finished runs are kept. PYTHON makes the
# ResNets and needs torch.
set -euo pipefail
cd "$(dirname "$0")/.."
convpass=$1 out=$2
epochs=${EPOCHS:-10}
read -ra seeds <<<"${SEEDS:-0 1 2}"
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"

# run NAME RECIPE OPTION...
run() {
  local run=$out/$1 recipe=$2
  shift 2
  [ -e "$run/result.json" ] && return
  "$convpass" train "$recipe" --out "$run" --resume --set train.epochs="$epochs" "$@" >/dev/null
}

for seed in "${seeds[@]}"; do
  resnet=$out/resnet$seed.pt
  [ -e "$resnet" ] || "$python" scripts/demo_student.py "$resnet" "$seed"
  options=(--set backbone.weights="$resnet" --set train.seed="$seed" --set train.eval_every="$epochs")
  run "resnet-alone-seed$seed" recipes/demo/usi.json "${options[@]}" --set distill.teachers=[]
  run "resnet-teacher-seed$seed" recipes/demo/usi.json "${options[@]}"
  options=(--set train.seed="$seed")
  run "convpass-plain-seed$seed" recipes/demo/convpass.json "${options[@]}"
  run "convpass-augment-seed$seed" recipes/demo/usi_convpass.json "${options[@]}" --set distill.teachers=[]
  run "convpass-usi-seed$seed" recipes/demo/usi_convpass.json "${options[@]}"
done
python3 scripts/usi_table.py "$out"/*-seed*
