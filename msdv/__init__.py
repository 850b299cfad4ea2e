"""msdv: make a stable diffusion video on a home computer."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("msdv")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"
