"""msdv: make a stable diffusion video on a home computer."""

__version__ = "0.1.0"  # the package's too: pyproject.toml reads it from here
