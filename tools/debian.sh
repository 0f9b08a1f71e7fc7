# Debian packages that a script needs: sourced by run.sh, test.sh and scripts beside it. On a machine that has everything, nothing here
# needs the network or root.

# Installs a C compiler and the C library's headers, unless a program can be built already: rustc links with them.
install_c_compiler() {
    echo '#include <stdio.h>
          int main(void) { return 0; }' | cc -x c -o /dev/null - 2>/dev/null || install_packages gcc libc6-dev
}

# Installs what makes Debian packages of Rust programs.
install_cargo_deb() {
    local version=3.8.0
    [[ "$(cargo deb --version 2>/dev/null)" == *"$version" ]] ||
        cargo install --quiet --locked --debug --target-dir "${CARGO_TARGET_DIR:-target}/cargo-deb" --version "$version" cargo-deb
}

# Installs those of its arguments, each PACKAGE:COMMAND, whose command is not there.
install_missing() {
    local missing=() wanted
    for wanted in "$@"; do
        command -v "${wanted#*:}" >/dev/null || missing+=("${wanted%%:*}")
    done
    install_packages "${missing[@]}"
}

# Installs its arguments, as root or by sudo.
install_packages() {
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null || { echo "please install: $* (there is no apt-get here to do it)" >&2; return 1; }
    local root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    echo "installing $*" >&2
    # A mirror may fail once, and another program of the system may hold the lock.
    local options=(-qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120)
    "${root[@]}" apt-get "${options[@]}" update
    # A service that a package starts would only hold a port.
    DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get "${options[@]}" install -y --no-install-recommends "$@" >/dev/null
}
