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
version=0.3.36
# A cached one has other flags.
make_venv llama.cpp --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==$version cmake ninja
echo "$("$CXX" --version | head -n 1); $CMAKE_ARGS" >"$folder/llama.cpp/built-with"

# llama.cpp's own server, which benchmarks/serve.py loads: that package has its source, but does not build it.
bin=$folder/llama.cpp/bin
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
"$bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --dest "$source" llama-cpp-python==$version
tar xzf "$source"/llama_cpp_python-$version.tar.gz -C "$source" --strip-components 1
# CMAKE_ARGS is a list of options.
PATH="$bin:$PATH" cmake -S "$source/vendor/llama.cpp" -B "$source/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_TESTS=OFF $CMAKE_ARGS >/dev/null
PATH="$bin:$PATH" cmake --build "$source/build" --target llama-server >/dev/null
cp "$source/build/bin/llama-server" "$bin/"
echo "$bin/llama-server"
