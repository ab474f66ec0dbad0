"""The page in a real browser, from a file and without a network: its buttons, its sliders, its sorting."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halftone.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here")

# What a reader does, step by step; each line of the answer is what the page then is. The policy of the page forbids loading
# anything, so the steps are put into a copy of it.
_STEPS = r"""
<script>
addEventListener("load", () => {
  const said = [], say = (name, value) => said.push(name + "=" + value);
  const pairs = document.querySelector(".pairs"), figures = [...pairs.querySelectorAll("figure")];
  const clip = (n) => getComputedStyle(figures[n].querySelector(".stack span:nth-child(2)")).clipPath;
  const shown = (n, what) => getComputedStyle(figures[n].querySelector(what)).display;
  const press = (view) => document.querySelector(`button[data-view=${view}]`).click();
  const move = (slider, value) => { slider.value = value; slider.dispatchEvent(new Event("input", { bubbles: true })); };
  say("controls", document.querySelector(".controls").hidden);
  say("beside", clip(0) + " " + shown(0, ".own"));
  press("wipe");
  say("wipe", clip(0) + " " + shown(0, ".own"));
  move(figures[1].querySelector(".own"), 20);
  say("one moved", clip(0) + " " + clip(1));
  move(document.querySelector(".wipe input"), 90);
  say("all moved", clip(0) + " " + clip(1) + " " + figures[1].querySelector(".own").value);
  press("difference");
  say("difference", shown(0, ".stack span:nth-child(1)") + " " + shown(0, ".stack span:nth-child(3)"));
  press("beside");
  say("pressed", document.querySelector("[aria-pressed=true]").dataset.view);
  const table = document.querySelector("table.sortable");
  table.tHead.rows[0].cells[0].querySelector("button").click();
  const first = table.tBodies[0].rows[0].cells[0].textContent;
  table.tHead.rows[0].cells[0].querySelector("button").click();
  say("sorted", first !== table.tBodies[0].rows[0].cells[0].textContent);
  say("loaded", performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).length);
  say("pictures", [...document.images].every((image) => image.complete && image.naturalWidth > 0));
  document.title = "done";
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = said.join("\n");
  document.body.append(told);
});
</script>
"""


@needs_browser
def test_buttons_sliders_and_sorting(write: Callable[..., Path], everything: dict[str, Any], tmp_path: Path) -> None:
    write_report(write(tmp_path / "toy", everything), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "acted.html").write_text(page.replace("</body>", _STEPS + "</body>"), encoding="utf-8")
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom",
        (tmp_path / "acted.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    told = dict(line.split("=", 1) for line in found.group(1).splitlines())
    assert told["controls"] == "false"
    assert told["beside"] == "none none"
    assert told["wipe"] == "inset(0px 0px 0px 50%) block", "half of each, and a slider for it"
    assert told["one moved"] == "inset(0px 0px 0px 50%) inset(0px 0px 0px 80%)"
    assert told["all moved"] == "inset(0px 0px 0px 10%) inset(0px 0px 0px 10%) 90"
    assert told["difference"] == "none block" and told["pressed"] == "beside"
    assert told["sorted"] == "true" and told["loaded"] == "0" and told["pictures"] == "true"
