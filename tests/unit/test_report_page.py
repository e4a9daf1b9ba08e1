"""The report page: self-contained, honest about its source, and there whatever is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import synthetic_record

from orchestrator.report import html, pictures, write_report
from orchestrator.report.page import headline, render
from orchestrator.summary import summarise
from schemas.record import RunRecord

VOID = {"meta", "img", "source", "br"}


class Balance(HTMLParser):
    """Fails on a tag that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(record: RunRecord) -> str:
    text = render(record, summarise(record))
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    return text


def test_result_comes_first_and_nothing_is_fetched() -> None:
    record = synthetic_record.record()
    text = page_of(record)
    speedup = summarise(record).targets[0].speedup
    assert f"<h1>{speedup:.2f}x faster at 98.3\N{NO-BREAK SPACE}% validation accuracy</h1>" in text
    assert "<script" not in text
    addresses = re.findall(r'(?:src|srcset|href)="([^"]{1,30})', text)
    assert addresses and all(a.startswith(("data:image/svg+xml;base64,", "../")) for a in addresses)
    for expected in (
        "dense network tuned with the same final budget",
        "load_pruned",
        "VirtualMachine",
        "TVM_NUM_THREADS",
        "clear 0.99",
        "max_accuracy_drop: 0.01",
        "0.0 (synthetic)",
    ):
        assert expected in text
    assert "Simulated." not in text
    assert text.count("<picture>") == 4


@pytest.mark.parametrize(
    ("tvm_target", "device"),
    [("host", "cpu"), ({"kind": "cuda"}, "cuda"), ({"kind": "llvm"}, "cpu")],
)
def test_the_lines_that_run_the_library_name_its_kind_of_device(
    tvm_target: str | dict[str, str], device: str
) -> None:
    record = synthetic_record.record()
    targets = list(
        target.model_copy(update={"tvm_target": tvm_target}) for target in record.config.targets
    )
    config = record.config.model_copy(update={"targets": targets})
    text = page_of(record.model_copy(update={"config": config}))
    assert f"tvm.device(&quot;{device}&quot;)" in text


def test_the_page_of_a_run_that_accepted_no_step_claims_nothing() -> None:
    text = page_of(synthetic_record.unpruned())
    assert "<h1>No step was accepted: the result is the dense network, at 98.6" in text
    assert "x faster" not in text and "in the pruned network" not in text


@pytest.mark.parametrize(
    ("ratio", "verdict", "title", "caption"),
    [
        (0.5, "slower", "2.00x slower at", "slower than the dense network"),
        (0.996, "slower", "As fast as the dense network at", "as fast as the dense network"),
        (1.02, "not_distinguishable", "1.02x, not distinguishable", "(10 comparisons)"),
        (1.4, "too_noisy", "1.40x, too noisy to tell (10 compar", "tell (10 comparisons)"),
    ],
)
def test_words_follow_the_verdict(ratio: float, verdict: str, title: str, caption: str) -> None:
    record = synthetic_record.record()
    summary = summarise(record)
    changes = {"speedup": ratio, "speedup_verdict": verdict}
    target = summary.targets[0].model_copy(update=changes)
    text = render(record, summary.model_copy(update={"targets": [target]}))
    assert f"<h1>{title}" in text and f"{caption}</span>" in text and "x faster" not in text


def test_large_numbers_are_rounded_before_their_unit() -> None:
    told = [html.big(number) for number in (999, 999_499, 999_999, 12_345)]
    assert told == ["999", "999\u00a0k", "1\u00a0M", "12.3\u00a0k"]


def test_seconds_of_several_targets_are_called_a_sum() -> None:
    assert pictures._phases_title(synthetic_record.record()) == "wall-clock by phase (s)"
    config = synthetic_record.config(targets=[{"name": "a"}, {"name": "b"}])
    record = synthetic_record.record().model_copy(update={"config": config})
    assert "summed over all targets" in pictures._phases_title(record)


def test_a_recording_has_a_banner() -> None:
    assert "Simulated." in page_of(synthetic_record.record(replay=True))


def test_unfinished_failed_and_empty_runs_have_a_page() -> None:
    partial = synthetic_record.record(finished=False, steps=5)
    assert "has not ended" in page_of(partial)
    assert headline(summarise(partial).targets[0]).startswith("No final result yet")
    failed = partial.model_copy(update={"state": "failed", "error": "<disk> full"})
    assert "&lt;disk&gt; full" in page_of(failed)
    empty = partial.model_copy(update={"work": (), "targets": (), "events": (), "phases_s": {}})
    assert "No result yet" in page_of(empty)


def test_several_targets_have_an_overview() -> None:
    record = synthetic_record.record()
    targets = [{"name": "host"}, {"name": "phone"}]
    text = page_of(record.model_copy(update={"config": synthetic_record.config(targets=targets)}))
    assert "<h1>2 targets</h1>" in text and "phone: No result yet" in text


def test_files_are_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = synthetic_record.record(steps=2)
    page = write_report(record, tmp_path)
    assert page == tmp_path / "report" / "index.html"
    before = (tmp_path / "summary.json").read_text()
    assert json.loads(before)["run"] == "synthetic"

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("orchestrator.report.os.replace", fail)
    with pytest.raises(OSError, match="no"):
        write_report(synthetic_record.record(steps=3), tmp_path)
    assert (tmp_path / "summary.json").read_text() == before
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "index.html",
        "summary.json",
    ]


def test_time_of_a_task_follows_its_modules() -> None:
    summary = summarise(synthetic_record.record()).targets[0]
    rows = pictures.task_times(summary)
    assert rows[-1][0] == "without weights"
    total = sum(task.program_ms * task.subgraphs for task in summary.tasks_after)
    assert sum(row[2] or 0.0 for row in rows) == pytest.approx(total)


def test_points_that_were_not_measured_whole_are_estimates() -> None:
    record = synthetic_record.record()
    points = pictures.points_of(record.targets[0].steps)
    assert len(points) == 14
    assert {point.estimated for point in points if point.accuracy is None} == {True}


def test_a_device_that_slows_down_between_two_steps_moves_no_point() -> None:
    """The line of accepted steps falls: each was faster than its parent, side by side."""
    steps = synthetic_record.record().targets[0].steps
    slower = 1.0
    drifted = []
    for step in steps:
        slower *= 1.5
        comparison = step.comparison and step.comparison.model_copy(
            update={
                "reference_ms": tuple(slower * ms for ms in step.comparison.reference_ms),
                "candidate_ms": tuple(slower * ms for ms in step.comparison.candidate_ms),
            }
        )
        drifted.append(step.model_copy(update={"comparison": comparison}))
    accepted = [point.latency_ms for point in pictures.points_of(drifted) if point.accepted]
    assert accepted == pytest.approx(
        [p.latency_ms for p in pictures.points_of(steps) if p.accepted]
    )
    assert len(accepted) > 1 and accepted == sorted(accepted, reverse=True)
