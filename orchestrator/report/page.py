"""The report page: one HTML file that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from device_agents.host_facts import runs_on
from orchestrator.configuration import resolved_yaml
from orchestrator.held_out import doubt_of
from orchestrator.report import pictures
from orchestrator.report.html import (
    big,
    document,
    duration,
    milliseconds,
    percent,
    section,
    share,
    table,
)
from orchestrator.report.snippets import library_lines, torch_lines
from orchestrator.speedup import factor_of, in_words, remark
from orchestrator.summary import exported_of, prepared_of
from orchestrator.wording import count
from schemas.record import RunRecord, TargetRecord
from schemas.summary import NetworkSummary, StepSummary, Summary, TargetSummary


def headline(target: TargetSummary) -> str:
    """The result on one target in one line of plain text."""
    if target.speedup_verdict is not None and target.final is not None:
        told = in_words(target.speedup_verdict, target.speedup, target.speedup_comparisons)
        told = told.removesuffix(" than the dense network")
        joint = ", " if target.speedup_verdict == "dense" or "(" in told else " "
        accuracy = percent(target.final.val_accuracy)
        return f"{told[:1].upper()}{told[1:]}{joint}at {accuracy} validation accuracy"
    accepted = [step for step in target.steps if step.accepted]
    if accepted:
        last = accepted[-1]
        reached = (
            f", {milliseconds(last.latency_ms)}\u00a0ms" if last.latency_ms is not None else ""
        )
        return f"No final result yet: {count(len(accepted), 'accepted step')}{reached}"
    return "No result yet"


_SLOWED = 1.3
"""From which ratio on it is told that the device was slowed down."""


def render(record: RunRecord, summary: Summary) -> str:
    """The whole page as HTML text."""
    known = {target.target: target for target in record.targets}
    single = len(summary.targets) == 1
    title = headline(summary.targets[0]) if single else f"{len(summary.targets)} targets"
    kind = f"cprune · {summary.run} · {_network_name(record)}"
    if single:
        kind += f" on {_device(summary.targets[0])}"
    body: list[str | None] = [_state_banner(summary)]
    if not single:
        body.append(_overview(summary.targets))
    for target in summary.targets:
        if not single:
            body.append(f"<h2>{escape(target.target)}: {escape(headline(target))}</h2>")
        body += _target(record, known.get(target.target), target)
    body += _environment(record, summary)
    return document(kind, f"{summary.run}: {title}", title, body)


# ------------------------------------------------------------------------------ one target


def _target(
    record: RunRecord, state: TargetRecord | None, target: TargetSummary
) -> list[str | None]:
    parts: list[str | None] = []
    if target.simulated:
        parts.append(
            '<p class="banner"><b>Simulated.</b> The latencies here were answered from a '
            "recording or by simulated devices, not measured on a device in this run. They prove "
            "no speed-up.</p>"
        )
    parts += [_lead(record, target), _facts(target), _networks(record, target)]
    if state is not None:
        parts.append(
            section(
                "Accuracy against latency",
                lambda palette: pictures.accuracy_latency(record, state, target, palette),
                "Every candidate that was judged. The line joins the accepted steps, beginning at "
                "the dense network as it was tuned when the search began (hollow); each lies at "
                "its parent's latency times the ratio of the two, taken in turns. The baseline is "
                "the dense network after the final tuning; long fine-tuning follows the last step.",
            )
        )
    parts.append(_steps(target))
    parts.append(
        section(
            "Where the time goes",
            lambda palette: pictures.time_per_task(target, palette),
            "Each row is a task of the dense network, named by its first layer."
            + (
                " The time after is that of the same layers in the pruned network, whichever tasks "
                "they became."
                if target.tasks_after
                else ""
            )
            + _outside_tasks(target),
        )
    )
    parts.append(
        section(
            "Widths",
            lambda palette: pictures.widths(target, palette),
            "Channel groups: layers whose channels are removed together. Where none are left, the "
            "block that computes them is taken out.",
        )
    )
    if state is not None:
        parts.append(
            section(
                "What the search cost",
                lambda palette: pictures.cost(record, state, palette),
                f"{target.measured_programs:,} programs measured ({target.failed_programs:,} more "
                f"did not build or run), {target.measured_models:,} whole networks, "
                f"{duration(target.device_s)} of device time, "
                f"{duration(target.train_s)} of training.",
            )
        )
    parts.append(_artifacts(record, target))
    return parts


def _lead(record: RunRecord, target: TargetSummary) -> str:
    sentences: list[str] = []
    if target.baseline and target.final:
        base, final = target.baseline, target.final
        name = "final" if target.speedup_verdict == "dense" else "pruned"
        sentences.append(
            f"The {name} network takes {milliseconds(final.latency_ms)}\u00a0ms for a batch of "
            f"{record.config.input.batch_size} where the dense one takes "
            f"{milliseconds(base.latency_ms)}\u00a0ms"
            + (f", on {escape(target.device_model)}." if target.device_model else ".")
        )
        if target.speedup_verdict == "dense":
            sentences.append(
                "No step was accepted: it is the dense network itself, and any difference is noise."
            )
        elif target.speedup_verdict == "faster":
            confidence = record.config.prune.confidence
            sentences.append(
                f"With {confidence:.0%} confidence the speed-up is at least "
                f"{target.speedup_low:.2f}x."
            )
        if final.test_accuracy is not None and base.test_accuracy is not None:
            sentences.append(
                f"On the test split, read once at the end: {percent(final.test_accuracy)} "
                f"(dense {percent(base.test_accuracy)})."
            )
    doubt = doubt_of(target)
    if doubt:
        sentences.append(f"<b>{escape(doubt[0].upper() + doubt[1:])}.</b>")
    if target.device_slowed is not None and target.device_slowed > _SLOWED:
        sentences.append(
            f"The device was at times {target.device_slowed:.1f} times as slow as when its session "
            "began, as a fixed workload tells: it is throttled or shared."
        )
    if target.accuracy_floor is not None:
        sentences.append(f"Accuracy floor: {percent(target.accuracy_floor)} on validation images.")
    if target.meets_latency_target is not None:
        reached = "is met" if target.meets_latency_target else "is <b>not</b> met"
        sentences.append(f"The latency target of {target.latency_target_ms:g}\u00a0ms {reached}.")
    if target.stopped_by:
        sentences.append(f"The search ended: {escape(target.stopped_by.rstrip('.'))}.")
    return f'<p class="lead">{" ".join(sentences)}</p>' if sentences else ""


def _facts(target: TargetSummary) -> str:
    if not (target.baseline and target.final):
        return ""
    base, final = target.baseline, target.final
    cells = [
        ("fact main", *_speedup_fact(target)),
        (
            "fact",
            f"{milliseconds(final.latency_ms)}\u00a0ms",
            f"latency, dense {milliseconds(base.latency_ms)}\u00a0ms",
        ),
        (
            "fact",
            percent(final.val_accuracy),
            f"validation accuracy, dense {percent(base.val_accuracy)}",
        ),
        ("fact", share(final.macs, base.macs), f"of the work, {big(final.macs)} MACs"),
        ("fact", share(final.params, base.params), f"of the parameters, {big(final.params)}"),
    ]
    inner = "".join(
        f'<div class="{kind}"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for kind, value, text in cells
    )
    return f'<div class="facts">{inner}</div>'


def _speedup_fact(target: TargetSummary) -> tuple[str, str]:
    """The first tile: a figure, and what it says."""
    if target.speedup is None:
        return "dense", "no step was accepted: the result is the dense network"
    if target.speedup_verdict in ("faster", "slower"):
        factor, word = factor_of(target.speedup)
        return factor or "1.00x", f"{word} the dense network"
    return f"{target.speedup:.2f}x", remark(target.speedup_verdict, target.speedup_comparisons)


def _networks(record: RunRecord, target: TargetSummary) -> str:
    named: list[tuple[str, NetworkSummary | None]] = [
        ("dense (baseline)", target.baseline),
        ("dense (final)" if target.speedup_verdict == "dense" else "pruned (final)", target.final),
    ]
    if record.config.compare_uniform is not None:
        named.append((f"{record.config.compare_uniform:.0%} of every width", target.uniform))
    if not any(network for _, network in named):
        return ""
    rows = []
    for name, network in named:
        if network is None:
            continue
        strong = ' class="strong"' if network is target.final else ""
        test = "" if network.test_accuracy is None else percent(network.test_accuracy)
        cells = [
            f"{milliseconds(network.latency_ms)} ± {network.latency_ms_iqr / 2:#.2g}",
            f"{network.fps:,.0f}",
            percent(network.val_accuracy),
            test,
            big(network.macs),
            big(network.params),
        ]
        rows.append(
            f"<tr{strong}><td>{escape(name)}</td>"
            + "".join(f'<td class="n">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    uniform = (
        " The uniformly narrower network was trained from scratch and tuned alike."
        if target.uniform
        else ""
    )
    return (
        table(
            [
                "network",
                "*latency, ms",
                "*images/s",
                "*validation",
                "*test",
                "*MACs",
                "*parameters",
            ],
            rows,
        )
        + '<p class="muted"><b>Baseline:</b> the dense network tuned with the same final budget, '
        "on the same device, in the same run. Latencies are of the whole exported network, taken "
        "in turns (median ± half the interquartile range); the speed-up is the median of the "
        f"paired ratios, so not quite the ratio of these medians.{uniform}</p>"
    )


def _outside_tasks(target: TargetSummary) -> str:
    """What of the networks' latencies the tasks do not account for."""
    shares = (target.outside_tasks_before, target.outside_tasks_after)
    told = [
        f"{abs(share):.0%} {'less than' if share > 0 else 'more than'} the {name} network's"
        for share, name in zip(shares, ("dense", "pruned"), strict=True)
        if share is not None
    ]
    if not told:
        return " Each program was timed by itself."
    return (
        " Times are those of the calls inside the running network; their sum is "
        f"{' and '.join(told)} whole latency, the rest being the calls themselves."
    )


