"""The policies by the names that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.policies.base import Policy
from orchestrator.policies.ladder import Global, Uniform
from orchestrator.policies.netadapt import NetAdapt
from orchestrator.policies.paper import Original, Paper
from orchestrator.policies.parallel import Parallel
from orchestrator.policies.predictor import Predictor
from schemas.config import PolicyName

POLICIES: Mapping[PolicyName, Policy] = {
    "parallel": Parallel(),
    "paper": Paper(),
    "predictor": Predictor(),
    "uniform": Uniform(),
    "global": Global(),
    "netadapt": NetAdapt(),
    "original": Original(),
}
