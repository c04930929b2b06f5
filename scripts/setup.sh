#!/usr/bin/env bash
# Installs what the build needs on Debian 12 or Ubuntu: system packages by apt, LibTorch from the PyPI
# wheel into .venv (unless LIBTORCH names a folder). Quick when everything is there.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_VERSION=2.13.0
PACKAGES=(g++ cmake ninja-build pkg-config python3 python3-venv clang-format libopencv-core-dev
          libopencv-imgproc-dev libopencv-imgcodecs-dev
          nlohmann-json3-dev libjpeg-dev libzip-dev zlib1g-dev libgtest-dev libbenchmark-dev ca-certificates)

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else echo "setup: no root and no sudo; ask an administrator for: $*" >&2; exit 2
  fi
}

missing=()
for package in "${PACKAGES[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || { echo "setup: no apt-get; install these yourself: ${missing[*]}" >&2; exit 2; }
  echo "setup: installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

if [ -n "${LIBTORCH:-}" ]; then
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || { echo "setup: LIBTORCH=$LIBTORCH: no lib/libtorch_cpu.so there" >&2; exit 2; }
  exit 0
fi
if ! ls .venv/lib/python3*/site-packages/torch/lib/libtorch_cpu.so >/dev/null 2>&1; then
  echo "setup: LibTorch $TORCH_VERSION from the PyPI wheel into .venv"
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "torch==$TORCH_VERSION"
fi