def _steps(target: TargetSummary) -> str:
    if not target.steps:
        return ""
    accepted = sum(step.accepted for step in target.steps)
    rows = [_step_row(number, step) for number, step in enumerate(target.steps, start=1)]
    return (
        f"<h3>Steps: {accepted} accepted of {len(target.steps)} decided</h3>"
        + table(
            ["", "task", "widths", "*screened, ms", "*network, ms", "*validation", "reason"], rows
        )
        + '<p class="muted">Screened: the sum of its programs. Network: the whole compiled '
        f"network on the device, taken in turns with its parent.{_predicted(target)}</p>"
    )


def _predicted(target: TargetSummary) -> str:
    """How good the latency model was, where there is one."""
    found = target.predictor
    if found is None:
        return ""
    ranked = (
        "" if found.rank_correlation is None else f", rank correlation {found.rank_correlation:.2f}"
    )
    return (
        f" The latency model predicted {count(found.candidates, 'candidate')} before they were "
        f"screened: median error {percent(found.median_error)}{ranked}."
    )


def _step_row(number: int, step: StepSummary) -> str:
    changes = "<br>".join(
        f"<code>{escape(group)}</code> {before} → {after or 'none: its block is taken out'}"
        for group, before, after in zip(
            step.groups, step.widths_before, step.widths_after, strict=False
        )
    )
    latency = "" if step.latency_ms is None else f"{milliseconds(step.latency_ms)}"
    screened = "" if step.screened_ms is None else f"{milliseconds(step.screened_ms)}"
    accuracy = "" if step.val_accuracy is None else percent(step.val_accuracy)
    kind, mark = ("accepted", "✓") if step.accepted else ("rejected", "✗")
    return (
        f'<tr class="{kind}"><td>{number}&nbsp;{mark}</td><td><code>{escape(step.task)}</code></td>'
        f'<td>{changes}</td><td class="n">{screened}</td><td class="n">{latency}</td>'
        f'<td class="n">{accuracy}</td><td class="reason">{escape(step.reason)}</td></tr>'
    )


