"""Write the study's page, its pictures and the README's table from the rows. Nothing is typed in by hand."""

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.markdown import refreshed
from benchmarks.q_diffusion import findings, seeds, tables
from benchmarks.q_diffusion.budgets import budgets_table, resumed
from benchmarks.q_diffusion.details import ranges_table, trajectory_table
from benchmarks.q_diffusion.findings import Finding
from benchmarks.q_diffusion.haze import LEVELS
from benchmarks.q_diffusion.plots import pictures
from benchmarks.q_diffusion.recipes_of_rows import edges_sentence, stale
from benchmarks.q_diffusion.results import Result, Section, comparable, pick, read, removed
from benchmarks.q_diffusion.settings import SECTIONS
from halftone.foundation.files import write_atomically

PAGE = "q-diffusion.md"
_BLOCK = "results"  # of the README
_COMMAND = "python -m benchmarks.q_diffusion"


def render(results: Path, docs: Path, readme: Path) -> list[str]:
    """Write everything and return what to tell: files written, sections missing, a README without markers."""
    sections = read(results)
    if not sections:
        return [f"no rows in {results}: nothing to render"]
    said = []
    drawings = pictures(sections)
    for name, (mark, draw) in drawings.items():
        file = docs / name
        # A picture of the same numbers is left as it is: another version of matplotlib would redraw every line.
        if not file.exists() or mark not in file.read_text(encoding="utf-8"):
            write_atomically(file, draw())
            said.append(f"drew {file.name}")
    write_atomically(docs / PAGE, page(sections, set(drawings)))
    for orphan in set(docs.glob("q-diffusion-*.svg")) - {docs / name for name in drawings}:
        orphan.unlink()
    said.append(f"wrote {PAGE}")
    said += [f"no rows yet: {section}" for section in SECTIONS if section not in sections]
    said += [f"stale, its recipe has changed since: {name}" for name in stale(sections)]
    block = readme_block(sections)
    return [*said, "README: no headline rows yet, left as it is" if block is None else refreshed(readme, _BLOCK, block)]


def page(sections: dict[str, Section], drawn: set[str]) -> str:
    """Return the page's Markdown."""
    first = next(iter(next(iter(sections.values())).values()))
    lines = [
        "# Q-Diffusion on a small model",
        "",
        f"Made by `{_COMMAND} render` from the rows in `benchmarks/q_diffusion/results/`; do not edit. "
        f"`{_COMMAND} run` measures the rows that are missing.",
        "",
        f"Model `{first.protocol['model']['name']}`, weights {first.protocol['model']['sha256'][:12]}. All rows start from "
        "the same noise. PSNR, SSIM and latent MSE are *paired*: distances to the float model's images from the same noise, "
        "with 95 % bootstrap intervals over images. FD is a Fréchet distance to real images in the features of the classifier "
        "named beside its floor; it is no FID. A damaged model can score a better FD, so no FD stands here without a paired "
        "distance. PSNR pools the errors of all images, and so hangs on the few that tip over into another garment: verdicts on "
        f"methods go by the *mean image's* PSNR, which a difference must move by {findings.MATTERS} dB to matter.",
        "",
        *_conditions(sections),
    ]
    writers: dict[str, Callable[[Section, set[str]], list[str]]] = {
        "headline": _headline,
        "haze": _haze,
        "edges": _edges,
        "bias": _bias,
        "ablation": lambda section, drawn: _ablation(section, drawn, sections),
        "timesteps": lambda section, drawn: _timesteps(section, drawn, sections),
        "trajectory": _trajectory,
        "ranges": _ranges,
        "samplers": _samplers,
    }
    for name, write in writers.items():
        if name in sections:
            lines += write(sections[name], drawn)
        if name == "headline" and "budgets" in sections:
            lines += _budgets(sections)
    return "\n".join(lines).rstrip() + "\n"


def _conditions(sections: dict[str, Section]) -> list[str]:
    """Return under what conditions the rows were measured; more than one of a kind is said, not hidden."""
    rows = [row.data for section in sections.values() for row in section.values()]
    machines = sorted({f"{row['machine']['processor']}, {row['machine']['threads']} threads" for row in rows})
    versions = sorted({f"torch {row['machine']['torch']}, diffusers {row['machine']['diffusers']}" for row in rows})
    commits = sorted(
        {
            f"`{(row['commit']['sha'] or 'unknown')[:10]}`{' (changed)' if row['commit']['dirty'] else ''}"
            for row in rows
        }
    )
    models = {row["protocol"]["model"]["sha256"] for row in rows}
    lines = [f"Measured on {'; '.join(machines)}; {'; '.join(versions)}; commits {', '.join(commits)}.", ""]
    if len(models) > 1:
        lines += [f"**The rows are of {len(models)} different float models: measure the old ones again.**", ""]
    old = ", ".join(f"`{name}`" for name in stale(sections))
    if old:
        lines += [f"**Stale: the recipe of these rows is no longer the library's; measure them again: {old}.**", ""]
    return lines


