"""What a result for others says of itself: metadata after the convention `modelspec`, and a model card."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from msdv.config import ExportConfig, ExportFormat
from msdv.recipe import read_section
from msdv.weights import TemporalMetadata

SAMPLE = "sample.gif"
# Channels of the blocks on the way down, in every image model that readers of AnimateDiff files take.
STABLE_DIFFUSION = (320, 640, 1280, 1280)
_ARCHITECTURES = {"768": "stable-diffusion-v1", "1024": "stable-diffusion-v2"}
"""After ModelSpec, by the width of the text embeddings."""
_HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"
# Of a run's settings, those that say how it learned; where files are is nobody's business.
_TOLD = (
    *("lr", "conv_lr", "schedule", "warmup", "batch_size", "grad_accum", "weight_decay", "ema", "caption_dropout"),
    *("timestep_shift", "noise_share", "offset_noise", "min_snr", "temporal_loss", "flicker_loss"),
    *("condition_share", "flip", "seed", "lora_rank"),
)
_WHAT = {"pseudo3d": "Pseudo-3D temporal layers", "motion-module": "Motion modules in AnimateDiff's layout"}
_SAMPLE_IT = """\
```
msdv sample "{prompt}" --model {name} --frames {frames} -o out.gif
```"""
_USE: dict[ExportFormat, str] = {
    "msdv": _SAMPLE_IT,
    "pipeline": _SAMPLE_IT,
    "2022": f"""\
The layout of the 2022 video model, whose code loads this folder, as does msdv:

{_SAMPLE_IT.replace("--model", "--base")}""",
    "animatediff": f"""\
- ComfyUI with AnimateDiff Evolved: put the file into `models/animatediff_models` and choose it in the AnimateDiff
  loader, with beta_schedule `{{comfy}}`.
- A1111 with sd-webui-animatediff: put it into `extensions/sd-webui-animatediff/model`.
- msdv:

{_SAMPLE_IT}""",
    "lora": """\
- ComfyUI: put the file into `models/loras`, and add a node *Load LoRA*.
- A1111: put it into `models/Lora`, and write `<lora:name:1>` into the prompt.
- diffusers: `pipeline.load_lora_weights("{name}")`.
- msdv: `msdv sample "{prompt}" --model {source} --lora {name} -o out.gif`""",
    "motion-adapter": """\
```python
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter

adapter = MotionAdapter.from_pretrained("{name}")
pipeline = AnimateDiffPipeline.from_pretrained("{base}", motion_adapter=adapter)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, {schedule})
frames = pipeline("{prompt}", num_frames={frames}, width={size}, height={size}).frames[0]
```""",
}
_WITHOUT_HUB = f"""\
For {{image_model}} alone:

{_SAMPLE_IT.replace("{name}", "{out}")}"""
_ANIMATED = f"""\
```python
from diffusers import AnimateDiffPipeline

pipeline = AnimateDiffPipeline.from_pretrained("{{name}}")
frames = pipeline("{{prompt}}", num_frames={{frames}}, width={{size}}, height={{size}}).frames[0]
```

or

