"""``halftone doctor``: what this machine can run."""

from typing import Any

from halftone.cli.options import Json
from halftone.cli.output import emit, working


def command(json: Json = False) -> None:
    """Say what this machine can run, and why not the rest.

    \b
    Examples:
      halftone doctor
      halftone doctor --json
    """
    with working():
        from halftone.engines.select import network_engines, unavailable
        from halftone.kernels.machine import machine_report

        found = {**_versions(), **machine_report()}
        found["engines"] |= {engine: unavailable(engine) for engine in network_engines()}
    emit(found, json, lambda: _human(found))


def _versions() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import psutil

    return {
        "halftone": version("halftone"),
        "python": platform.python_version(),
        "diffusers": version("diffusers"),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _human(found: dict[str, Any]) -> str:
    flags = found["flags"]
    has, lacks = ([name for name, value in flags.items() if value is wanted] for wanted in (True, False))
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    lines = [
        f"halftone {found['halftone']}, Python {found['python']}, torch {found['torch']}, "
        f"diffusers {found['diffusers']}",
        f"processor  {found['processor']}, {threads}, {found['memory_bytes'] / 1e9:.0f} GB of memory",
        f"           {found['cpu_capability']}; has {', '.join(has) or 'none'} of {', '.join(flags)}",
        f"           oneDNN {'yes' if found['mkldnn'] else 'no'}",
        f"cuda       {', '.join(found['cuda']) or 'no device'}",
    ]
    if "vnni" in lacks:
        lines.append("           no VNNI: 8-bit weights are refused by the integer kernels, 4-bit ones run")
    for engine, reason in found["engines"].items():
        lines.append(f"engine     {engine}: {'runs' if reason is None else 'cannot run: ' + reason}")
    missing = found["native_loops"]
    compiled = "compiled for this processor"
    if found["native_on_one_thread"]:
        compiled += ", without OpenMP: on one thread, slower ($CXX names another compiler)"
    lines.append(f"loops      {compiled if missing is None else f'PyTorch operators instead, slower: {missing}'}")
    reason = found["native_product"]
    lines.append(f"products   {'native integers' if reason is None else f'of oneDNN, where it runs: {reason}'}")
    for kind, reason in found["native_attention"].items():
        without = {"codes": "simulated, slower", "bfloat16": "PyTorch's own"}[kind]
        lines.append(f"attention  on {kind}: {'native' if reason is None else f'{without}: {reason}'}")
    return "\n".join(lines)
