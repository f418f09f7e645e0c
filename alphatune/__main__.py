"""``python -m alphatune``."""

from alphatune.cli.main import main

if __name__ == "__main__":
    main()
