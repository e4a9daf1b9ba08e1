"""How well models of latency told what a run's candidates take, before they were measured.

    python benchmarks/predictor.py RUN [--earlier RUN ...]

Goes through the candidates that a finished run screened. Each is predicted from what the run had
measured until then, and from what the ``--earlier`` runs measured; what was measured afterwards is
held out. Both are shares of the parent's latency by its programs. Measures nothing. The last line
is JSON: median error and Spearman's rank correlation of each model.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from orchestrator.policies.call_costs import CallCosts
from orchestrator.policies.latency_model import LatencyModel, Shape, predicted_ms, samples_of
from orchestrator.policies.sites import Sites
from orchestrator.store.reader import read_run
from schemas.network import Block, ChannelGroup, Structure
from schemas.record import RunRecord
from schemas.work import Candidate, Prepared, Screened, ScreenWork, Tuned, TuneWork

Samples = Mapping[Shape, float]


@dataclass(frozen=True)
class Asked:
    """A candidate, its parent's programs and structure, and what was measured so far in ms."""

    candidate: Candidate
    parent: Tuned
    structure: Structure
    prepared: Prepared
    samples: Samples

    @property
    def groups(self) -> Sequence[ChannelGroup]:
        """Of the parent."""
        return self.prepared.groups_in(self.structure)

    @property
    def blocks(self) -> Sequence[Block]:
        """Of the parent."""
        return self.prepared.blocks_in(self.structure)


Share = Callable[[Asked], float]
"""What the candidate takes, as a share of its parent's latency."""


def by_latency_model(asked: Asked) -> float:
    """As the policy ``predictor`` asks; without samples by the multiplications."""
    widths = _widths(asked)
    cut = dict(zip(asked.candidate.groups, asked.candidate.widths_after, strict=True))
    model = LatencyModel(asked.samples)
    told_ms = predicted_ms(model, asked.parent, asked.groups, widths, cut, asked.blocks)
    return told_ms / asked.parent.sum_ms


def by_call_costs(asked: Asked) -> float:
    """As cuts of the whole network are made."""
    costs = CallCosts(asked.samples)
    sites = Sites(asked.parent, asked.groups, _widths(asked), costs, asked.blocks)
    item = asked.candidate
    cuts = zip(item.groups, item.widths_before, item.widths_after, strict=True)
    return sites.total_ms({name: new / old for name, old, new in cuts}) / sites.total_ms({})


def _widths(asked: Asked) -> dict[str, int]:
    dense = {group.group_id: group.channels for group in asked.groups}
    return {**dense, **asked.structure.widths}


def networks_of(record: RunRecord) -> list[Tuned]:
    """All programs that a run found, network by network."""
    outcomes = (work.outcome for work in record.work)
    tuned = (item.tuned if isinstance(item, Screened) else item for item in outcomes)
    return [item for item in tuned if isinstance(item, Tuned)]


def shares(record: RunRecord, share: Share, earlier: Samples, *, learns: bool) -> list[float]:
    """What the model told of each candidate."""
    prepared: Prepared | None = None
    known: list[Tuned] = []
    of_structure: dict[str, Tuned] = {}
    told = []
    for item in record.work:
        work, outcome = item.work, item.outcome
        if isinstance(outcome, Prepared):
            prepared = outcome
        elif isinstance(outcome, Tuned):
            known.append(outcome)
            if isinstance(work, TuneWork) and work.network is not None:
                of_structure[work.network.structure.model_dump_json()] = outcome
        elif isinstance(work, ScreenWork) and isinstance(outcome, Screened) and outcome.tuned:
            before = work.candidate.parent.structure
            samples = {**earlier, **samples_of(known)} if learns else {}
            parent = of_structure[before.model_dump_json()]
            assert prepared is not None, "what a run does first"
            told.append(share(Asked(work.candidate, parent, before, prepared, samples)))
            known.append(outcome.tuned)
            of_structure.setdefault(work.candidate.structure.model_dump_json(), outcome.tuned)
    return told


def measured(record: RunRecord) -> list[float]:
    """What each candidate took, as a share of its parent's latency."""
    outcomes = (work.outcome for work in record.work)
    return [
        item.candidate_ms / item.parent_ms
        for item in outcomes
        if isinstance(item, Screened) and item.tuned and item.parent_ms
    ]


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--earlier", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    record = read_run(arguments.run)
    others = [tuned for path in arguments.earlier for tuned in networks_of(read_run(path))]
    earlier, truth = samples_of(others), measured(record)
    if len(truth) < 3:
        raise SystemExit(f"{arguments.run} screened {len(truth)} candidates: too few to rank")
    models: dict[str, tuple[Share, Samples, bool]] = {
        "multiplications": (by_latency_model, {}, False),
        "latency model": (by_latency_model, {}, True),
        "call costs": (by_call_costs, {}, True),
    }
    if earlier:
        models["latency model, earlier runs too"] = (by_latency_model, earlier, True)
        models["call costs, earlier runs too"] = (by_call_costs, earlier, True)
    print(f"{len(truth)} candidates of {arguments.run}, {len(earlier)} tasks of earlier runs")
    found = {}
    for name, (share, samples, learns) in models.items():
        told = shares(record, share, samples, learns=learns)
        errors = [abs(one / other - 1.0) for one, other in zip(told, truth, strict=True)]
        found[name] = {
            "median_error": round(statistics.median(errors), 4),
            "rank_correlation": round(float(stats.spearmanr(told, truth).statistic), 3),
        }
        print(f"{name:<34} {found[name]['median_error']:>7.1%} {found[name]['rank_correlation']}")
    print(json.dumps({"candidates": len(truth), **found}))


if __name__ == "__main__":
    main()
