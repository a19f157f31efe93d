#!/bin/sh
# Make the environments of the engines that benchmarks compare Cierzo with, each a venv of its own.
#
#     benchmarks/rivals/install.sh [FOLDER]          default: ~/.cache/cierzo-rivals
#
# llama.cpp is compiled for this machine's instruction sets by clang 19 (Debian: apt-get install clang-19), because gcc
# 12's build crashes on AMX. PYTHON, CC and CXX choose others; JOBS, how many files are compiled at once. transformers
# is measured in Cierzo's own environment (its `test` extra).
set -eu

folder=${1:-$HOME/.cache/cierzo-rivals}
export CC="${CC:-clang-19}" CXX="${CXX:-clang++-19}" CMAKE_ARGS="${CMAKE_ARGS:--DGGML_NATIVE=ON}"
export CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(nproc)}"
command -v "$CXX" >/dev/null || { echo "error: there is no $CXX: install it, or name another as CC and CXX" >&2; exit 1; }

make_venv() { # NAME [PIP OPTION]... PACKAGE
    name=$1
    shift
    "${PYTHON:-python3}" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    echo "$folder/$name"
}

make_venv openvino openvino-genai==2026.4.1.0
# A cached one has other flags; its server is what benchmarks/serve.py loads.
make_venv llama.cpp --no-cache-dir --no-binary llama-cpp-python 'llama-cpp-python[server]==0.3.36'
echo "$("$CXX" --version | head -n 1); $CMAKE_ARGS" >"$folder/llama.cpp/built-with"
