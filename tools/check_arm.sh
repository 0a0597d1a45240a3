#!/usr/bin/env bash
# The CPU's kernels for ARM, on any Linux machine: compiled with Debian's cross compiler and run in qemu, as processors
# with products of byte matrices (i8mm), with dot products of bytes (dotprod) and with neither (neon).
#
#     tools/check_arm.sh [PYTHON]
#
# PYTHON has cmake and ninja beside it; without it those of PATH are taken. What Debian's packages lack is installed with
# apt-get, where that is there and may install; else one line says that nothing was checked, and the exit code is 0.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
if (($#)); then PATH="$(cd "$(dirname "$1")" && pwd):$PATH"; fi
skip() { echo "check_arm: skipped: $1"; exit 0; }

missing=()
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
if ((${#missing[@]})); then
  command -v apt-get >/dev/null || skip "no ${missing[*]}, and no apt-get"
  log="$(mktemp)"
  # Some hold lists of packages that are too old, some none.
  { apt-get install -y -qq "${missing[@]}" || { apt-get update -qq && apt-get install -y -qq "${missing[@]}"; }; } >"$log" 2>&1 \
    || { tail -n 1 "$log"; rm -f "$log"; skip "apt-get does not install ${missing[*]}"; }
  rm -f "$log"
fi
command -v cmake >/dev/null && command -v ninja >/dev/null || { echo "check_arm: error: no cmake and ninja on PATH"; exit 2; }

place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
# Compiled with the threads of $1.
compile() {
  cmake -S "$root" -B "$place/$1" -G Ninja -DSPLIP_KERNEL_CHECK=ON -DSPLIP_THREADS="$1" -DSPLIP_CUDA=off -DSPLIP_VERSION=check \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DCMAKE_CXX_FLAGS=-Werror >"$place/log" 2>&1 && cmake --build "$place/$1" -j 2 >>"$place/log" 2>&1 || { cat "$place/log"; exit 1; }
}
# With the threads of $1 on a processor like $2, which has to choose the kernels of $3.
check() {
  echo "$2, threads of $1: $(OMP_WAIT_POLICY=passive timeout 100 \
    qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu "$2" "$place/$1/kernel_check" "$3" emulated | tee "$place/said" | tail -n 1)"
  grep -q 'checks passed' "$place/said"
}
compile openmp
check openmp max i8mm
check openmp cortex-a76 dotprod
check openmp cortex-a72 neon
compile std
check std max i8mm
echo "check_arm: passed in $SECONDS s: i8mm, dotprod, neon, scalar"
