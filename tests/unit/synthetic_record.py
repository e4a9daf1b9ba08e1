"""A made-up run for the tests of summary, report and command line. NOT a measurement.

Every figure below is invented (seeded), and chosen to look like those of a small run so that the
report's pictures can be judged by eye.
"""

from __future__ import annotations

import random
from typing import Any

from schemas.config import RunConfig
from schemas.network import ChannelGroup, NetworkInfo, Structure, Trained
from schemas.record import EventRecord, RunRecord, StepRecord, TargetRecord, WorkRecord
from schemas.table import Comparison, Measurement, NetworkTable, Subgraph, Task
from schemas.work import (
    Candidate,
    Compared,
    CompareWork,
    Exported,
    ExportedNetwork,
    ExportWork,
    FineTuned,
    FineTuneWork,
    Prepared,
    PrepareWork,
    Screened,
    ScreenWork,
    TaskLatency,
    Tuned,
    TuneWork,
    UniformTrained,
    UniformWork,
)

GROUPS = {
    "conv1": 16,
    "layer1.0.conv1": 16,
    "layer2.0.conv1": 32,
    "layer2.0.conv2": 32,
    "layer3.0.conv1": 64,
    "layer3.0.conv2": 64,
}
LAYERS = {
    "conv1": 0.055,
    "layer1.0.conv1": 0.212,
    "layer1.0.conv2": 0.221,
    "layer2.0.conv1": 0.118,
    "layer2.0.conv2": 0.205,
    "layer2.0.downsample.0": 0.021,
    "layer3.0.conv1": 0.109,
    "layer3.0.conv2": 0.196,
    "layer3.0.downsample.0": 0.017,
    "fc": 0.004,
}
SHAPE = (1, 1, 32, 32)


def config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "run": "synthetic",
        "prune": {"max_accuracy_drop": 0.01},
        "compare_uniform": 0.5,
    }
    return RunConfig.model_validate({**values, **changes})


def trained(name: str, accuracy: float, train_s: float, **widths: int) -> Trained:
    share = sum(widths.values()) + sum(v for k, v in GROUPS.items() if k not in widths)
    share = (share / sum(GROUPS.values())) ** 2
    info = NetworkInfo(
        macs=int(9_850_000 * share),
        params=int(77_500 * share),
        input_shape=SHAPE,
        class_names=tuple("0123456789"),
    )
    return Trained(
        structure=Structure(widths=widths),
        weights=name,
        val_accuracy=accuracy,
        info=info,
        train_s=train_s,
        epochs=10,
    )


def measured(rng: random.Random, ms: float, kind: str = "local", repeats: int = 10) -> Measurement:
    return Measurement.model_validate(
        {
            "run_ms": [ms * rng.gauss(1.0, 0.012) for _ in range(repeats)],
            "device": "local-0",
            "device_kind": kind,
            "threads": 2,
            "measured_at": 0.0,
        }
    )


def tuned(scale: float, programs: int = 160) -> Tuned:
    tasks, subgraphs, latencies = [], [], []
    for index, (module, ms) in enumerate(LAYERS.items()):
        task = f"{index:02d}-{scale:.3f}"
        name = "fused_conv2d_add_relu" if module != "fc" else "fused_matmul_add"
        tasks.append(Task(task_id=task, name=f"{name}{index}", kind="conv2d", workload="w", macs=1))
        subgraphs.append(
            Subgraph(
                index=index,
                task_id=task,
                module=module,
                parameter=f"{module}.weight",
                output_shape=(1, 8, 32, 32),
            )
        )
        latencies.append(
            TaskLatency(
                task_id=task,
                program_id="p",
                latency_ms=ms * (scale if module.startswith("layer") else (1 + scale) / 2),
                channel_tiles=(2, 1, 1, 8),
                trials=16,
                lineage_trials=32,
            )
        )
    tasks.append(
        Task(task_id="pool", name="adaptive_avg_pool2d", kind="other", workload="w", macs=0)
    )
    subgraphs.append(
        Subgraph(index=99, task_id="pool", module=None, parameter=None, output_shape=(1, 64, 1, 1))
    )
    latencies.append(
        TaskLatency(task_id="pool", program_id="p", latency_ms=0.006, trials=4, lineage_trials=4)
    )
    return Tuned(
        device_model="x86-64 test machine",
        table=NetworkTable(tasks=tuple(tasks), subgraphs=tuple(subgraphs)),
        latencies=tuple(latencies),
        measured_programs=programs,
        failed_programs=programs // 20,
        device_s=programs * 0.3,
        wall_s=programs * 0.8,
    )