def _protocol(section: Section) -> str:
    """Return samples, steps, budgets and seeds of a section in one sentence."""
    rows = [row for row in section.values() if row.protocol.get("samples")]

    def listed(values: set) -> str:
        return ", ".join(str(value) for value in sorted(values))

    samples = listed({row.protocol["samples"] for row in rows if row.protocol["kind"] in ("quality", "float")})
    trails = listed({row.metrics["trail"]["samples"] for row in rows if "trail" in row.metrics})
    steps = listed({row.protocol["steps"] for row in rows})
    budgets = listed({row.data["budget"] for row in rows if row.data["budget"]})
    seeds = listed({row.seed for row in rows if row.seed is not None})
    engines = listed({row.metrics["engine"] for row in rows if "engine" in row.metrics and row.data["recipe"]})
    parts = [f"{samples or trails} samples, {steps} steps"]
    parts += [f"budget {budgets}"] if budgets else []
    parts += [f"calibration seed {seeds}"] if seeds else []
    parts += [f"engine `{engines}`"] if engines else []
    return "; ".join(parts) + "."


def _verdicts(found: list[Finding]) -> list[str]:
    return (
        [
            "Held against what was published and what we aimed at:",
            "",
            *(each.text() for each in found),
            "",
        ]
        if found
        else []
    )


def _picture(name: str, drawn: set[str], words: str) -> list[str]:
    file = f"q-diffusion-{name}.svg"
    return [f"![{words}]({file})", ""] if file in drawn else []


def _headline(section: Section, drawn: set[str]) -> list[str]:
    lines = ["## Headline", "", _protocol(section), "", *tables.headline(section), *tables.floor_sentence(section)]
    timed = ", ".join(tables.timed_names(section))
    if timed:
        lines += [f"Latency is that of {timed}: equal formats run the same kernels, whoever found the numbers.", ""]
    agreements = [(row.metrics.get("agreement_with_simulate") or {}).get("psnr") for row in section.values()]
    known = [value for value in agreements if isinstance(value, float)]
    if known:
        text = (
            "Integer kernels against their definition (engine `simulate`), a few images of each row, pooled: "
            f"{statistics.median(known):.1f} dB in the median row, {min(known):.1f} in the worst. A number beside a rounding tie "
            "may take the neighbouring code, and a sampling that starts so may end in another picture."
        )
        lines += [text, ""]
    lines += _picture("headline", drawn, "PSNR by method and bits")
    lines += tables.latency(section)
    spread = seeds.table_of(section)
    if spread:
        words = (
            "Mean and standard deviation over calibration seeds. PSNR and linear's error removed: on the same images, as many "
            "as every row keeps. FD: over that of the float row with as many samples "
            f"({_sample_counts(section)}), as a distance depends on their number."
        )
        lines += [words, "", *spread]
    return lines + _verdicts(findings.headline(section))


def _budgets(sections: dict[str, Section]) -> list[str]:
    words = (
        "What the smaller budgets lose to the largest that was measured; the headline's rows stand for their own budget. "
        f"`paper` takes many hours and is measured only when asked for: `{_COMMAND} run --only budgets --budget paper`."
    )
    lines = ["## Budgets", "", words, "", *budgets_table(sections), *(tables.RESUMED if resumed(sections) else [])]
    return lines + tables.floor_sentence(sections["budgets"]) + _verdicts(findings.other_budgets(sections))


def _sample_counts(section: Section) -> str:
    floats = [row for name in ("float", "float-few") if (row := section.get(name)) is not None]
    return ", ".join(f"`{row.name}`: {row.protocol['samples']}" for row in floats)


def _haze(section: Section, drawn: set[str]) -> list[str]:
    words = (
        f"Half of the real pictures' pixels are exactly black. The models leave a haze there, of a few grey levels, to which "
        f"the features answer strongly. *Without haze*: pixels below {LEVELS} of 255 are made black, in the float model's "
        "images and in the others alike."
    )
    lines = ["## What of the distance is haze", "", words, "", _protocol(section), "", *tables.haze(section)]
    return lines + tables.floor_sentence(section)


def _edges(section: Section, drawn: set[str]) -> list[str]:
    words = (
        "Every recipe gives the first and the last layer 8-bit weights and 16-bit inputs (*wide*, decision 0011). "
        "*Narrow*: they have the bits of all other layers, as in the official code. *Shortcuts as well*: the shortcut convolutions "
        "read 16-bit inputs too."
    )
    return _variants("First and last layer", words, section, {"edges": "first and last layer"})


def _bias(section: Section, drawn: set[str]) -> list[str]:
    words = (
        "Why linear is no better at 8 bits than at 4: rounding the last layer shifts its output by a constant, which the "
        "sampler adds up (decision 0013). The recipes of GPTQ and Q-Diffusion end with a bias correction, the paper's "
        "baseline has none; here it has one. For Q-Diffusion see the ablation."
    )
    return _variants("Linear, and what a constant does to it", words, section, {"bias": "biases"})


def _variants(title: str, words: str, section: Section, varied: dict[str, str]) -> list[str]:
    """Return a section in which every method stands with each variant of one thing; ``varied`` is its head by label."""
    columns = {"method": "model", "bits": "bits", **varied}
    lines = [f"## {title}", "", words, "", _protocol(section), "", *tables.quality(section, columns)]
    return lines + tables.floor_sentence(section)


