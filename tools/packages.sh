#!/usr/bin/env bash
# packages.sh GROUP...: installs the distribution packages of these groups that are absent, and says
# which. Does nothing, in a few milliseconds, when nothing is absent. Without apt it says what is
# needed and leaves it to you.
set -euo pipefail

group_packages() {
    case $1 in
    build) echo gcc g++ libc6-dev binutils liburing-dev libhwloc-dev libjemalloc-dev libcmocka-dev \
        libdnnl-dev libjansson-dev libpcre2-dev libxxhash-dev zlib1g-dev libbz2-dev libzstd-dev ;;
    plot) echo gnuplot-nox ;;
    demo) echo fortunes-cs ;;
    reference) echo python3 python3-torch python3-numpy python3-venv ;;
    fio) echo fio ;;
    format) echo clang-format ;;
    bare-system) echo debootstrap git ;;
    *) echo "packages.sh: unknown group $1" >&2 && exit 2 ;;
    esac
}

# Without dpkg there is no asking by name: what counts is that the headers and programs are there.
check_without_dpkg() {
    local header missing=
    for header in liburing.h hwloc.h jemalloc/jemalloc.h jansson.h xxhash.h oneapi/dnnl/dnnl.h \
        zlib.h bzlib.h zstd.h; do
        echo "#include <$header>" | gcc -E - >/dev/null 2>&1 || missing+=" $header"
    done
    [ -z "$missing" ] && exit 0
    echo "This system has no apt, so install these yourself (their development files too):" >&2
    echo "  gcc, g++, liburing, hwloc, jemalloc, cmocka, oneDNN, jansson, PCRE2, xxHash, zlib, bzip2, zstd" >&2
    echo "Not found:$missing" >&2
    exit 1
}

packages=
for group in "$@"; do
    packages+=" $(group_packages "$group")"
done
command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || check_without_dpkg

missing=
# dpkg-query fails for names that it has never heard of; they stay out of its list, so are missing.
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $packages 2>/dev/null || true)
for package in $packages; do
    grep -qx "installed $package" <<<"$installed" || missing+=" $package"
done
[ -z "$missing" ] && exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "These packages are missing and there is no sudo; as root, run:" >&2
        echo "  apt-get install$missing" >&2
        exit 1
    }
    as_root="sudo"
fi
echo "Installing missing packages (apt-get):$missing"
install() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        $missing </dev/null
}
# A fresh system has no package lists, an old one has lists whose files are gone: both are mended by
# an update, which is slow and so comes second.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! install >"$log" 2>&1; then
    $as_root apt-get update -q >"$log" 2>&1 && install >"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        echo "packages.sh: apt-get could not install:$missing" >&2
        exit 1
    }
fi