def _artifacts(record: RunRecord, target: TargetSummary) -> str:
    if not target.artifacts:
        return ""
    rows = [
        f"<tr><td>{escape(name)}</td>"
        f'<td><a href="../{escape(path)}"><code>{escape(path)}</code></a></td></tr>'
        for name, path in target.artifacts.items()
    ]
    check = target.library_check
    checked = (
        f"<p>The exported library was loaded on a device and run on {check.images} test images: "
        f"its outputs differ from torch's by at most {check.max_abs_difference:.2g} "
        f"(largest output {check.max_abs_output:.3g}).</p>"
        if check
        else ""
    )
    library = next((p for n, p in target.artifacts.items() if "library" in n), None)
    return (
        "<h3>Artefacts</h3>"
        + table(["what", "file, relative to the run folder"], rows)
        + checked
        + "".join(f"<p>{escape(note)}</p>" for note in target.notes)
        + f"<p>The pruned network in torch:</p><pre>{escape(torch_lines(target.target))}</pre>"
        + (_library_lines(record, target, library) if library else "")
    )


def _library_lines(record: RunRecord, target: TargetSummary, path: str) -> str:
    configured = next(item for item in record.config.targets if item.name == target.target)
    prepared, exported = prepared_of(record), exported_of(record, target.target)
    assert prepared is not None and exported is not None, "its library was"
    lines = library_lines(
        f"RUN_DIR/{path}",
        device=runs_on(configured.tvm_target),
        threads=exported.final.latency.threads,
        shape=prepared.dense.info.input_shape,
        dtype=record.config.input.dtype,
    )
    return f"<p>The compiled library, on its device:</p><pre>{escape(lines)}</pre>"


