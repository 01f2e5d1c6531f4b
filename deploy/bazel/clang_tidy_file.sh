#!/bin/bash
# Runs clang-tidy on one source file; deploy/lint calls it from the workspace root, after building
# the generated headers. There is no compile database: the options below stand for the build's.
# A file that passed is not looked at again until its preprocessed text or the checks change.
set -euo pipefail
file=$1

options=(-std=c++17 -x c++ -I. -Ibazel-bin -isystem bazel-bin/external/googleapis)
# What the overlays of spdlog and Highway define; of Highway's targets one is enough to look at.
options+=(-DSPDLOG_COMPILED_LIB -DSPDLOG_FMT_EXTERNAL -DSPDLOG_SHARED_LIB)
options+=(-DHWY_SHARED_DEFINE -DHWY_COMPILE_ONLY_STATIC)
# As deploy/bazel/cuda_toolkit.bzl does.
for folder in ${CUDA_HOME:+"$CUDA_HOME"} /usr/local/cuda .tools/cuda/nvidia/cu13; do
  if [ -e "$folder/include/cuda_runtime_api.h" ]; then
    options+=(-isystem "$folder/include")
    break
  fi
done
while read -r folder; do
  options+=(-isystem "$folder")
done < <(find bazel-bin/proto/ -type d -name cc 2>/dev/null)

text=$(mktemp)
trap 'rm -f "$text"' EXIT
if ! clang++-14 "${options[@]}" -E -C "$file" -o "$text" 2>"$text.err"; then
  # Sources for the GPU need a toolkit, which not every machine has.
  if grep -qE "'cuda[a-z_]*\.h' file not found" "$text.err"; then
    echo "lint: $file needs a CUDA toolkit, not looked at"
    rm -f "$text.err"
    exit 0
  fi
  cat "$text.err"
  rm -f "$text.err"
  exit 1
fi
rm -f "$text.err"

stamp=.cache/tidy/$(cat "$text" .clang-tidy "$0" | sha256sum | cut -d' ' -f1)
[ ! -e "$stamp" ] || exit 0
# On a pass it still counts the warnings that it suppressed in system headers.
if ! output=$(clang-tidy-14 --quiet "$file" -- "${options[@]}" 2>&1); then
  echo "$output"
  exit 1
fi
mkdir -p .cache/tidy
touch "$stamp"
