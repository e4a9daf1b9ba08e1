"""``cprune compare``: the forms of a comparison, and what it prints."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli_parts import ConfigPath, Settings, check_start, fail, load, relative
from orchestrator.console import print_table


def compare(
    config_path: ConfigPath,
    settings: Settings = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Of the baselines (or ablations) only this one; may be repeated. The rows of "
            "docs/comparing.md.",
        ),
    ] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Ours with parts left out, instead of baselines.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer epochs, rounds and trials; proves little.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="70 trials for each task, as the paper's code.")
    ] = False,
    original_candidates: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="End the original algorithm after N candidates; 0: at its own end. "
            "With --quick after 3 at most.",
        ),
    ] = 20,
) -> None:
    """Compare pruning methods on one network and device, or go on with a comparison."""
    from orchestrator.compare import methods as known
    from orchestrator.compare.comparison import compare as compare_methods
    from orchestrator.compare.page import console_table, headline, remarks
    from orchestrator.plan import run_folder

    if quick and paper:
        fail("--quick and --paper exclude each other; give one of them.", 2)
    config = load(config_path, settings)
    if config.prune.latency_target_ms is not None:
        fail(
            "prune.latency_target_ms: a comparison pushes every method to the accuracy floor; "
            "leave it out, or look for one network with 'cprune run'.",
            2,
        )
    if paper:
        config = known.with_trials(config, known.PAPER_TRIALS)
    if quick:
        config = known.quick(config)
        original_candidates = min(original_candidates or 3, 3)
    forms = {"ablations": ablations, "quick": quick, "paper": paper}
    name = "-".join([config.run, *(form for form, is_asked in forms.items() if is_asked)])
    config = config.model_copy(update={"run": name})
    check_start(config)
    offered = (known.OURS, *known.BASELINES, *known.ABLATIONS)
    for name in method or ():
        if name not in offered:
            fail(f"--method {name}: choose from {', '.join(offered)}.", 2)
    asked = method or (known.ABLATIONS if ablations else known.BASELINES)
    chosen = [name for name in offered if name == known.OURS or name in asked]
    folder = run_folder(config)
    typer.echo(f"{config.run}: results go to {relative(folder)}")
    tables = compare_methods(
        config,
        folder,
        chosen,
        is_quick=quick,
        original_candidates=original_candidates,
        report=typer.echo,
    )
    for found in tables:
        typer.echo(f"\n{found.target}: {headline(found)}")
        print_table(*console_table(found))
        for remark in remarks(found):
            typer.echo(remark)
    typer.echo(f"page: {relative(folder / 'comparison.html')}")
