"""Reading TOML: the standard library's reader, which Python 3.10 lacks, or the package it came from."""

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib"]
