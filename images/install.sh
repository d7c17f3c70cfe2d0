#!/bin/sh
# Installs into /opt/venv what a lock file pins, or a wheel, while an image is built.
#
#   install.sh LOCK.txt|PACKAGE.whl
#
# INDEX                 address of the package index; empty: the installer's own
# TORCH                 whose torch: `lock`, the one that is pinned; `base`, the one that the base image brings; or the
#                       address of an index with another build of it, for CPUs alone or for another CUDA
# /run/secrets/ca       certificates to trust, such as a proxy's; else those of the base image
# /run/secrets/netrc    names and passwords for the indexes
set -eu

uv() { /tools/bin/uv --quiet --no-cache --no-python-downloads "$@"; }
install() { uv pip install --python /opt/venv/bin/python --link-mode copy --compile-bytecode "$@"; }

if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi
if [ -s /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi
if [ -n "${INDEX:-}" ]; then export UV_DEFAULT_INDEX="$INDEX"; fi

if [ ! -d /opt/venv ]; then
    uv venv --python "$(command -v python3)" $([ "$TORCH" != base ] || echo --system-site-packages) /opt/venv
fi

case $1 in
*.whl)
    install --offline --no-deps "$1"
    exit
    ;;
esac

# A lock is complete, so that nothing is left to resolve. Another torch needs other libraries than the pinned one.
pins=$(mktemp)
case $TORCH in
lock) cat "$1" ;;
*) awk '/^[a-z0-9]/ { is_of_torch = /^(torch==|triton==|nvidia-|cuda-)/ } !is_of_torch' "$1" ;;
esac >"$pins"
install --require-hashes --no-deps -r "$pins"

case $TORCH in
lock) ;;
base) /opt/venv/bin/python -c 'from importlib.metadata import version; print("torch of the base image:", version("torch"))' ;;
*)
    version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$1")
    sed -n 's/^\([a-z0-9][^\\]*\).*/\1/p' "$pins" >"$pins.versions"
    install --index "$TORCH" --constraints "$pins.versions" "torch==$version"
    rm "$pins.versions"
    ;;
esac
rm "$pins"
