#!/usr/bin/env bash
# Installs the peers of tests/interop under build/interop: the Node packages, the published tests of one of them, libcurl
# with WebSocket support, the Autobahn suite.
#
# Needs node, npm, a C compiler, the project's virtual environment (VENV, default .venv) and, for the suite, Python 2.7 with
# pip (PYTHON27, default: python2.7 of the path, else of pyenv, else one that was installed beside python3). No package
# registry has a Python 2.7, so where there is none the suite is left out and its test says so; with CI set that is an
# error. A peer whose stamp matches is left alone, so that a second run takes no time and no network.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
dest=$root/build/interop
mkdir -p "$dest"

python=$root/${VENV:-.venv}/bin/python
case ${VENV:-} in /*) python=$VENV/bin/python ;; esac

find_python27() {
    local candidate beside
    beside=$(dirname "$("$python" -c 'import sys; print(sys.base_prefix)')")
    for candidate in "${PYTHON27:-}" "$(command -v python2.7 || true)" \
        "$(pyenv root 2>/dev/null || true)"/versions/2.7*/bin/python2.7 "$beside"/2.7*/bin/python2.7; do
        # A pyenv shim exists for every version but runs only the selected ones, so ask it.
        if [ -n "$candidate" ] && "$candidate" -c 'import ensurepip' >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "tests/interop/install.sh: Python 2.7 with pip is needed for the Autobahn suite; set PYTHON27" >&2
}

# install NAME STAMP COMMAND...: runs COMMAND with an empty $dest/NAME unless it was made for the same STAMP.
install() {
    local name=$1 stamp=$2
    shift 2
    if [ "$(cat "$dest/$name/.stamp" 2>/dev/null)" != "$stamp" ]; then
        rm -rf "${dest:?}/$name"
        mkdir -p "$dest/$name"
        if ! "$@" >"$dest/$name.log" 2>&1; then
            cat "$dest/$name.log" >&2
            echo "tests/interop/install.sh: installing $name failed" >&2
            return 1
        fi
        echo "$stamp" >"$dest/$name/.stamp"
    fi
}

install_node() {
    cp "$here/node/package.json" "$dest/node/"
    npm install --prefix "$dest/node" --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
}

# Jest passes over everything in a folder node_modules, so the package stands beside it once more.
install_suite() {
    cp "$here/suite/package.json" "$dest/suite/"
    npm install --prefix "$dest/suite" --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
    cp -r "$dest/suite/node_modules/hyco-https" "$dest/suite/hyco-https"
}

install_curl() {
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$dest/curl" "$pycurl"
}

# The user scheme, not --target: zope is a namespace package that needs its .pth file read.
install_autobahn() {
    "$python27" -m pip --version || "$python27" -m ensurepip --user
    "$python27" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --user -r "$here/autobahn.txt"
    printf '%s\n' "$python27" >"$dest/autobahn/python"
}

pycurl="pycurl==7.49.0" # its wheels bundle a libcurl that speaks ws and wss; Debian 12's curl program does not
python27=$(find_python27)
[ -n "$python27" ] || [ -z "${CI:-}" ] || exit 1
export PYTHONUSERBASE=$dest/autobahn

install node "$(node --version) $(cksum <"$here/node/package.json")" install_node
install suite "$(node --version) $(cksum <"$here/suite/package.json")" install_suite
install curl "$("$python" --version) $pycurl" install_curl
[ -z "$python27" ] || install autobahn "$python27 $(cksum <"$here/autobahn.txt")" install_autobahn
