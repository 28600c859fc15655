#!/bin/sh
# Lists the packages that pyproject.toml asks for, at their newest versions and with the hashes of their
# files, for every Python that Orlop runs with. `make lock` calls it.
set -eu
cd "$(dirname "$0")/../.."
lists=packaging/requirements
lock() {
    target=$1
    shift
    # Names of package indexes stay out of it: whoever installs has their own.
    "$UV" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-package orlop \
        "$@" pyproject.toml "$lists/build.in" --output-file "$lists/$target"
}
lock development.txt --extra dev --extra tracing --extra tenants
lock runtime.txt --constraint "$lists/development.txt"
