"""The kind of CPU: what compiled code chooses its instructions by, so that results are the same bits on one kind."""

import platform
from pathlib import Path


def cpu() -> dict[str, str]:
    """What is known of this machine's CPU.

    Returns
    -------
    dict
        ``model`` as the system calls it (empty if it does not say), ``kind`` and ``features`` as LLVM, which compiles
        the kernels, sees it. Bits can differ between CPUs that differ in the last two.
    """
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    return {
        "model": _model(),
        "kind": f"{platform.machine()} {llvmlite.binding.get_host_cpu_name()}",
        "features": " ".join(sorted(name for name, has in features.items() if has)),
    }


def _model() -> str:
    """The CPU's name, from Linux; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
