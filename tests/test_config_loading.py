"""A config's name or path becomes its value, and every way that this can fail is one line with a place."""

import textwrap

import pytest

from r1jax.config import GRPO, ConfigError, loading
from r1jax.config.loading import list_configs, load_config

GOOD = '''
"""A run from other weights.

More words."""
from r1jax.config import GRPO

def config():
    return GRPO(init="run", clip_high=10, frozen=["embed"])
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory of somebody whose checkout ships no configs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "CHECKOUT", tmp_path / "nowhere")
    (tmp_path / "configs").mkdir()
    return tmp_path


def write(path, text):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(textwrap.dedent(text).lstrip())
    return path


def test_a_name_and_a_path_give_the_same_config(folder):
    path = write(folder / "configs/mine.py", GOOD)
    assert load_config("mine") == load_config(str(path)) == load_config("configs/mine.py")
    name, config = load_config("mine")
    assert name == "mine"
    assert config == GRPO(init="run", clip_high=10.0, frozen=("embed",))
    assert isinstance(config.clip_high, float) and isinstance(config.frozen, tuple)  # as config.json gives it back


def test_the_working_directory_goes_before_the_checkout(folder, monkeypatch):
    write(folder / "checkout/mine.py", GOOD)
    write(folder / "checkout/other.py", GOOD)
    write(folder / "configs/mine.py", GOOD.replace("clip_high=10", "clip_high=3").replace("A run", "My run"))
    monkeypatch.setattr(loading, "CHECKOUT", folder / "checkout")
    assert load_config("mine")[1].clip_high == 3
    assert load_config("other")[1].clip_high == 10
    assert list_configs() == [("mine", "My run from other weights."), ("other", "A run from other weights.")]


def test_listing_runs_no_config(folder):
    write(folder / "configs/a.py", '"""Says this."""\nraise RuntimeError("was run")\n')
    write(folder / "configs/b.py", "x = (\n")
    write(folder / "configs/_helper.py", '"""Not a config."""\n')
    listed = dict(list_configs())
    assert listed["a"] == "Says this."
    assert "does not parse: line 1" in listed["b"] and set(listed) == {"a", "b"}


def test_dataclasses_of_the_file_may_use_postponed_annotations(folder):
    write(
        folder / "configs/recipe.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass, field
        from r1jax.config import SFT, Pipeline

        @dataclass(frozen=True)
        class Recipe(Pipeline):
            first: SFT = field(default_factory=lambda: SFT(init="run"))

        def config():
            return Recipe()
        """,
    )
    assert list(load_config("recipe")[1].stages()) == ["first"]


BROKEN = {
    "syntax": ("def config(:\n    pass\n", ["bad.py:1: SyntaxError"]),
    "import": ("import no_such_module\n", ["bad.py:1: ModuleNotFoundError: No module named 'no_such_module'"]),
    "no function": ("x = 1\n", ["bad.py defines no function config()"]),
    "not a function": ("config = 3\n", ["bad.py defines no function config()"]),
    "raises": ("def config():\n    return 1 / 0\n", ["bad.py:2: ZeroDivisionError: division by zero"]),
    "raises in a helper": (
        "def config():\n    return helper()\ndef helper():\n    return {}['x']\n",
        ["bad.py:4: KeyError: 'x'"],
    ),
    "invalid value": (
        "from r1jax.config import GRPO\ndef config():\n    return GRPO(\n        init='x', group=1)\n",
        ["bad.py:3: group is 1;"],
    ),
    "unknown field": (
        "from r1jax.config import GRPO\ndef config():\n    return GRPO(init='x', groups=4)\n",
        ["bad.py:3: TypeError", "groups"],
    ),
    "returns a dict": ("def config():\n    return {}\n", ["bad.py: config() returned dict; let it return"]),
    "field of another type": (
        "from r1jax.config import GRPO\ndef config():\n    return GRPO(init='x', seed='1')\n",
        ["bad.py.seed: expected int, got '1'"],
    ),
    "callable": (
        "from r1jax.config import SFT, Text\ndef config():\n    return SFT(init='x', text=Text(template_options={'f': len}))\n",
        ["cannot be written to config.json", "'pkg.mod:f'"],
    ),
}


@pytest.mark.parametrize("text, parts", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config_is_one_line_with_its_place(folder, text, parts):
    write(folder / "configs/bad.py", text)
    for spelling in ("bad", "configs/bad.py", str(folder / "configs/bad.py")):
        with pytest.raises(ConfigError) as caught:
            load_config(spelling)
        assert all(part in str(caught.value) for part in parts), caught.value
        assert "\n" not in str(caught.value)


def test_what_is_not_found_is_refused_with_what_there_is(folder):
    write(folder / "configs/quickstart.py", GOOD)
    write(folder / "configs/other.py", GOOD)
    write(folder / "notes.txt", "")
    for spelling in ("quikstart", "configs/quikstart.py"):
        with pytest.raises(ConfigError, match=r"no config '.*'; did you mean quickstart\? .* one of: other, quickstart$"):
            load_config(spelling)
    with pytest.raises(ConfigError, match="configs is a directory"):
        load_config("configs")
    with pytest.raises(ConfigError, match="notes.txt is no .py file"):
        load_config("notes.txt")


def test_a_wheel_without_configs_says_so(folder):
    with pytest.raises(ConfigError, match="a wheel ships none"):
        load_config("quickstart")
