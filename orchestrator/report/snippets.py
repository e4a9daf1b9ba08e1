"""The lines of Python in the report that load what a run exported."""

from __future__ import annotations

from collections.abc import Sequence


def torch_lines(target: str) -> str:
    """The pruned network in torch."""
    return (
        "import orchestrator\n\n"
        f'network = orchestrator.load_pruned("RUN_DIR", target="{target}")'
        "  # a torch.nn.Module in eval mode"
    )


def library_lines(path: str, *, device: str, threads: int, shape: Sequence[int], dtype: str) -> str:
    """The compiled library, run once; ``shape`` is that of its input."""
    sizes = ", ".join(str(size) for size in shape)
    return (
        f'import os\n\nos.environ["TVM_NUM_THREADS"] = "{threads}"'
        "  # as it was measured; TVM's own choice may be far slower\n\n"
        "import numpy\nimport tvm\nfrom tvm import relax\n\n"
        f'device = tvm.device("{device}")\n'
        f'library = tvm.runtime.load_module("{path}")\n'
        "machine = relax.VirtualMachine(library, device)\n"
        f'images = numpy.zeros(({sizes}), "{dtype}")'
        "  # prepared as 'preprocessing' in structure.json says\n"
        'logits = machine["main"](tvm.runtime.tensor(images, device))[0].numpy()'
    )
