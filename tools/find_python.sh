#!/usr/bin/env bash
# Prints the path of the newest Python that requirements.txt installs on, or says why there is none.
# PYTHON=... replaces the search. Only bash builtins, so that any PATH will do.
#   tools/find_python.sh [NEWEST]    with NEWEST such as 3.11, none that is newer
set -euo pipefail

# TensorFlow Datasets as pinned asks for 3.10 or later, TensorFlow 2.21 has wheels up to 3.13.
oldest=3.10
newest=${1:-3.13}

if [[ -n ${PYTHON:-} ]]; then
  names=("$PYTHON")
else
  names=()
  for ((minor = ${newest#3.}; minor >= ${oldest#3.}; minor--)); do
    names+=("python3.$minor")
  done
  names+=(python3 python)
fi

found=()
for name in "${names[@]}"; do
  while read -r path; do
    # Being on PATH is not enough: a pyenv shim may stand for a version that is not active.
    version=$("$path" -c 'import platform; print(platform.python_version())' 2>&1) ||
      version="does not run"
    if ! [[ $version =~ ^3\.([0-9]+)\. ]] ||
      ((BASH_REMATCH[1] < ${oldest#3.} || BASH_REMATCH[1] > ${newest#3.})); then
      found+=("$path: $version")
    elif ! "$path" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      found+=("$path: $version without the venv module")
    else
      echo "$path"
      exit 0
    fi
  done < <(type -aP "$name")
done

{
  echo "No usable Python: Python $oldest to $newest is needed."
  if ((${#found[@]})); then
    echo "Found only:"
    printf '  %s\n' "${found[@]}"
  else
    echo "Found none as: ${names[*]}."
  fi
  echo "Install one of these, or name one: make PYTHON=/path/to/python$newest ..."
} >&2
exit 1
