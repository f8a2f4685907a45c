#!/usr/bin/env bash
# Prints the path of a Python that requirements.txt installs on, or says why there is none.
# PYTHON=... replaces the search. Only bash builtins, so that any PATH will do.
set -euo pipefail

# TensorFlow 2.15 has wheels for 3.9 to 3.11, but tensorflow-datasets as pinned asks for 3.10 or
# later. 3.9 is looked up all the same, so that the message names it.
accepted='3.10 or 3.11'

if [[ -n ${PYTHON:-} ]]; then
  names=("$PYTHON")
else
  names=(python3.11 python3.10 python3.9 python3 python)
fi

found=()
for name in "${names[@]}"; do
  while read -r path; do
    # Being on PATH is not enough: a pyenv shim may stand for a version that is not active.
    version=$("$path" -c 'import platform; print(platform.python_version())' 2>&1) ||
      version="does not run"
    if [[ $version != 3.1[01].* ]]; then
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
  echo "No usable Python: Python $accepted is needed, as the pins in requirements.txt ask."
  if ((${#found[@]})); then
    echo "Found only:"
    printf '  %s\n' "${found[@]}"
  else
    echo "Found none as: ${names[*]}."
  fi
  echo "Install Python $accepted, or name one: make PYTHON=/path/to/python3.11 ..."
} >&2
exit 1
