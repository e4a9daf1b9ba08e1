"""A network as the tuner sees it: its Relax module and its table, by structure."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.export import ExportedProgram
from tvm.target import Target

from schemas.network import Structure, Trained
from schemas.table import NetworkTable
from schemas.work import TuneWork
from workers.compiling.network import RelaxNetwork, relax_network
from workers.compiling.tasks import build_table
from workers.compiling.winograd import Forms, winograd_forms
from workers.compiling.workload import Workload
from workers.networks import Networks
from workers.pruning.fold import FoldPairs, exported_program, fold_batch_norm, fold_pairs

_MOST_KEPT = 64


@dataclass(frozen=True)
class Bundle:
    """One network structure, imported into TVM."""

    relax: RelaxNetwork
    table: NetworkTable
    workloads: dict[str, Workload]

    @property
    def task_ids(self) -> list[str]:
        """Tasks in the order of the network."""
        return [task.task_id for task in self.table.tasks]


class Bundles:
    """Imports networks into TVM; the last ones that were asked for are kept."""

    def __init__(self, networks: Networks, target: Target) -> None:
        self._networks = networks
        self._target = target
        self._known: dict[str, Bundle] = {}
        self._dense: Bundle | None = None
        self._lock = threading.RLock()  # programs are measured in a thread of their own
        self._pairs: dict[float | None, FoldPairs] = {}
        self._forms: Forms | None = None

    @property
    def dense(self) -> Bundle:
        """The network as it was before any pruning."""
        if self._dense is None:
            with self._lock:
                self._dense = self._dense or self._imported(Structure(), None)
        return self._dense

    def of_structure(self, structure: Structure, fraction: float | None = None) -> Bundle:
        """The bundle of a structure (or of the uniform network of ``fraction``).

        Raises ``UserError`` for a network that does not trace or has no exact table.
        """
        if structure == Structure() and fraction is None:
            return self.dense
        key = f"{structure.model_dump_json()}/{fraction}"
        with self._lock:
            found = self._known.pop(key, None) or self._imported(structure, fraction)
            self._known[key] = found  # the last one that was asked for
            if len(self._known) > _MOST_KEPT:
                del self._known[next(iter(self._known))]
            return found

    def _imported(self, structure: Structure, fraction: float | None) -> Bundle:
        model = self._networks.of_structure(structure, fraction)
        program = self._program(model, fraction)
        if self._forms is None and fraction is None and not structure.widths:
            self._forms = self._forms_of(program)
        relax = relax_network(program, self._target, self.forms())
        table = build_table(relax, self._target)
        return Bundle(relax, table.network, table.workloads)

    def forms(self) -> Forms:
        """How the dense network's convolutions are computed. Narrower ones keep the form, so that
        each of their call sites has its counterpart."""
        if self._forms is None:
            dense = self._networks.of_structure(Structure(), None)
            self._forms = self._forms_of(self._program(dense, None))
        return self._forms

    def _forms_of(self, dense: ExportedProgram) -> Forms:
        by_tiles = self._target.kind.name == "llvm"  # the transforms are scheduled for CPUs
        return winograd_forms(dense) if by_tiles else {}

    def of_work(self, work: TuneWork) -> Bundle:
        """The bundle of the network a unit of work names."""
        structure = work.network.structure if work.network else Structure()
        return self.of_structure(structure, work.fraction)

    def weights(
        self, trained: Trained, fraction: float | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The weights as the compiled network takes them: batch norm folded, by parameter name."""
        folded = self._folded(self._networks.load(trained, fraction), fraction)
        tensors = {**dict(folded.named_parameters()), **dict(folded.named_buffers())}
        names = self.of_structure(trained.structure, fraction).relax.tensors
        return {name: tensors[source].detach().numpy() for name, source in names.items()}

    def _program(self, model: nn.Module, fraction: float | None) -> ExportedProgram:
        return exported_program(self._folded(model, fraction), self._networks.batch)

    def _folded(self, model: nn.Module, fraction: float | None) -> nn.Module:
        image = self._networks.batch
        if fraction not in self._pairs:
            # Of the network with all its blocks: those without some have fewer.
            whole = self._networks.of_structure(Structure(), fraction)
            self._pairs[fraction] = fold_pairs(whole, image)
        return fold_batch_norm(model, image, self._pairs[fraction])
