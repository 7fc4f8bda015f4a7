#!/bin/sh
# Installs the program ollama-api-service from a release:
#
#   curl -fsSL https://ADDRESS-OF-THE-RELEASE/install.sh | sh
#
# BASE_URL     where the files of the release are, if this script does not know it already
# INSTALL_DIR  where to put the program: /usr/local/bin if you may write there, otherwise ~/.local/bin
#
# It needs curl or GNU wget, tar, and sha256sum, shasum or openssl. It checks the archive before it installs anything, and never asks for
# root. Everything is in functions, and the last line calls them: a script that was cut off on its way does nothing.
set -eu

default_url=''
program=ollama-api-service

fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

there() { command -v "$1" >/dev/null 2>&1; }

# platform: OS_ARCH of this machine as the names of the archives have them.
platform() {
  system=$(uname -s) machine=$(uname -m)
  case $system in
  Linux) system=linux ;;
  Darwin) system=darwin ;;
  MINGW* | MSYS* | CYGWIN* | Windows*) fail "on Windows, download the .zip of the release and unpack it: there is nothing to install" ;;
  *) fail "there is no release for $system: build it from its source with make build" ;;
  esac
  case $machine in
  x86_64 | amd64) machine=amd64 ;;
  aarch64 | arm64) machine=arm64 ;;
  *) fail "there is no release for the processor $machine: build it from its source with make build" ;;
  esac
  printf '%s_%s\n' "$system" "$machine"
}

# safe_url URL: a checksum that comes the same way as the archive proves nothing where others can change both on the way.
safe_url() {
  [ -n "$1" ] || fail "set BASE_URL to the address where the files of the release are"
  case $1/ in
  https://*) ;;
  http://127.0.0.1/* | http://127.0.0.1:* | http://localhost/* | http://localhost:*)
    case $1 in *@*) fail "BASE_URL must not hold a user name: $1" ;; esac
    ;;
  *) fail "BASE_URL must begin with https://, not $1" ;;
  esac
}

# gnu_wget: the wget of BusyBox may not check certificates.
gnu_wget() { there wget && wget --version 2>/dev/null | grep -q '^GNU Wget'; }

# wget_https URL FILE: wget has no option that keeps a redirect from leading to plain HTTP, so each redirect is a request of its own.
wget_https() {
  at=$1
  for _ in 1 2 3 4 5 6; do
    headers=$(LC_ALL=C wget -q -S --max-redirect=0 -O "$2" "$at" 2>&1) && return
    to=$(printf '%s\n' "$headers" | grep -i '^ *location: ') || return 1
    to=${to##*ocation: }
    case $to in
    https://*) at=$to ;;
    /[!/]*)
      host=${at#https://}
      at=https://${host%%/*}$to
      ;;
    *) return 1 ;;
    esac
  done
  return 1
}

# download URL FILE
download() {
  case $1 in
  https://*) secure=true ;;
  *) secure=false ;;
  esac
  if there curl && $secure; then
    curl -fsSL --proto '=https' --retry 2 -o "$2" "$1"
  elif there curl; then
    curl -fsS -o "$2" "$1"
  elif gnu_wget && $secure; then
    wget_https "$1" "$2"
  elif gnu_wget; then
    wget -q --max-redirect=0 -O "$2" "$1"
  else
    fail "curl is needed to download, or GNU wget: install one of them and try again"
  fi || fail "$1 cannot be downloaded: look at the address and at your network"
}

# sum FILE: its SHA-256 in hexadecimal.
sum() {
  if there sha256sum; then
    sha256sum <"$1"
  elif there shasum; then
    shasum -a 256 <"$1"
  else
    openssl dgst -sha256 -r <"$1"
  fi | cut -d' ' -f1
}

# target: the directory to install into.
target() {
  if [ -n "${INSTALL_DIR:-}" ]; then
    printf '%s\n' "$INSTALL_DIR"
  elif [ -w /usr/local/bin ]; then
    echo /usr/local/bin
  else
    [ -n "${HOME:-}" ] || fail "set INSTALL_DIR to the directory for the program"
    printf '%s\n' "$HOME/.local/bin"
  fi
}

cleanup() { [ -z "$work" ] || rm -rf "$work"; }

main() {
  url=${BASE_URL:-$default_url}
  url=${url%/}
  safe_url "$url"
  there tar || fail "tar is needed to unpack the archive"
  there sha256sum || there shasum || there openssl || fail "sha256sum, shasum or openssl is needed to check the download"
  here=$(platform)
  dir=$(target)
  mkdir -p "$dir" || fail "$dir cannot be made: set INSTALL_DIR to a directory that you may write to"

  # In the target, so that the last step is a rename within one file system.
  work=''
  trap cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  work=$(mktemp -d "$dir/.$program.XXXXXX") || fail "$dir cannot be written to: run this as its owner, or set INSTALL_DIR"

  download "$url/SHA256SUMS" "$work/sums"
  line=$(grep -E "^[0-9a-f]{64}  ${program}_[^/ ]*_$here\.tar\.gz\$" "$work/sums") ||
    fail "the release at $url has no archive for $here in its SHA256SUMS"
  [ "$(printf '%s\n' "$line" | wc -l)" -eq 1 ] || fail "SHA256SUMS at $url names several archives for $here, so nothing was installed"
  want=${line%% *}
  archive=${line##* }

  echo "Downloading $archive"
  download "$url/$archive" "$work/archive"
  got=$(sum "$work/archive")
  [ "$got" = "$want" ] ||
    fail "$archive has the SHA-256 $got, and SHA256SUMS says $want: nothing was installed. \
Try again. If it happens again, report it to the maintainers"

  folder=${archive%.tar.gz}
  tar -xzf "$work/archive" -C "$work" "$folder/$program" || fail "$archive cannot be unpacked, so nothing was installed"
  version=$("$work/$folder/$program" version) || fail "the program in $archive does not run here, so nothing was installed"
  mv -f "$work/$folder/$program" "$dir/$program" || fail "$dir/$program cannot be replaced"
  echo "Installed $dir/$program: $version"
  case :${PATH:-}: in
  *:"$dir":*) ;;
  *) echo "$dir is not in your PATH; start it as $dir/$program, or add the directory." ;;
  esac
}

main "$@"
