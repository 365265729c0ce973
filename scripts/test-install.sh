#!/usr/bin/env bash
# Install a distribution into a new environment and check that it serves a kernel: test-install.sh PYTHON FILE
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1 file=$(readlink -f "$2")
work=$(mktemp -d)
trap 'kill $(jobs -pr) 2>/dev/null || true; rm -rf "$work"' EXIT

bash "$here/make-venv.sh" "$work/venv" "$python"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$file" ipykernel
cp "$here/check_gateway.py" "$work"
cd "$work" # away from the sources
"$work/venv/bin/jupyter" enterprisegateway --version
"$work/venv/bin/jupyter" enterprisegateway-kernelspecs install python_distributed --sys-prefix
[ -f "$work/venv/share/jupyter/kernels/python_distributed/scripts/launch_ipykernel.py" ]
port=$("$work/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/venv/bin/jupyter-enterprisegateway" --port="$port" --port_retries=0 &
"$work/venv/bin/python" check_gateway.py "http://127.0.0.1:$port"
echo "$(basename "$file") works"