def record(*, replay: bool = False, steps: int = 14, finished: bool = True) -> RunRecord:
    """A run of ``steps`` decisions; not finished, it has no export and is still going."""
    rng = random.Random(7)
    kind = "replay" if replay else "local"
    target = {"device": "replay", "recording": "r.jsonl"} if replay else {}
    settings = config(targets=[target])
    dense = trained("dense", 0.9861, 38.0)
    groups = tuple(
        ChannelGroup(group_id=name, channels=n, producers=(name,), consumers=())
        for name, n in GROUPS.items()
    )
    groups += (
        ChannelGroup(
            group_id="fc",
            channels=10,
            producers=("fc",),
            consumers=(),
            prunable=False,
            reason="the network's output",
        ),
    )
    prepared = Prepared(dense=dense, groups=groups)
    work: list[WorkRecord] = []

    def done(unit: Any, outcome: Any, seconds: float) -> None:
        work.append(
            WorkRecord(work=unit, outcome=outcome, finished_at=float(len(work)), seconds=seconds)
        )

    done(PrepareWork(), prepared, 41.0)
    done(TuneWork(target="host", network=dense, trials_per_task=16), tuned(1.0), 130.0)
    parent, scale, decided = dense, 1.0, []
    for number in range(steps):
        group = list(GROUPS)[1 + rng.randrange(len(GROUPS) - 1)]
        before = parent.structure.widths.get(group, GROUPS[group])
        after = max(4, before - before // 4)
        structure = parent.structure.with_widths({group: after})
        smaller = scale * rng.uniform(0.88, 0.99)
        screened_only = number % 4 == 3
        accuracy = None if screened_only else min(0.99, 0.9872 - 0.0014 * number * rng.random())
        accepted = bool(accuracy and accuracy > 0.9765 and smaller < scale * 0.985)
        candidate = Candidate(
            candidate_id=f"c{number}",
            task_id="t",
            task_name=f"fused_conv2d_add_relu{number % 9}",
            parent=parent,
            structure=structure,
            groups=(group,),
            widths_before=(before,),
            widths_after=(after,),
        )
        work_tuned = tuned(smaller, 8)
        done(
            ScreenWork(target="host", candidate=candidate),
            Screened(
                candidate_id=f"c{number}", tuned=work_tuned, parent_ms=scale, candidate_ms=smaller
            ),
            5.0,
        )
        comparison = None
        if accuracy is not None:
            network = trained(f"w{number}", accuracy, 7.5, **structure.widths)
            done(
                FineTuneWork(parent=parent, structure=structure, epochs=2, learning_rate=0.02),
                FineTuned(network=network),
                8.0,
            )
            reference = measured(rng, 1.22 * scale, kind)
            new = measured(rng, 1.22 * smaller, kind)
            comparison = Comparison(
                reference_ms=reference.run_ms,
                candidate_ms=new.run_ms,
                reference=reference,
                candidate=new,
            )
            done(
                CompareWork(target="host", reference=parent, candidate=network),
                Compared(comparison=comparison, device_s=3.0),
                9.0,
            )
        reason = (
            "faster beyond the noise, accuracy kept"
            if accepted
            else "not faster by its programs"
            if screened_only
            else "latency ratio 0.994 (bound 1.003) does not clear 0.99"
        )
        decided.append(
            StepRecord(
                round=1 + number // 3,
                candidate=candidate,
                parent_ms=scale,
                screened_ms=smaller * 1.12,
                val_accuracy=accuracy,
                comparison=comparison,
                accepted=accepted,
                reason=reason,
            )
        )
        if accepted:
            parent, scale = trained(f"w{number}", accuracy or 0.0, 7.5, **structure.widths), smaller
    final = trained("final", 0.9833, 30.0, **parent.structure.widths) if finished else None
    if final is not None:
        done(UniformWork(fraction=0.5), UniformTrained(network=trained("half", 0.9652, 22.0)), 25.0)
        done(
            FineTuneWork(parent=parent, structure=parent.structure, epochs=8, learning_rate=0.02),
            FineTuned(network=final),
            31.0,
        )
        done(TuneWork(target="host", network=final, trials_per_task=32), tuned(scale, 96), 80.0)
        done(
            ExportWork(target="host", dense=dense, final=final, fraction=0.5),
            _export(rng, dense, final, scale, kind),
            22.0,
        )
    return RunRecord(
        config=settings,
        state="done" if finished else "running",
        error="",
        started=1,
        wall_s=548.0,
        phases_s={
            "prepare": 41.0,
            "tune": 131.5,
            "screen": 62.0,
            "fine_tune": 84.0,
            "judge": 66.0,
            "retune": 71.0,
            "finish": 74.0,
            "export": 18.5,
        },
        versions={"python": "3.11", "tvm": "0.0 (synthetic)", "torch": "0.0 (synthetic)"},
        targets=(
            TargetRecord(
                target="host",
                state="done" if finished else "fine_tune",
                accuracy_floor=0.9761,
                current=parent,
                final=final,
                steps=tuple(decided),
                stopped_by="no candidate clears the gates" if finished else "",
            ),
        ),
        work=tuple(work),
        events=(EventRecord(sequence=1, at=0.0, target="host", state="tune", message="began"),),
    )


def unpruned() -> RunRecord:
    """A finished run that accepted no step: its export holds the dense network twice."""
    whole = record(steps=0)
    *work, export = whole.work
    assert isinstance(export.work, ExportWork) and isinstance(export.outcome, Exported)
    latency = export.outcome.final.latency
    final = export.outcome.dense.model_copy(update={"latency": latency})
    changes = {
        "work": export.work.model_copy(update={"final": export.work.dense}),
        "outcome": export.outcome.model_copy(update={"final": final}),
    }
    work.append(export.model_copy(update=changes))
    target = whole.targets[0].model_copy(update={"final": whole.targets[0].current})
    return whole.model_copy(update={"work": tuple(work), "targets": (target,)})


def _export(
    rng: random.Random, dense: Trained, final: Trained, scale: float, kind: str
) -> Exported:
    def network(source: Trained, ms: float, test: float) -> ExportedNetwork:
        return ExportedNetwork(
            latency=measured(rng, ms, kind),
            val_accuracy=source.val_accuracy,
            test_accuracy=test,
            info=source.info,
        )

    half = trained("half", 0.9652, 22.0, **{name: n // 2 for name, n in GROUPS.items()})
    base_ms, final_ms = 1.17, 1.13 * scale
    names = {
        "weights": "weights.safetensors",
        "structure": "structure.json",
        "exported_program": "network.pt2",
        "onnx": "network.onnx",
        "library": "network.so",
        "tuning_records": "records.jsonl",
    }
    return Exported(
        dense=network(dense, base_ms, 0.9806),
        final=network(final, final_ms, 0.9778),
        uniform=network(half, 0.62, 0.9611),
        dense_tuned=tuned(0.97),
        final_tuned=tuned(scale * 0.95),
        speedup_ratios=tuple(base_ms / final_ms * rng.gauss(1, 0.01) for _ in range(10)),
        max_abs_difference=3.1e-6,
        max_abs_output=14.2,
        checked_images=32,
        test_images=360,
        artifacts={what: f"export/host/{name}" for what, name in names.items()},
        device_s=12.0,
    )
