"""What the sources must never do, whatever a config or a file says."""

import ast
import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from simulator.config.experiment import ConfigError, load_experiment, read_experiment
from simulator.config.paths import stay_inside
from simulator.config.plain_yaml import MAX_DEPTH, MAX_VALUES, parse_yaml
from tests.simulator.test_experiment import VALID

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "devices", "algorithms", "simulator", "analysis")
FORBIDDEN_IMPORTS = ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
ALLOWED = {
    ("simulator/config/own_strategy.py", "exec"),  # runs the strategy file that the user names
    ("simulator/config/plain_yaml.py", "yaml.load"),  # uses a loader of plain data
}
"""The only places that may use these functions, each with the reason."""


def sources() -> list[Path]:
    return [
        ROOT / "fedclock.py",
        *(path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))),
    ]


def forbidden(tree: ast.AST) -> Iterator[str]:
    """Yield what in a source could run code that came as data, or load unsafe weights."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_IMPORTS)
        elif isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_IMPORTS:
            yield node.module
        elif isinstance(node, ast.Call):
            yield from _forbidden_call(node)


def _forbidden_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    named = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if name in ("eval", "exec", "os.system", "os.popen", "__import__", "yaml.load"):
        yield name
    if name.startswith("yaml.") and name.endswith(("unsafe_load", "full_load", "load_all")):
        yield name
    if name.endswith("torch.load") or name == "torch.hub.load":
        yield name
    if name in ("np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"):
        yield name
    if named.get("trust_remote_code", "False") != "False":
        yield "trust_remote_code"
    if named.get("shell", "False") != "False":
        yield "shell"
    if named.get("allow_pickle", "False") != "False":
        yield "allow_pickle"
    loads_weights = name == "AutoModelForSequenceClassification.from_pretrained"
    if loads_weights and named.get("use_safetensors") != "True":
        yield "weights that are no safetensors"


def test_nothing_that_could_run_data_is_called_beyond_the_places_listed() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sources()
        for name in forbidden(ast.parse(path.read_text("utf-8")))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "eval(x)", "exec(x)", "torch.load(p)",
        "yaml.load(t)", "yaml.unsafe_load(t)", "subprocess.run(c, shell=True)", "os.system(c)",
        "AutoConfig.from_pretrained(n, trust_remote_code=True)", "np.load(p, allow_pickle=True)",
        "AutoModelForSequenceClassification.from_pretrained(n)", "pd.read_pickle(p)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert list(forbidden(ast.parse(text)))


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    (tmp_path / "x.yaml").write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_experiment(tmp_path / "x.yaml", overrides)
    assert len(str(caught.value)) < 5_000
    return str(caught.value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)


def test_aliases_that_would_unfold_to_billions_are_refused_with_the_limit(tmp_path: Path) -> None:
    assert f"at most {MAX_VALUES} values" in refused(tmp_path, BOMB)
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{k}: &a{k}\n  <<: [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 60)
    )
    assert f"at most {MAX_VALUES} values" in refused(tmp_path, merges)
    assert "at most" in refused(tmp_path, "name: &a [*a]")


def test_plain_aliases_are_welcome() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a") == {"a": {"x": 1}, "b": {"x": 1}}


def test_deep_nesting_is_refused_with_the_limit(tmp_path: Path) -> None:
    for text in ("x: " + "[" * 500 + "]" * 500, "x:\n" + "- " * 5_000):
        assert f"nest at most {MAX_DEPTH} deep" in refused(tmp_path, text)


def test_an_endless_file_is_refused_with_the_limit() -> None:
    with pytest.raises(ConfigError, match="at most 1000000 bytes"):
        load_experiment(Path("/dev/zero"))


def test_a_number_too_long_to_print_is_an_error_in_words(tmp_path: Path) -> None:
    text = yaml.safe_dump({**VALID, "seed": 0}).replace("seed: 0", "seed: " + "9" * 9_000)
    assert "4300 digits" in refused(tmp_path, text)
    with pytest.raises(ConfigError, match="seed must"):
        read_experiment({**VALID, "seed": 10**9_000}, (), tmp_path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [ls]", "!!python/name:os.system"])
def test_a_tag_that_names_code_is_refused(tmp_path: Path, tag: str) -> None:
    assert "must have no tag" in refused(tmp_path, f"name: {tag}")


@pytest.mark.parametrize(
    ("key", "limit"),
    [
        ("stop.rounds", "1000000"),
        ("task.max_length", "512"),
        ("local.batch_size", "1000000"),
        ("local.steps", "1000000"),
        ("evaluation.examples", "1000000000"),
        ("shards.min_examples", "1000000000"),
        ("fleet.size", "10000000"),
        ("seed", "9223372036854775808"),
        ("faults.crash.per_hour", "3600"),
        ("stop.simulated_s", "1000000000"),
    ],
)
def test_a_huge_size_is_refused_with_the_limit(tmp_path: Path, key: str, limit: str) -> None:
    said = refused(tmp_path, yaml.safe_dump(VALID), f"{key}=99999999999999999999999")
    assert f"{key} must be in " in said
    assert limit in said


def test_too_many_devices_are_refused_with_the_limit(tmp_path: Path) -> None:
    device = {"profile": "jetson-nano-maxn", "link": "wifi", "count": 9_000_000}
    fleet = {**VALID["fleet"], "devices": [device, device]}
    said = refused(tmp_path, yaml.safe_dump({**VALID, "fleet": fleet}))
    assert "there must be at most 10000000 devices, got 18000000" in said


@pytest.mark.parametrize(
    "override",
    [
        "task.model=../model",
        "task.data=data/../../other",
        "fleet={devices: [{profile: p, link: ../x.csv}]}",
        "fleet={devices: [{profile: p, link: wifi, availability: {source: ../x.csv}}]}",
        "fleet={devices: [{table: ../x.csv}]}",
        "fleet={recorded: ../conditions.json}",
        "strategy={kind: '../mine.py:Mine'}",
    ],
)
def test_a_relative_path_that_leads_out_is_refused(tmp_path: Path, override: str) -> None:
    said = refused(tmp_path, yaml.safe_dump(VALID), override)
    assert "must not lead out of its folder by '..'" in said
    assert "give an absolute path" in said


@pytest.mark.parametrize(
    "override",
    [
        "fleet={devices: [{profile: p, link: away/x.csv}]}",
        "task.data=away",
        "strategy={kind: 'away/mine.py:Mine'}",
    ],
)
def test_a_symbolic_link_that_leads_out_is_refused_with_where_it_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.csv").touch()
    (tmp_path / "other" / "mine.py").touch()
    home = tmp_path / "home"
    home.mkdir()
    (home / "away").symlink_to("../other")
    monkeypatch.chdir(home)
    said = refused(home, yaml.safe_dump(VALID), override)
    assert "must not lead out of its folder by a symbolic link, got away" in said
    assert f"which is {tmp_path / 'other'}" in said
    assert "give an absolute path" in said


def test_a_symbolic_link_within_the_folder_is_welcome(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    (tmp_path / "here.csv").symlink_to("x.csv")
    assert stay_inside("here.csv", folder=tmp_path) == "here.csv"


@pytest.mark.parametrize("name", ["../up", "a/b", "/root", ".hidden", "", "a\n", "x" * 65])
def test_a_name_cannot_be_a_path(tmp_path: Path, name: str) -> None:
    assert "must be 1 to 64 letters, digits" in refused(
        tmp_path, yaml.safe_dump({**VALID, "name": name})
    )
    strategies = {name: VALID["strategy"]}
    plain = {key: value for key, value in VALID.items() if key != "strategy"}
    assert "label must be 1 to 64 letters" in refused(
        tmp_path, yaml.safe_dump({**plain, "strategies": strategies})
    )


MENDED = {
    "pyyaml": (5, 4),
    "pyarrow": (14, 0),
    "torch": (2, 6),
    "numpy": (1, 22),
    "pydantic": (2, 4),
}
"""The first versions without the holes that mattered to a program like this one: CVE-2020-14343,
CVE-2023-47248, CVE-2025-32434, CVE-2021-41495, CVE-2024-3772."""


def test_no_dependency_may_be_of_a_version_with_a_hole_that_is_known_to_matter() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lowest = dict(need.split(">=") for need in project["dependencies"])
    for name, mended in MENDED.items():
        assert numbers(lowest[name]) >= mended, name
        assert numbers(importlib.metadata.version(name)) >= mended, name


def numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version, where 6 is 6.0."""
    major, minor = (version + ".0").split(".")[:2]
    return int(major), int(minor)