# ------------------------------------------------------------------------------ the rest


def _state_banner(summary: Summary) -> str:
    texts = {
        "failed": f"The run failed: {summary.error or 'no reason was recorded'}",
        "cancelled": "The run was cancelled; what had been found until then is below.",
        "running": "The run has not ended; this is what is known so far.",
    }
    text = texts.get(summary.state)
    return f'<p class="banner">{escape(text)}</p>' if text else ""


def _overview(targets: Sequence[TargetSummary]) -> str:
    rows = []
    for target in targets:
        final, base = target.final, target.baseline
        cells = [
            " ".join(_speedup_fact(target)) if base and final else "",
            f"{milliseconds(base.latency_ms)}" if base else "",
            f"{milliseconds(final.latency_ms)}" if final else "",
            percent(final.val_accuracy) if final else "",
            "simulated" if target.simulated else "",
        ]
        rows.append(
            f"<tr><td>{escape(_device(target))}</td><td>{escape(cells[0])}</td>"
            + "".join(f'<td class="n">{cell}</td>' for cell in cells[1:])
            + "</tr>"
        )
    return table(["target", "speed-up", "*dense, ms", "*final, ms", "*validation", "*"], rows)


def _environment(record: RunRecord, summary: Summary) -> list[str | None]:
    versions = [
        f"<tr><td>{escape(name)}</td><td>{escape(version)}</td></tr>"
        for name, version in summary.versions.items()
    ]
    starts = "" if summary.started <= 1 else f", started {summary.started} times"
    return [
        "<h2>Run</h2>",
        f"<p>{duration(summary.wall_s)} of wall-clock time{starts}. State: "
        f"{escape(summary.state)}.</p>",
        table(["software and machine", "version"], versions) if versions else None,
        _wrong_programs(summary),
        "<details><summary>Configuration, defaults included</summary>"
        f"<pre>{escape(resolved_yaml(record.config))}</pre></details>",
    ]


def _wrong_programs(summary: Summary) -> str | None:
    if not summary.wrong_programs:
        return None
    rows = [
        f"<tr><td><code>{escape(program.task)}</code></td><td>{escape(program.device_model)}</td>"
        f"<td>{escape(program.error)}<pre>{escape(program.trace)}</pre></td></tr>"
        for program in summary.wrong_programs
    ]
    told = f"{count(len(rows), 'program')} computed something else than the task; none was used"
    return (
        f"<details><summary>{told}</summary>"
        + table(["task", "device", "what was wrong, and the schedule trace"], rows)
        + "</details>"
    )


def _network_name(record: RunRecord) -> str:
    return f"{record.config.model.name} on {record.config.data.title}"


def _device(target: TargetSummary) -> str:
    return f"{target.target} ({target.device_model})" if target.device_model else target.target
