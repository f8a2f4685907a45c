#!/usr/bin/env bash
# Makes a virtual environment, unless there is one that will do:
#   tools/make_venv.sh FOLDER [NEWEST]    with NEWEST such as 3.11, of no newer Python
# One will do if its Python works, has its packages and, where PYTHON=... names one, is that. Any
# other is made anew: half of it might be another Python's.
set -euo pipefail
folder=$1
find_python="${BASH_SOURCE[0]%/*}/find_python.sh"

# Which Python it is, whatever links or environments lead to it.
identity() {
  "$1" -c 'import sys; print(*sys.version_info[:3], sys.base_prefix)'
}

works() {
  "$1" -c 'import pip' 2>/dev/null && PYTHON=$1 "$find_python" "${@:2}" >/dev/null 2>&1
}

own=$folder/bin/python
if [[ -z ${PYTHON:-} ]] && works "$own" "${@:2}"; then
  exit
fi
python=$("$find_python" "${@:2}")
if works "$own" "${@:2}" && [[ $(identity "$own") == "$(identity "$python")" ]]; then
  exit
fi
if [[ -e $folder ]]; then
  echo "$folder is not a whole environment of $python: made anew"
fi
set -x
"$python" -m venv --clear "$folder"
