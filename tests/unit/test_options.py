"""Config models as settings, recipes, and the order option > recipe > default, without a parser."""

from pathlib import Path
from typing import Any

import pytest

from msdv.config import CONFIGS, CommandConfig, SampleConfig, TrainConfig
from msdv.errors import UsageError
from msdv.options import GROUPS, Setting, fill_bare_options, resolve, settings

EXAMPLE = 'msdv sample "clouds" -o out.gif'


def setting(command: str, name: str) -> Setting:
    return next(s for s in settings(CONFIGS[command]) if s.name == name)


def resolved(command: str, recipe: Path | None = None, **given: Any) -> Any:
    model: type[CommandConfig] = CONFIGS[command]
    nothing = dict.fromkeys(model.model_fields)
    return resolve(command, model, {**nothing, **given}, recipe, EXAMPLE)


def refusal(command: str, recipe: Path | None = None, **given: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolved(command, recipe, **given)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes recipe.toml in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("recipe.toml").write_text(text, encoding="utf-8")
        return Path("recipe.toml")

    return write


@pytest.mark.parametrize("command", CONFIGS)
def test_settings_hold_every_field_panel_by_panel(command: str) -> None:
    found = settings(CONFIGS[command])
    assert {s.name for s in found} == set(CONFIGS[command].model_fields)
    panels = [GROUPS.index(s.group) for s in found]
    assert panels == sorted(panels)
    spellings = [flag for s in found for flag in (*s.flags, s.negation) if flag]
    assert len(spellings) == len(set(spellings))


def test_settings_in_words() -> None:
    size = setting("prep", "size")
    assert (size.flags, size.metavar, size.notes) == (
        ("--size",),
        "PX|WxH",
        "16 to 4096 and a multiple of 8; default: 512",
    )
    assert setting("train", "size").notes == "16 to 4096 and a multiple of 8"
    assert setting("train", "lr").notes == "more than 0 and less than 1; default: 0.0001"
    assert setting("prep", "fps").notes == "more than 0 and at most 120; default: 5"
    assert setting("train", "schedule").notes == "cosine | constant; default: cosine"
    assert setting("train", "data").notes == "default: frames"
    assert setting("train", "seed").notes == "at least 0; default: 0"
    out = setting("sample", "out")
    assert (out.flags, out.label, out.metavar, out.notes) == (("-o", "--out"), "-o", "PATH", "required")
    prompt = setting("sample", "prompt")
    assert (prompt.flags, prompt.label, prompt.notes) == ((), "PROMPT", "required")
    fp16 = setting("train", "fp16")
    assert (fp16.flags, fp16.negation, fp16.metavar, fp16.notes) == (("--fp16",), "--no-fp16", "", "")
    json = setting("train", "json_output")
    assert (json.flags, json.negation) == (("--json",), "--no-json")
    resume = setting("train", "resume")
    assert (resume.metavar, resume.bare) == ("[RUN]", "newest")


def test_default_then_recipe_then_option(recipe: Any) -> None:
    path = recipe('[train]\nsteps = 7\nfp16 = true\nlr = 2e-4\nsample_prompt = ["a", "b"]\n[sample]\nsteps = 9\n')
    assert resolved("train").steps == TrainConfig().steps
    config = resolved("train", path)
    assert (config.steps, config.fp16, config.lr, config.sample_prompt) == (7, True, 2e-4, ("a", "b"))
    assert (config.batch_size, config.data) == (1, Path("frames"))
    config = resolved("train", path, steps="8", fp16=False, sample_prompt=["c"])
    assert (config.steps, config.fp16, config.lr, config.sample_prompt) == (8, False, 2e-4, ("c",))
    assert config.model_fields_set == {"steps", "fp16", "lr", "sample_prompt"}
    # The option decides even where it repeats the default.
    assert resolved("train", path, steps=str(TrainConfig().steps)).steps == TrainConfig().steps


def test_a_recipe_may_hold_what_is_required(recipe: Any) -> None:
    path = recipe('[sample]\nprompt = "clouds timelapse"\nout = "out.gif"\n')
    config = resolved("sample", path)
    assert isinstance(config, SampleConfig)
    assert (config.prompt, config.out) == ("clouds timelapse", Path("out.gif"))
    assert resolved("sample", path, prompt="sea").prompt == "sea"


def test_a_recipe_without_the_section_changes_nothing(recipe: Any) -> None:
    assert resolved("train", recipe("[sample]\nsteps = 9\n")) == TrainConfig()


def test_home_folder_in_a_recipe(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("USERPROFILE", "/home/someone")
    assert resolved("train", recipe('[train]\ndata = "~/frames"\n')).data == Path("/home/someone/frames")


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        (
            "train",
            {"size": "100"},
            "--size 100: must be a multiple of 8 (the image model works on 8x8 blocks): 96 would do",
        ),
        ("train", {"size": "8"}, "--size 8: must be 16 to 4096 and a multiple of 8"),
        ("train", {"steps": "many"}, "--steps many: must be a whole number, at least 1"),
        ("train", {"steps": "1.5"}, "--steps 1.5: must be a whole number, at least 1"),
        ("train", {"steps": ""}, '--steps "": must be a whole number, at least 1'),
        ("train", {"lr": "nan"}, "--lr nan: must be a number, more than 0 and less than 1"),
        ("train", {"lr": "1"}, "--lr 1: must be more than 0 and less than 1"),
        ("train", {"ema": "-0.1"}, "--ema -0.1: must be at least 0 and less than 1"),
        ("train", {"schedule": "cosin"}, "--schedule cosin: must be one of cosine, constant: did you mean cosine?"),
        ("train", {"schedule": "x y"}, '--schedule "x y": must be one of cosine, constant'),
        ("train", {"data": ""}, '--data "": must be a path'),
        ("train", {"out": "--fp16"}, f"-o has no value (--fp16 behind it is another option): {EXAMPLE}"),
        ("train", {"fp16": True, "bf16": True}, "--fp16 and --bf16 exclude each other: choose one"),
        (
            "train",
            {"steps": "0", "lr": "x"},
            "--lr x: must be a number, more than 0 and less than 1; --steps 0: must be at least 1",
        ),
        ("sample", {}, f"PROMPT and -o are missing: {EXAMPLE}"),
        ("sample", {"prompt": "sea"}, f"-o is missing: {EXAMPLE}"),
        ("prep", {"videos": "", "frames": "frames"}, 'VIDEOS "": must be a path'),
    ],
)
def test_what_an_option_can_not_mean(command: str, given: dict[str, Any], message: str) -> None:
    said = refusal(command, **given)
    assert sorted(said.split("; ")) == sorted(message.split("; "))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[train]\nlr = "x"\n', 'recipe.toml [train] lr = "x": must be a number, more than 0 and less than 1'),
        ("[train]\nsteps = true\n", "recipe.toml [train] steps = true: must be a number"),
        ("[train]\nsteps = 0\n", "recipe.toml [train] steps = 0: must be at least 1"),
        ("[train]\ndata = 3\n", "recipe.toml [train] data = 3: must be a path"),
        ('[train]\nfp16 = "maybe"\n', 'recipe.toml [train] fp16 = "maybe": must be true or false'),
        ("[train]\ndevice = 3\n", "recipe.toml [train] device = 3: must be text"),
        (
            '[train]\nsample_prompt = "x"\n',
            'recipe.toml [train] sample_prompt = "x": must be a list of texts: ["...", "..."]',
        ),
        (
            '[train]\nsample_prompt = ["x", 3]\n',
            'recipe.toml [train] sample_prompt = ["x", 3]: must be a list of texts: ["...", "..."]',
        ),
        (
            '[train]\ndata = "C:\\new"\n',
            'recipe.toml [train] data = "C:\\new": \\ has another meaning here: write / instead',
        ),
        (
            "[train]\nbatch-size = 3\n",
            "recipe.toml [train]: unknown key batch-size: did you mean batch_size? (msdv train --help lists them all)",
        ),
        (
            "[train]\nzzz = 3\n",
            "recipe.toml [train]: unknown key zzz (msdv train --help lists them all)",
        ),
        (
            "[trian]\nsteps = 3\n",
            "recipe.toml: unknown section trian: did you mean train? (known: [prep] [train] [sample] [export])",
        ),
        (
            "fps = 3\n[train]\nsteps = 3\n",
            "recipe.toml: unknown key fps: it belongs in a section, such as [prep]",
        ),
        ("zzz = 3\n", "recipe.toml: unknown key zzz outside of [prep] [train] [sample] [export]"),
        ("train = 3\n", "recipe.toml: train must be a section: write [train] on a line of its own"),
    ],
)
def test_what_a_recipe_can_not_mean(recipe: Any, text: str, message: str) -> None:
    assert refusal("train", recipe(text)) == message


