"""Where models, inputs and prepared U-Nets come from: each made once, kept in the cache, used by every row."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cpu_unet.cases import SD15, Case
from benchmarks.cpu_unet.contenders import Contender
from benchmarks.cpu_unet.prepare import FACTS
from benchmarks.cpu_unet.process import Process, prepared
from benchmarks.cpu_unet.settings import Settings
from benchmarks.records import digest_of
from halftone.foundation.errors import ConfigError

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
_CALLS = 4  # different inputs of a latency row


class Workshop:
    """Makes what the rows of one run need, in processes of their own, and starts contenders."""

    def __init__(self, settings: Settings, say: Any = print) -> None:
        self.settings, self.say = settings, say
        self._peers = settings.peers

    def python(self, contender: Contender) -> Path:
        """Return the Python that a contender runs on."""
        return self.peers() if contender.peers else Path(sys.executable)

    def peers(self) -> Path:
        """Return the Python of the peers' environment, which is made where none was named: it sees this one's packages.

        Raises:
            ConfigError: it cannot be made.
        """
        if self._peers is None:
            place = self.settings.cache / "peers"
            python = place / "bin" / "python"
            if not (place / "complete").exists():
                self.say(f"installing {REQUIREMENTS.name} into {place}")
                _make_environment(place, python)
                (place / "complete").touch()
            self._peers = python
        return self._peers

    def model(self, name: str) -> Path:
        """Return the folder of a float pipeline.

        Raises:
            ConfigError: no such model.
        """
        if name == SD15:
            config = dict(self.settings.sd15)
            folder = self.settings.cache / (f"{SD15}-{digest_of(config)}" if config else SD15) / "pipeline"
            if not folder.exists():
                self.say(f"making {SD15} with random weights")
                self._prepared({"make": "model", "target": str(folder), "unet": config})
            return folder
        if name.startswith("zoo:"):
            from halftone.zoo.catalog import folder as zoo_folder

            return zoo_folder(name.removeprefix("zoo:"))
        if not Path(name).is_dir():
            raise ConfigError(name, f"{SD15}, zoo:NAME or a pipeline folder", "none of these")
        return Path(name)

    def place(self, model: str) -> Path:
        """Return the cache's folder for a model."""
        folder = self.model(model)
        return folder.parent if model == SD15 else self.settings.cache / folder.name

    def inputs(self, case: Case) -> Path:
        """Return the file of the inputs that a case is timed with."""
        file = self.place(case.model) / f"noise-{case.pixels}-b{case.batch}.npz"
        if not file.exists():
            asked = {"pixels": case.pixels, "batch": case.batch, "calls": _CALLS}
            self._prepared({"make": "noise", "target": str(file), "model": str(self.model(case.model)), **asked})
        return file

    def recorded(self, model: str, evaluation: bool) -> Path:
        """Return the file of inputs from the float model's own sampling: to calibrate with, or to compare on."""
        file = self.place(model) / ("evaluation.npz" if evaluation else "calibration.npz")
        if not file.exists():
            asked = {"model": str(self.model(model)), "evaluation": evaluation}
            self._prepared({"make": "recorded", "target": str(file), **asked})
        return file

    def prepared(self, contender: Contender, model: str) -> Path:
        """Return the folder of what a contender loads; equal work is done once.

        Raises:
            Failed: its library could not.
        """
        name = f"{contender.road}-{digest_of(contender.prepare)}"
        folder = self.place(model) / name
        if not (folder / FACTS).exists():
            self.say(f"preparing {contender.title} of {model}")
            spec = {"make": "road", "road": contender.road, "options": contender.prepare}
            calibration = str(self.recorded(model, evaluation=False))
            spec |= {"target": str(folder), "model": str(self.model(model)), "calibration": calibration}
            self._prepared(spec, self.python(contender))
        return folder

    def facts(self, contender: Contender, model: str) -> dict[str, Any]:
        """Return what was noted when it was prepared."""
        found: dict[str, Any] = json.loads((self.prepared(contender, model) / FACTS).read_text(encoding="utf-8"))
        return found

    def start(self, contender: Contender, model: str, inputs: Path) -> Process:
        """Start a process that has loaded the contender, and called it once.

        Raises:
            Failed: it could not.
        """
        return Process(self.python(contender), self._spec(contender, model, inputs), self._log(contender.name))

    def profile(self, contender: Contender, model: str, inputs: Path) -> dict[str, Any]:
        """Return where a contender's time goes (:mod:`benchmarks.cpu_unet.profiling`), from a process of its own.

        Raises:
            Failed: it does not run.
        """
        spec = {"make": "profile", "target": str(inputs), **self._spec(contender, model, inputs)}
        return self._prepared(spec, self.python(contender))

    def levers(self, contender: Contender, model: str, inputs: Path) -> dict[str, Any]:
        """Return what each part of our engine is worth (:mod:`benchmarks.cpu_unet.levers`), from a process of its own.

        Raises:
            Failed: it does not run.
        """
        given = {"rounds": self.settings.rounds, **self._spec(contender, model, inputs)}
        return self._prepared({"make": "levers", "target": str(inputs), **given}, self.python(contender))

    def _spec(self, contender: Contender, model: str, inputs: Path) -> dict[str, Any]:
        spec = {"road": contender.road, "options": contender.load, "threads": self.settings.threads}
        return {**spec, "folder": str(self.prepared(contender, model) / "unet"), "inputs": str(inputs)}

    def _prepared(self, spec: dict[str, Any], python: Path | None = None) -> dict[str, Any]:
        log = self._log(f"prepare-{Path(spec['target']).name}")
        return prepared(python or Path(sys.executable), spec, log, self.settings.threads)

    def _log(self, name: str) -> Path:
        return self.settings.cache / "logs" / f"{name}.log"


def shipped(model: str) -> bool:
    """Return whether a model is there: one of the zoo may not be trained yet."""
    from halftone.zoo.catalog import CATALOG

    return not any(entry.name == model.removeprefix("zoo:") and not entry.installed for entry in CATALOG)


def _make_environment(place: Path, python: Path) -> None:
    here = Path(next(path for path in sys.path if path.endswith("site-packages")))
    try:
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        (found,) = (place / "lib").glob("python*/site-packages")
        # Halftone's own dependencies, torch first of all, are seen and not installed again.
        (found / "halftone_environment.pth").write_text(f"{here}\n", encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            "peers", f"an environment with {REQUIREMENTS.name}", str(error), "Name one: --peers."
        ) from error
