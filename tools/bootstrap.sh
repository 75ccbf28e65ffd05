#!/usr/bin/env bash
# Set up what the project needs: Debian packages (by apt, when root or sudo allows) and a .venv with
# the versions of requirements.lock. Called by make; does nothing when all is in place.
set -euo pipefail
cd "$(dirname "$0")/.."

# command:package
wanted="g++:g++ make:make perl:perl ip:iproute2 curl:curl nc:netcat-openbsd unshare:util-linux tshark:tshark sysctl:procps openssl:openssl tclsh:tcl mmdebstrap:mmdebstrap"
missing=()
for pair in $wanted; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair##*:}")
done

python=""
for candidate in "${PYTHON:-}" python3.11 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    missing+=(python3 python3-venv)
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=(python3-venv)
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "==> Debian packages: ${missing[*]}"
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif sudo -n true 2>/dev/null; then
        as_root="sudo"
    else
        echo "These packages are missing and neither root nor password-less sudo is at hand. Type:" >&2
        echo "    sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    python=${python:-python3}
fi

if [ ! -x .venv/bin/python ]; then
    echo "==> Python environment: .venv"
    "$python" -m venv .venv
fi
echo "==> Python packages: requirements.lock"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
