#!/bin/sh
# Builds the Debian package of this checkout into a directory, and has lintian look at it.
#
#   packaging/debian/build.sh DIRECTORY
#
# Needs Debian 13 with debhelper, lintian and python3-pip. `make deb` runs it in a root of its own.
set -eu
mkdir -p "$1"
result=$(realpath "$1")
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/orlop"
cp -a src docs packaging CHANGELOG.md LICENSE pyproject.toml "$scratch/orlop"
cp -a packaging/debian "$scratch/orlop/debian"
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/orlop/__init__.py | sed 's/\.dev/~dev/')
cd "$scratch/orlop"
sed -i "1s/(.*)/($version)/" debian/changelog
# Nothing is compiled here, so build-essential, which every package asks for tacitly, need not be there.
dpkg-buildpackage --no-check-builddeps --build=binary --unsigned-source --unsigned-changes --no-pre-clean
# A tag without an override, whatever its weight, fails the build.
lintian --fail-on error,warning,info --display-info --allow-root ../*.changes
cp ../*.deb "$result"
