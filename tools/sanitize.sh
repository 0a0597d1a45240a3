#!/usr/bin/env bash
# The op tests with the native module under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     tools/sanitize.sh [PYTHON] [pytest options]
#
# PYTHON has splip's test extra, pybind11, cmake and ninja. The module is built in a temporary folder.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="$(realpath -s "${1:-python3}")"
shift || true
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
"$python" -m cmake --version >/dev/null 2>&1 && cmake=("$python" -m cmake) || cmake=("$(dirname "$python")/cmake")
"${cmake[@]}" -S "$root" -B "$place/build" -DSPLIP_CUDA=off -DSPLIP_VERSION=sanitized -DPython_EXECUTABLE="$python" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DCMAKE_CXX_FLAGS="$flags" -DCMAKE_CXX_FLAGS_RELEASE="-O1" >/dev/null
"${cmake[@]}" --build "$place/build" -j 2 >/dev/null
mkdir "$place/python"
cp -r "$root/python/splip" "$place/python/"
rm -f "$place"/python/splip/_C*.so
cp "$place"/build/_C*.so "$place/python/splip/"
# The interpreter is not instrumented: the sanitizer is loaded before it, and its own leaks are not ours.
export LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_WAIT_POLICY=passive PYTHONPATH="$place/python"
cd "$root"
"$python" -c 'from splip import _C; assert _C.version == "sanitized", _C.__file__'
"$python" -m pytest -q -p no:cacheprovider -m "" tests/ops/test_packed_topk.py tests/ops/test_packed_bounds.py tests/ops/test_cosine_topk.py \
  tests/ops/test_prompt_layernorm.py tests/ops/test_patchify.py "$@"
