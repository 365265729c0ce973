#!/usr/bin/env bash
# Create a virtual environment with python3, or else with the newest suitable Python: make-venv.sh DIRECTORY [PYTHON]
set -euo pipefail
venv=$1
candidates=(${2:-})
[ ${#candidates[@]} -gt 0 ] || candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10)

without_venv=()
for python in "${candidates[@]}"; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        without_venv+=("$python")
        continue
    fi
    echo "Creating $venv with $("$python" --version) ..."
    "$python" -m venv "$venv"
    exit 0
done

if [ ${#without_venv[@]} -gt 0 ]; then
    echo "${without_venv[0]} cannot make virtual environments. On Debian and Ubuntu, 'apt-get install python3-venv' adds that." >&2
else
    echo "No Python 3.10 or later was found as ${candidates[*]}. Install one, or name it: make PYTHON=/path/to/python3 ..." >&2
fi
exit 1
