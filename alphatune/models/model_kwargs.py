"""Keyword arguments of whatever builds a model: a factory, or an architecture by name."""

from __future__ import annotations

from typing import Any

#: they are the user's, and of any type
Kwargs = dict[str, Any]
