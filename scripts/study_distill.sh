#!/usr/bin/env bash
# study_distill.sh CONVPASS OUT: the study behind docs/distillation.md. Two students (a small BiT from
# scratch; the first 6 blocks of the demo's ViT-S/14, frozen, with Convpass) learn from the demo's
# fine-tuned ViT-S/14 on 10,000 images without their labels: every view at equal steps, and `mix` at
# two and four times the steps, each with three seeds. STEPS (default 100) is the length of a run, SEEDS
# the seeds, VIEWS the views. Runs are resumed and finished ones kept, so that it can be stopped at any
# time. What the teacher says is stored and serves both students. study_table.py prints the result.
set -euo pipefail
cd "$(dirname "$0")/.."
convpass=$1 out=$2
steps=${STEPS:-100}
read -ra seeds <<<"${SEEDS:-0 1 2}"
read -ra views <<<"${VIEWS:-fix_rs fix_cc fix_ic_ens ind_rc ind_ic same_rc same_ic mix}"
bit=()
vit=(--set backbone.weights=demo/vit_s14.safetensors --set backbone.variant=auto --set backbone.blocks=6
  --set backbone.trainable=false --set adapter.type=convpass --set adapter.conv_init=xavier
  --set optimizer.type=adamw --set optimizer.lr=1e-3 --set train.precision=auto)

# run NAME STEPS OPTION...
run() {
  local run=$out/$1 length=$2
  shift 2
  [ -e "$run/result.json" ] && return
  "$convpass" train recipes/demo/distill_base.json --out "$run" --resume "$@" \
    --set train.steps="$length" --set schedule.warmup=$((length / 10)) >/dev/null
}

for seed in "${seeds[@]}"; do
  for view in "${views[@]}"; do
    extra=(--set distill.view="$view" --set distill.ensemble_crops=16 --set train.seed="$seed")
    case $view in
      fix_rs) ;;
      *_rc | fix_cc) extra+=(--set augment.flip=0.5 --set augment.resize_to=64) ;;
      *) extra+=(--set augment.flip=0.5) ;;
    esac
    factors=(1)
    [ "$view" = mix ] && factors=(1 2 4)
    for factor in "${factors[@]}"; do
      case $view in
        fix_*) store=$out/$view.store ;;  # asked once, whatever the seed
        *) store=$out/$view-x$factor-seed$seed.store ;;
      esac
      for student in bit vit; do
        declare -n settings=$student
        run "$student-$view-x$factor-seed$seed" $((factor * steps)) "${settings[@]}" "${extra[@]}" \
          --set distill.store.file="$store"
      done
    done
  done
done
python3 scripts/study_table.py "$out"
