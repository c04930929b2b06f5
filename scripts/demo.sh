#!/usr/bin/env bash
# demo.sh CONVPASS: trains a linear probe and Convpass on 1,000 Fashion-MNIST images with a real
# pre-trained ViT-S/14, evaluates both on 2,000 test images, predicts a few, and prints a table.
# A finished run is kept; delete runs/demo-* to train again.
set -euo pipefail
cd "$(dirname "$0")/.."
convpass=$1
methods=(linear_probe convpass)

for method in "${methods[@]}"; do
  run=runs/demo-$method
  if [ -e "$run/result.json" ]; then
    echo "demo: $run is finished (delete it to train again)" >&2
    continue
  fi
  echo "demo: $convpass train recipes/demo/$method.json --out $run" >&2
  "$convpass" train "recipes/demo/$method.json" --out "$run" --resume >/dev/null
done

echo "demo: eight test images, as $convpass predict runs/demo-convpass IMAGE... sees them" >&2
python3 scripts/demo_images.py demo/fashion-mnist demo/images 8
"$convpass" predict runs/demo-convpass --top 2 demo/images/*.png
python3 scripts/demo_table.py runs/demo-linear_probe runs/demo-convpass