def test_an_option_replaces_a_wrong_value_of_the_recipe(recipe: Any) -> None:
    assert resolved("train", recipe("[train]\nsteps = 0\n"), steps="5").steps == 5


def test_broken_toml_says_where(recipe: Any) -> None:
    message = refusal("train", recipe("[train]\nsteps = 5\nlr = \n"))
    assert message.startswith("recipe.toml: not TOML: ") and "line 3" in message
    message = refusal("train", recipe('[train]\ndata = "C:\\videos"\n'))
    assert "line 2" in message and message.endswith("; in a path, write / for \\")


def test_a_recipe_that_can_not_be_read(tmp_path: Path) -> None:
    assert refusal("train", tmp_path / "no.toml") == f"{tmp_path / 'no.toml'}: no such file"
    assert refusal("train", tmp_path).startswith(f"{tmp_path}: can't be read (")
    (tmp_path / "wide.toml").write_text("[train]\nsteps = 3\n", encoding="utf-16")
    assert "not UTF-8 text" in refusal("train", tmp_path / "wide.toml")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("train --resume", "train --resume=newest"),
        ("train --resume --steps 5", "train --resume=newest --steps 5"),
        ("train --steps 5 --resume -o out", "train --steps 5 --resume=newest -o out"),
        ("train --resume runs/x --steps 5", "train --resume runs/x --steps 5"),
        ("train --resume=runs/x", "train --resume=runs/x"),
        ("--debug train --resume", "--debug train --resume=newest"),
        ("train --resume --", "train --resume=newest --"),
        ("train -- --resume", "train -- --resume"),
        ("sample --resume", "sample --resume"),
        ("--resume", "--resume"),
        ("", ""),
    ],
)
def test_resume_without_a_value_means_the_newest(written: str, read: str) -> None:
    assert fill_bare_options(written.split()) == read.split()
