"""Configurations: precedence of the sources, and one clear sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.configuration import ConfigurationError, load_config, resolved_yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = "run: one\nprune:\n  max_accuracy_drop: 0.01\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def problems(path: Path, overrides: tuple[str, ...] = (), **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_config(path, overrides, environ)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "tune: {trials_per_task: 4, round_size: 8}\n")
    environ = {"CPRUNE_TUNE__TRIALS_PER_TASK": "5", "CPRUNE_SEED": "9", "HOME": "/nowhere"}
    config = load_config(path, ["tune.trials_per_task=6", "targets.0.threads=2"], environ)
    assert (config.tune.trials_per_task, config.tune.round_size, config.seed) == (6, 8, 9)
    assert config.targets[0].threads == 2
    assert load_config(path, [], environ).tune.trials_per_task == 5


def test_resolved_yaml_comes_back_the_same(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), [], {})
    assert load_config(write(tmp_path, resolved_yaml(config)), [], {}) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("prune: {max_accuracy_drop: 0.01, rankng: l1}", ["prune.rankng", "prune.ranking"]),
        ("prune: {max_accuracy_drop: 0.01}\ntune: {trials: 4}", ["tune.trials_per_task"]),
        ("prune: {max_accuracy_drop: 0.01}\nepochs: 4", ["train.epochs"]),
        ("prune: {max_accuracy_drop: 0.01, ranking: l3}", ["'l3'", "'l1', 'l2' or 'fpgm'"]),
        ("prune: {accuracy_floor: 97}", ["prune.accuracy_floor is 97", "write 0.97"]),
        ("prune: {accuracy_floor: 0.9, max_accuracy_drop: 0.1}", ["both given", "keep one"]),
        ("run: one", ["section prune is missing"]),
        ("run: 7\nprune: {max_accuracy_drop: 0.01}", ["line 1", "in quotes: '7'"]),
        ("prune: 3", ["prune is 3", "section"]),
        ("prune: {max_accuracy_drop: 0.01}\nseed: x", ["seed is 'x'", "whole number"]),
        (
            "prune: {max_accuracy_drop: 0.01}\nbudget: {max_hours: .inf}",
            ["budget.max_hours is inf", "must be a finite number"],
        ),
        ("prune: {max_accuracy_drop: .nan}", ["prune.max_accuracy_drop is nan", "finite number"]),
        (
            "prune: {max_accuracy_drop: 0.01}\nmodel: {arguments: {width: [.inf]}}",
            ["model.arguments is inf", "must be a finite number"],
        ),
        (
            "prune: {max_accuracy_drop: 0.01}\nmodel: {arguments: {made: 2024-01-01}}",
            ["model.arguments", "must be a text, a number, true, false, a list or a mapping"],
        ),
        (
            "prune: {max_accuracy_drop: 0.01}\ntargets: [{device: loca}]",
            ["targets[0].device", "did you mean local"],
        ),
        (
            "prune: {max_accuracy_drop: 0.1}\ntrain: {epochs: true}",
            ["train.epochs is True", "whole"],
        ),
        ("prune: {max_accuracy_drop: 0.1}\nseed: false", ["seed is False", "a whole number"]),
        ("prune: {max_accuracy_drop: true}", ["prune.max_accuracy_drop is True", "a number"]),
        (
            "prune: {max_accuracy_drop: 0.1}\ntargets: [{cores: [0, 1, 0]}]",
            ["targets[0].cores", "core 0 is named more than once"],
        ),
        ("prune: {max_accuracy_drop: 0.1}\ntargets: [{cores: []}]", ["[0].cores", "at least 1"]),
        (
            "prune: {max_accuracy_drop: 0.1}\ntargets: [{cores: [true]}]",
            ["targets[0].cores[0] is True", "a whole number"],
        ),
        (
            "prune: {max_accuracy_drop: 0.01}\ntargets: [{tvm_target: 7}]",
            ["targets[0].tvm_target is 7", "'host'"],
        ),
        ("prune: {max_accuracy_drop: 0.01}\ntargets: []", ["targets is []", "at least 1"]),
        ("prune: {max_accuracy_drop: 0.01}\ndata: {name: cifar10}", ["data.root", "cifar10"]),
        ("seed: 1\nseed: 2\nprune: {max_accuracy_drop: 0.1}", ["line 2", "given twice"]),
        ("run: [1", ["not valid YAML", "line"]),
        ("prune: {max_accuracy_drop: 0.01}\n1: 3", ["line 2", "the key 1 is no name"]),
        ("prune: &p {max_accuracy_drop: 0.1, exclude: *p}", ["prune.exclude is an alias of what"]),
        ("prune: {exclude: [fc]}", ["a floor is missing", "max_accuracy_drop: 0.01"]),
        (
            "prune: {max_accuracy_drop: 1}",
            ["prune.max_accuracy_drop is 1", "less than 1", "write 0.01 for 1 %"],
        ),
        (
            "prune: {max_accuracy_drop: 0.1}\nmodel: {weights: w.pt}",
            ["model.weights is not a setting; write it as model.checkpoint"],
        ),
        (
            "prune: {max_accuracy_drop: 0.1}\ndata: {path: here}",
            ["data.path is not a setting; write it as data.root"],
        ),
        (
            "prune: {max_accuracy_drop: 0.1}\nbatch_size: 3",
            ["write it as input.batch_size or train.batch_size"],
        ),
        ("prune: {max_accuracy_drop: 0.1}\ndevice: cuda", ["write it as targets[0].device"]),
        (
            "prune: {max_accuracy_drop: 0.1}\ntargets: [{tracker_port: 9190}]",
            ["targets[].tracker_port is for device: tracker", "local"],
        ),
        (
            "prune: {max_accuracy_drop: 0.1}\n"
            "targets: [{device: tracker, tracker_port: 9190, cores: [0]}]",
            ["targets[].cores is for device: local"],
        ),
        ("- 1", ["mapping of sections"]),
        ("", ["section prune is missing"]),
    ],
)
def test_one_sentence_for_each_mistake(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    found = problems(path)
    assert len(found) == 1, found
    assert str(path) in found[0]
    assert "\n" not in found[0]
    for part in parts:
        assert part in found[0]


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    assert len(problems(write(tmp_path, "seed: x\nprune: {ranking: l3}\nsed: 1"))) >= 3


def test_the_source_of_a_bad_value_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert "--set seed=x" in problems(path, ("seed=x",))[0]
    assert "CPRUNE_TUNE__ROUND_SIZE" in problems(path, CPRUNE_TUNE__ROUND_SIZE="0")[0]
    assert "CPRUNE_SEED" in problems(path, CPRUNE_SED="3")[0]
    assert "CPRUNE_TUNE__ROUND_SIZE?" in problems(path, CPRUNE_TUNE_ROUND_SIZE="3")[0]
    assert "a.b=value" in problems(path, ("seed",))[0]
    assert "seed is a number" in problems(path, ("seed=1", "seed.a=2"))[0]


def test_the_file_is_not_blamed_for_other_sources(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    for found in (
        problems(path, CPRUNE_TUNEX__A="1"),
        problems(path, ("tunex.a=1",)),
        problems(path, ("targets.0.device=tracker",)),
        problems(path, CPRUNE___="1"),
        problems(path, ("tune..a=1",)),
    ):
        assert len(found) == 1 and str(path) not in found[0]
        assert found[0].startswith(("environment variable CPRUNE_", "--set t"))
    both = problems(path, ("prune.accuracy_floor=0.5",))[0]
    assert str(path) in both and "with --set prune.accuracy_floor=0.5" in both


def test_an_element_behind_the_end_names_the_next_one(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    found = problems(path, ("targets.1.name=b",))
    assert len(found) == 1 and "the next one is targets[0]" in found[0]
    names = ("targets.0.name=a", "targets.1.name=b")
    assert [target.name for target in load_config(path, names, {}).targets] == ["a", "b"]


def test_missing_file_names_a_near_one(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    found = problems(tmp_path / "rnu.yaml")
    assert "no such configuration file" in found[0] and "run.yaml" in found[0]
    assert "folder" in problems(tmp_path)[0]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    assert load_config(path, [], {}).run
