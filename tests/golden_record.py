"""Records of results to the bit, one file per kind of machine: data/golden/<key>.json.

Bits are the same on one kind of CPU with the same libraries (docs/reliability.md), so a record counts where its key is
the machine's own. The key names what compiled code and libraries choose their instructions by, and the versions that
results have been seen to hang on. All that is known of the machine that made a record stands in it, under "facts".
"""

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import llvmlite.binding
import numba

FOLDER = Path(__file__).parent / "data" / "golden"
RECORD = "IWES_RECORD_GOLDEN"
_IN_KEY = ("numpy", "numba", "llvmlite", "mujoco", "gymnasium")  # major and minor version


def _instructions():
    """What the CPU's own vector instructions are: the widest, and fused multiply-add."""
    features = llvmlite.binding.get_host_cpu_features()
    whole_avx512 = all(features.get(f"avx512{part}", False) for part in ("f", "cd", "bw", "dq", "vl"))
    widest = "avx512" if whole_avx512 else next((name for name in ("avx2", "avx") if features.get(name)), "sse")
    return [widest] + (["fma"] if features.get("fma") else [])


def facts():
    """What is known of this machine that results may hang on, by name."""
    features = sorted(name for name, has in llvmlite.binding.get_host_cpu_features().items() if has)
    return {
        "machine": platform.machine(),
        "cpu": llvmlite.binding.get_host_cpu_name(),
        "cpu_features": " ".join(features),
        "numba_cpu": str(numba.config.CPU_NAME or "host"),
        "numba_cpu_features": str(numba.config.CPU_FEATURES or "host"),
        "llvm": ".".join(map(str, llvmlite.binding.llvm_version_info)),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _IN_KEY},
    }


def key():
    """A short name for this kind of machine: CPU, vector instructions, versions."""
    known = facts()
    chosen = [known[name] for name in ("numba_cpu", "numba_cpu_features") if known[name] != "host"]
    cpu = [known["cpu"], *_instructions(), *(["numba", *chosen] if chosen else [])]
    versions = [name + ".".join(known[name].split(".")[:2]) for name in _IN_KEY]
    return "-".join([*cpu, *versions]).replace("/", "_").replace(",", "_")


def path():
    """The file of this kind of machine, which may not be there."""
    return FOLDER / f"{key()}.json"


def everywhere():
    """The files of all kinds of machines."""
    return sorted(FOLDER.glob("*-*.json"))


def load():
    """The results on record for this kind of machine, by name; None if there are none."""
    return json.loads(path().read_text())["results"] if path().exists() else None


def recording():
    """Whether to put on record what is not yet."""
    return os.environ.get(RECORD) == "1"


def add(results):
    """Put results on record, by name. None that is there already is replaced: delete it, if it is to change."""
    results = results | (load() or {})
    known = json.loads(path().read_text())["facts"] if path().exists() else facts()
    lines = [f"  {json.dumps(name)}: {json.dumps(result)}" for name, result in sorted(results.items())]
    text = f'{{"facts": {json.dumps(known, indent=1)},\n"results": {{\n' + ",\n".join(lines) + "\n}}\n"
    path().parent.mkdir(parents=True, exist_ok=True)
    path().write_text(text)


def differences(found, expected):
    """One line for each result that is not the one on record, saying where it first differs."""
    lines = []
    for name, result in found.items():
        for what, values in result.items():
            on_record = expected[name][what]
            if values != on_record:
                place = next((i for i, (a, b) in enumerate(zip(values, on_record, strict=False)) if a != b), "its end")
                lines.append(f"{name}: {what} from iteration {place} on: {values} instead of {on_record}")
                break
    return lines


def report(lines):
    """What to say when results are not those on record."""
    there, here = json.loads(path().read_text())["facts"], facts()
    others = [f"{name} {here.get(name)}, then {there[name]}" for name in there if here.get(name) != there[name]]
    machine = f"The machine is not quite that of the record: {'; '.join(others)}" if others else "On such a machine"
    return "\n".join([f"{machine}. {len(lines)} results changed:", *lines])


def missing(names=()):
    """One sentence that says that results are not on record here, and how they get there."""
    what = f"no results on record for {', '.join(names)} on" if names else "no golden results on record for"
    command = f"{RECORD}=1 python -m pytest tests/test_golden.py tests/test_old_files.py"
    return f"{what} {key()}: with a package that is known to keep the other records, run {command}, and commit {path()}"
