"""The house rules that a reader could break without noticing."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("schemas", "device_agents", "workers", "orchestrator")
MAY_IMPORT = {room: ROOMS[: index + 1] for index, room in enumerate(ROOMS)}
MACHINE = (
    "machine",
    "states",
    "transition",
    "search",
    "search_parts",
    "finish",
    "widths",
    "reading",
    "policies",
)
LONGEST = 500


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def offenders(paths: list[Path], forbidden: set[str]) -> dict[str, set[str]]:
    found = {name_of(path): roots(path) & forbidden for path in paths}
    return {name: names for name, names in found.items() if names}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    assert offenders(sources(room), set(ROOMS) - set(MAY_IMPORT[room])) == {}


def test_schemas_import_nothing_heavy() -> None:
    assert offenders(sources("schemas"), {"ray", "torch", "torchvision", "tvm", "numpy"}) == {}


def test_training_and_pruning_import_neither_ray_nor_tvm() -> None:
    paths = sources("workers/training", "workers/pruning", "workers/export")
    loading = [path for path in paths if path.name == "loading.py"]
    paths = [path for path in paths if "export" not in path.parts] + loading
    assert paths
    assert offenders(paths, {"ray", "tvm"}) == {}


def test_the_state_machine_touches_nothing() -> None:
    paths = [
        path
        for path in sources("orchestrator")
        if path.relative_to(ROOT / "orchestrator").parts[0].removesuffix(".py") in MACHINE
    ]
    assert paths
    assert offenders(paths, {"ray", "torch", "tvm", "socket", "sqlite3", "subprocess"}) == {}


def test_report_and_summary_need_no_ray_torch_or_tvm() -> None:
    names = ("summary.py", "configuration.py", "cli.py", "plan.py", "export.py", "__init__.py")
    paths = [ROOT / "orchestrator" / name for name in names] + sources("orchestrator/report")
    found = offenders(paths, {"ray", "tvm", "torch"})
    found.pop("orchestrator/__init__.py", None)  # torch for the type alone, see test_cli
    assert found == {}


def test_files_are_short() -> None:
    paths = sources(*ROOMS, "tests", "examples", "benchmarks")
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in paths}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_links_in_the_documents_exist() -> None:
    folders = ("docs", "docker", "benchmarks")
    documents = [*ROOT.glob("*.md"), *(p for name in folders for p in (ROOT / name).rglob("*.md"))]
    assert documents
    missing = []
    for document in documents:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in link and not (document.parent / link).exists():
                missing.append(f"{name_of(document)}: {link}")
    assert missing == []


GOLDEN = {
    "": ["--debug", "--version"],
    "cancel": ["--now", "RUN_DIR"],
    "clean": ["--records", "--yes"],
    "compare": [
        "--ablations",
        "--method",
        "--original-candidates",
        "--paper",
        "--quick",
        "--set",
        "CONFIG",
    ],
    "devices": ["--set", "CONFIG"],
    "doctor": [],
    "export": ["DEST", "RUN_DIR"],
    "plan": ["--set", "CONFIG"],
    "report": ["--json", "--schema", "[RUN_DIR]"],
    "run": ["--set", "CONFIG"],
    "status": ["RUN_DIR"],
}


def test_commands_and_options_are_the_agreed_ones() -> None:
    import typer

    from orchestrator.cli import app

    def surface(command: object) -> list[str]:
        names = []
        for parameter in command.params:  # type: ignore[attr-defined]
            option = parameter.param_type_name == "option"
            names.append(parameter.opts[0] if option else parameter.metavar)
        return sorted(name for name in names if name != "--help")

    group = typer.main.get_command(app)
    found = {"": surface(group)}
    found |= {name: surface(item) for name, item in group.commands.items()}  # type: ignore[attr-defined]
    assert found == GOLDEN


def test_the_lock_holds_versions_and_nothing_else() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pattern = r'[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; sys_platform == "linux")?'
    assert [line for line in pins if not re.fullmatch(pattern, line)] == []
    names = [line.partition("==")[0].lower().replace("_", "-") for line in pins]
    assert len(set(names)) == len(names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    listed = {re.split(r"[^A-Za-z0-9_.-]", text, maxsplit=1)[0].lower() for text in wanted}
    assert listed - set(names) == set()
