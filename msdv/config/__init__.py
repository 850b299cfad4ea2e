"""What each command can be told: one pydantic model a command, every field declared here and nowhere else.

The docstring below a field is the option's help text; its type gives the choices, its constraints the range that
help shows, `group` the panel that help puts it in. Precedence: command line > recipe > default, validated once.
"""

from msdv.config.export import ExportConfig, ExportFormat
from msdv.config.prep import PrepConfig
from msdv.config.sample import SampleConfig
from msdv.config.shared import (
    OUTPUT_SUFFIXES,
    VIDEO_SUFFIXES,
    Arch,
    CommandConfig,
    Condition,
    DeviceConfig,
    Dither,
    GroupNormMode,
    NoiseKind,
    SchedulerName,
    keyframe_distance,
)
from msdv.config.train import TrainConfig

CONFIGS: dict[str, type[CommandConfig]] = {
    "prep": PrepConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
    "export": ExportConfig,
}
"""The commands, in the order in which one uses them. Sections of a recipe have the same names."""

__all__ = [
    "CONFIGS",
    "OUTPUT_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Arch",
    "CommandConfig",
    "Condition",
    "DeviceConfig",
    "Dither",
    "ExportConfig",
    "ExportFormat",
    "GroupNormMode",
    "NoiseKind",
    "PrepConfig",
    "SampleConfig",
    "SchedulerName",
    "TrainConfig",
    "keyframe_distance",
]
