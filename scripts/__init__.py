"""The commands: `python scripts/NAME.py` in a checkout, `mi-ml-gen NAME` where the package is installed."""