def _ablation(section: Section, drawn: set[str], sections: dict[str, Section]) -> list[str]:
    lines = ["## Ablation: calibration, split, reconstruction", "", _protocol(section), ""]
    lines += (
        tables.ablation(section)
        + tables.floor_sentence(section)
        + _picture("ablation", drawn, "One ingredient changed")
    )
    return lines + _verdicts(findings.ablation(sections))


def _timesteps(section: Section, drawn: set[str], sections: dict[str, Section]) -> list[str]:
    lines = ["## Which timesteps, and how many samples", "", _protocol(section), ""]
    lines += tables.quality(
        section, {"bits": "bits", "select": "selection", "samples": "samples", "without": "without"}
    )
    lines += tables.floor_sentence(section) + _picture("timesteps", drawn, "PSNR by selection")
    return lines + _verdicts(findings.timesteps(sections))


def _trajectory(section: Section, drawn: set[str]) -> list[str]:
    lines = ["## Error along the trajectory", "", _protocol(section), ""]
    lines += _picture("trajectory", drawn, "Error against the float model, call by call")
    lines += trajectory_table(section)
    return lines + _verdicts(findings.trajectory(section))


def _ranges(section: Section, drawn: set[str]) -> list[str]:
    lines = ["## Activation ranges over time", ""]
    lines += _picture("ranges", drawn, "The layers whose input range moves most")
    lines += ranges_table(section)
    words = (
        "Layers fed by a concatenation. The score is what scales of their own would gain for each part of the input; *own "
        "scales*: how many times smaller the squared error of the deep part's 4-bit weights is with a scale of their own."
    )
    lines += [words, ""]
    lines += tables.shortcuts(section) + _picture("shortcuts", drawn, "The two parts of the shortcuts' inputs")
    return lines + _verdicts(findings.ranges(section))


def _samplers(section: Section, drawn: set[str]) -> list[str]:
    lines = [
        "## Another sampler",
        "",
        _protocol(section),
        "",
        *tables.samplers(section),
        *tables.floor_sentence(section),
    ]
    return lines + _verdicts(findings.samplers(section))


def readme_block(sections: dict[str, Section]) -> str | None:
    """Return the README's table, None without headline rows."""
    section = sections.get("headline", {})
    reference = section.get("float")
    if reference is None or reference.distribution is None:
        return None
    rows = tables.main_rows(section)
    body = [_readme_row(section, row) for row in rows]
    edges, old = edges_sentence(rows), stale({"headline": {row.name: row for row in rows}})
    name, floor = reference.distribution["name"], reference.distribution["floor"]
    head = [
        "",
        "bits",
        f"{name}",
        "PSNR to float, dB",
        "linear's error removed",
        "denoiser, MB",
        "× bfloat16 at batch 1, 16",
    ]
    text = (
        f"{_protocol(section)[0].upper()}{_protocol(section)[1:]} Floor of the distance: {floor['mean']:.2f} ± "
        f"{floor['std']:.2f}. Speed is a denoiser call's on this CPU. "
        f"{edges}{' ' * bool(edges)}"
        f"What Q-Diffusion and GPTQ are here beyond their papers: [the method](docs/method.md){_extended(sections)}. "
        f"{f'Rows of an older recipe than the library has now: {len(old)}. ' if old else ''}"
        f"Made by `{_COMMAND} run` and `render`; everything else is in [docs/results](docs/results/{PAGE})."
    )
    return "\n".join([*tables.table(head, body), text, ""])


def _extended(sections: dict[str, Section]) -> str:
    """Return what the paper's own steps reach beside the recipe, empty where that was not measured."""
    rows = {
        "the paper's steps alone": "w4a8-without-anything-not-in-the-paper",
        "the whole recipe": "w4a8-without-nothing",
        "it without block reconstruction": "w4a8-without-block-reconstruction",
    }
    known = sections.get("ablation", {})
    found = [(words, known[name]) for words, name in rows.items() if name in known and known[name].paired]
    if len(found) < len(rows):
        return ""
    parts = ", ".join(f"{words} {row.paired['psnr']['value']:.1f}" for words, row in found if row.paired)
    return f" (W4A8, budget `{found[0][1].data['budget']}`, dB: {parts})"


def _readme_row(section: Section, row: Result) -> list[str]:
    bits, method = row.labels["bits"], row.labels["method"]
    linear = pick(section, method="rtn", bits=bits, seed="main")
    pairs, known = row.paired or {}, linear is not None and linear is not row and comparable(row, linear)
    timed = [tables.timed_as(row, tables.latencies(section, batch)) for batch in ("1", "16")]
    return [
        tables.NAMES[method],
        "32" if method == "float" else bits.upper(),
        tables.distance(row),
        tables.interval(pairs.get("psnr"), 1),
        tables.share(removed(row, linear).value) if known and linear is not None else "-",
        tables.megabytes(section, row, 1),
        ", ".join(f"{each['speedup']['bfloat16']['value']:.2f}" if each else "-" for each in timed),
    ]
