#!/bin/sh
# Debian's interpreter by its full name: it alone sees Debian's Python packages, whatever
# another python3 comes first on PATH.
exec /usr/bin/python3 -B "$@"
