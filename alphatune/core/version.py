"""The version of alphatune."""

VERSION = "0.1.0"
