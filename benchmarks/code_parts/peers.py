"""What people would deploy instead, in this process: ONNX Runtime and PyTorch."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

Run = Callable[[], object]

_SECONDS = 0.3
_FEWEST = 5


def onnx_runtime(network: nn.Module, image: Tensor, threads: int, folder: Path) -> Run:
    """One inference by ONNX Runtime, all its optimisations on."""
    path = folder / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), str(path), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, inputs)


def torch_eager(network: nn.Module, image: Tensor) -> Run:
    """One inference by PyTorch as it is."""

    def run() -> Tensor:
        with torch.inference_mode():
            return network(image)

    return run


def torch_compiled(network: nn.Module, image: Tensor) -> Run:
    """One inference by ``torch.compile`` with its default back end, compiled before it returns."""
    compiled = torch.compile(network)
    run = torch_eager(compiled, image)
    run()
    return run


def median_ms(run: Run) -> float:
    """Median of inferences for about 0.3 s, after two to warm up."""
    times: list[float] = []
    for _ in range(2):
        run()
    until = time.perf_counter() + _SECONDS
    while len(times) < _FEWEST or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def peak_gflops(threads: int) -> float:
    """The fastest of some large matrix products, by numpy and by torch, in GFLOP/s.

    numpy's library takes the threads it was started with.
    """
    torch.set_num_threads(threads)
    size = 1536
    left = np.random.default_rng(0).random((size, size), dtype=np.float32)
    tensor = torch.from_numpy(left)
    best = 0.0
    for run in (lambda: left @ left, lambda: tensor @ tensor):
        for _ in range(5):
            began = time.perf_counter()
            run()
            best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best