{_SAMPLE_IT}"""


@dataclass(frozen=True)
class Card:
    """What is known of a result."""

    config: ExportConfig
    to: ExportFormat
    metadata: TemporalMetadata
    weights: Path
    """Where it came from."""
    unet: Mapping[str, Any] = field(default_factory=dict)
    """The configuration of the image model's UNet, as far as it is known."""
    channels: tuple[int, ...] = STABLE_DIFFUSION
    """Of the blocks on the way down."""

    @property
    def title(self) -> str:
        """What it is called."""
        if self.config.title:
            return self.config.title
        source = Path(self.config.source).resolve()
        return source.name if source.is_dir() else source.stem

    @property
    def _base_on_hub(self) -> str | None:
        base = self.metadata.base
        return base if "/" in base and not Path(base).is_absolute() and "\\" not in base else None

    @property
    def _what(self) -> str:
        return "LoRA trained beside temporal layers" if self.to == "lora" else _WHAT[self.metadata.arch]

    @property
    def animated(self) -> bool:
        """Whether diffusers can make clips with it: motion modules, and an image model for text alone."""
        return self.metadata.arch == "motion-module" and self.unet.get("in_channels", 4) == 4

    @property
    def betas(self) -> str:
        """The noise schedule's kind, as diffusers calls it."""
        return str(self.metadata.scheduler.get("beta_schedule", "scaled_linear"))

    @property
    def comfy_schedule(self) -> str:
        """The same in ComfyUI's loader, where `autoselect` means AnimateDiff's own."""
        return "autoselect" if self.betas == "linear" else "use existing"

    def header(self) -> dict[str, str]:
        """Lines for the header of a .safetensors file (github.com/Stability-AI/ModelSpec, version 1.0.0)."""
        metadata = self.metadata
        motion = metadata.arch == "motion-module"
        kind = "lora" if self.to == "lora" else "motion-module" if motion else "pseudo3d"
        family = _ARCHITECTURES.get(str(self.unet.get("cross_attention_dim")))
        diffusers = self.to in ("motion-adapter", "lora")
        values = {
            "sai_model_spec": "1.0.0",
            "architecture": f"{family}/{kind}" if family else "",
            "implementation": "diffusers" if diffusers else "animatediff" if motion else "msdv",
            "title": self.title,
            "description": self.config.about or f"{self._what}, made with {metadata.tool}",
            "license": self.config.license or "",
            "date": self._date(),
            "resolution": f"{metadata.size}x{metadata.size}",
            "prediction_type": {"v_prediction": "v"}.get(metadata.prediction_type, metadata.prediction_type),
            "tags": "lora" if self.to == "lora" else "text-to-video",
        }
        return {f"modelspec.{key}": value for key, value in values.items() if value}

    def _date(self) -> str:
        """Of the training: exporting again gives the same file."""
        path = next(self.weights.glob("*.safetensors"), self.weights) if self.weights.is_dir() else self.weights
        return datetime.fromtimestamp(int(path.stat().st_mtime), timezone.utc).isoformat()

    def sample(self) -> Path | None:
        """The newest sample gif of the run that it came from, if it is one's."""
        return max(self.weights.parent.glob("samples/step-*.gif"), default=None) if self._run else None

    @property
    def _run(self) -> dict[str, Any]:
        recipe = self.weights.parent / "config.toml"
        return read_section(recipe, "train") if recipe.is_file() else {}

    def text(self) -> str:
        """The model card, README.md on the hub."""
        metadata, prompts = self.metadata, self._run.get("sample_prompt") or ["clouds timelapse"]
        single = self.config.out.suffix.lower() == ".safetensors"  # to be downloaded, not given by the hub's name
        name = self.config.out.name if single else self.config.push or self.config.out.name
        base = (self._base_on_hub if self._fits_base else None) or (_HUB if self.channels == STABLE_DIFFUSION else None)
        schedule = ", ".join(f"{key}={value!r}" for key, value in self.metadata.scheduler.items() if "beta" in key)
        words = {
            "prompt": prompts[0].replace('"', "'"),
            "name": name,
            "out": self.config.out.name,
            "source": Path(self.config.source).name,
            "base": base or "",
            "image_model": self._base_in_words,
            "frames": self.metadata.frames,
            "size": self.metadata.size,
            "comfy": self.comfy_schedule,
            "schedule": schedule or "clip_sample=False",
        }
        use = _USE[self.to]
        if self.to == "pipeline" and self.animated:
            use = _ANIMATED
        elif self.to == "motion-adapter" and base is None:
            use = _WITHOUT_HUB
        picture = [f"![sample]({SAMPLE})", ""] if self.sample() else []
        return "\n".join(
            [
                "---",
                *self._front_matter(),
                "---",
                "",
                f"# {self.title}",
                "",
                f"{self._what} for {self._base_in_words}, made with {metadata.tool}.",
                "",
                *picture,
                "## Use",
                "",
                use.format(**words),
                "",
                "## Training data",
                "",
                self.config.about or "Not described.",
                "",
                "## Training",
                "",
                "| | |",
                "|---|---|",
                *(f"| {key} | {value} |" for key, value in self._settings()),
                "",
            ]
        )

    @property
    def _fits_base(self) -> bool:
        """Files of others don't say which image model they are for, and may be of another size than is supposed."""
        return self.channels == tuple(self.unet.get("block_out_channels", self.channels))

    @property
    def _base_in_words(self) -> str:
        if not self._fits_base:
            return f"image models with blocks of {', '.join(map(str, self.channels))} channels"
        if self._base_on_hub or self.channels == STABLE_DIFFUSION:
            return self._base_on_hub or "a Stable Diffusion"
        return f"the image model `{Path(self.metadata.base).name}`"

    def _front_matter(self) -> Iterator[str]:
        motion = self.metadata.arch == "motion-module"
        diffusers = self.to in ("motion-adapter", "lora") or (self.to == "pipeline" and self.animated)
        yield f"library_name: {'diffusers' if diffusers else 'msdv'}"
        yield f"pipeline_tag: text-to-{'image' if self.to == 'lora' else 'video'}"
        if self.config.license:
            yield f"license: {json.dumps(self.config.license, ensure_ascii=False)}"
        if self._base_on_hub and self._fits_base:
            yield f"base_model: {self._base_on_hub}"
        if self.to == "lora":
            yield "tags: [lora, msdv]"
            return
        yield f"tags: [text-to-video, msdv{', animatediff, motion-module' if motion else ''}]"

    def _settings(self) -> Iterator[tuple[str, Any]]:
        metadata = self.metadata
        yield (
            "image model",
            f"{self._base_on_hub or Path(metadata.base).name} (UNet {metadata.unet_hash[:12] or 'any'})",
        )
        yield "clips", f"{metadata.frames} frames, {metadata.size} pixels, {metadata.fps:g} frames a second"
        yield "optimizer steps", metadata.steps
        yield "noise schedule", f"{self.betas}, predicts {metadata.prediction_type}"
        yield "noise", metadata.noise
        yield "group norm", metadata.group_norm
        run: Mapping[str, Any] = self._run
        for key in _TOLD:
            if key in run:
                yield key.replace("_", " "), run[key]
