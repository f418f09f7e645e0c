"""The line that installs an optional group of packages."""


def install_line(extra: str) -> str:
    """``pip install ".[onnx]" in a clone, else pip install "alphatune[onnx]"``."""
    return f'pip install ".[{extra}]" in a clone, else pip install "alphatune[{extra}]"'
