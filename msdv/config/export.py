"""What export can be told."""

from pathlib import Path
from typing import Literal

from msdv.config.shared import CommandConfig, Text, option

ExportFormat = Literal["msdv", "pipeline", "motion-adapter", "animatediff", "2022", "lora"]


class ExportConfig(CommandConfig):
    """Temporal layers to a file or folder for elsewhere."""

    source: str = option(..., "", argument=True)
    """Run folder, temporal .safetensors, an AnimateDiff file (.safetensors or .ckpt), a motion adapter's folder, or a
    folder of the 2022 model."""

    out: Path = option(..., "Result", flag="-o")
    """Result: a .safetensors file, or a folder."""

    to: ExportFormat | None = option(None, "Result")
    """`msdv`: the temporal layers alone, one half-precision .safetensors. `pipeline`: a folder with the image model and
    the temporal layers, complete. Of motion modules `animatediff`, the file that ComfyUI and A1111 load, and
    `motion-adapter`, the folder that diffusers loads. Of pseudo-3D layers `2022`, a folder that the code of 2022 loads.
    Of a run with --lora-rank `lora`, the LoRA alone, as a file that ComfyUI and A1111 load.
    Not given: `msdv` for a file, `pipeline` for a folder."""

    base: str | None = option(None, "Model")
    """Image model that goes into a folder with one. Not given: the one the temporal layers were trained on."""

    title: Text | None = option(None, "Description")
    """What the result is called in its model card and metadata. Not given: the name of the source."""

    about: Text | None = option(None, "Description", metavar="TEXT")
    """What the training clips show and where they are from, for the model card and the metadata."""

    license: Text | None = option(None, "Description")
    """License for the model card and the metadata, as the model hub calls it: apache-2.0, creativeml-openrail-m."""

    push: Text | None = option(None, "Result", metavar="OWNER/NAME")
    """Upload the result with its model card to this repository of the model hub, which is made if there is none. Log in
    before, with `hf auth login`."""

    private: bool = option(False, "Result")
    """With --push: a repository that is made is seen by you alone."""

    overwrite: bool = option(False, "Result")
    """Replace a result that exists."""
