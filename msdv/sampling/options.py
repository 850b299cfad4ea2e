"""Options of sample that don't go together, told before anything is loaded."""

from msdv.config import SampleConfig
from msdv.errors import UsageError
from msdv.model.text_track import text_keys
from msdv.model.windows import length_of
from msdv.sampling.shots import check_seeds, shortened
from msdv.sampling.starting import check_start
from msdv.sampling.steering import check_steering


def check_options(config: SampleConfig) -> None:
    """Raise UsageError for options that can't work together, whatever the models and the result are."""
    if config.prompts is not None and config.prompt:
        raise UsageError(f"--prompts {config.prompts} and PROMPT {shortened(config.prompt)}: leave one of them out")
    check_seeds(config)
    length_of(config)
    if "frames" in config.model_fields_set or (config.video is None and config.latents is None):
        text_keys(config)  # else a file says how many frames there are
    check_start(config)
    if config.video is None and config.strength != type(config).model_fields["strength"].default:
        raise UsageError(f"--strength {config.strength:g}: there is no video to go from: add --video, or leave it out")
    for name, value in (("--latents", config.latents), ("--loop", config.loop)):
        if config.video is not None and value:
            raise UsageError(f"--video {config.video}: {name} does not go with it: leave one of them out")
    if config.cache > 1 and (config.window is not None or config.loop):
        which = "--loop" if config.window is None else "--window"
        raise UsageError(f"--cache {config.cache}: {which} sees other frames together in each step: leave one out")
    if config.latents and config.motion not in ("auto", "none"):
        raise UsageError(f"--motion {config.motion}: the noise in --latents moves as it does: leave one of them out")
    check_steering(config)
    if config.negative and config.guidance == 1:
        raise UsageError(
            f"--negative {shortened(config.negative)}: without guidance it does nothing: raise --guidance above 1"
        )
