"""The video model: layers that see time, put into a frozen image model."""
