"""A tiny pipeline trained to its end: what it leaves for a report, and the page in a browser."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
from test_report import hostile_run, server  # noqa: F401 (a fixture)

from r1jax import config, rundir
from r1jax.config.base import GuardStop
from r1jax.config.observe import Report
from r1jax.observe import report, runs
from r1jax.observe.metrics import MetricsWriter, read_metrics
from r1jax.stages import pipeline
from r1jax.stages.pipeline import train

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    changes = {
        "eval": config.Eval(every=4, limit=4, final_samples=2, greedy=False),
        "log": config.Log(tensorboard=False, samples_per_step=-1, expert_load_every=2),
    }
    assert train(tiny.pipeline(**changes), name="tiny", run_dir=str(path), profile=(3, 3)) == 0
    return path


def test_a_finished_run_has_a_page(run):
    page = (run / "report.html").read_text("utf-8")
    assert "page.js" not in page and '"label":"grpo"' in page
    assert runs.read(run).state == "finished" and json.loads((run / "ended.json").read_text())["how"] == "finished"


def test_each_experts_load_is_written(run):
    for stage, steps in (("sft", [1]), ("grpo", [1, 2, 4])):
        rows = [json.loads(line) for line in (run / stage / "experts.jsonl").read_text().splitlines()]
        by_step = {row["step"]: row for row in read_metrics(run / stage) if "expert/max_load" in row}
        assert [row["step"] for row in rows] == steps
        for row in rows:
            assert len(row["load"]) == 1 and len(row["load"][0]) == 4 and sum(row["load"][0]) == pytest.approx(4, abs=4e-3)
            assert max(row["load"][0]) == pytest.approx(by_step[row["step"]]["expert/max_load"], abs=1e-3)


def test_reflection_is_counted_over_all_answers(run):
    rows = [row for row in read_metrics(run / "grpo") if "reflection/all" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and "reflection/wait" in rows[0]


def test_a_trace_names_the_phases(run):
    """Step 3 is made in the second round, of steps 3 and 4."""
    from jax.profiler import ProfileData

    (file,) = (run / "grpo" / "profile").rglob("*.xplane.pb")
    assert not (run / "sft" / "profile").exists()  # it has two steps
    names = {e.name for plane in ProfileData.from_file(str(file)).planes for line in plane.lines for e in line.events}
    assert {"rollout", "reshard", "score", "update"} <= names
    steps = [n for n in names if n.startswith("round")]
    assert steps, sorted(names)[:50]


def test_a_run_that_a_guard_stopped_says_so_and_has_a_page(tmp_path, monkeypatch):
    def stop(*_):
        raise GuardStop("no signal: every answer is wrong")

    monkeypatch.setattr(pipeline, "train_stages", stop)
    with pytest.raises(GuardStop):
        train(tiny.pipeline(), name="tiny", run_dir=str(tmp_path / "run"))
    found = runs.read(tmp_path / "run")
    assert (found.state, found.why) == ("guard", "no signal: every answer is wrong")
    assert "no signal: every answer is wrong" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_page_that_cannot_be_written_does_not_fail_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline.report, "write", lambda path: 1 / 0)
    pipeline.write_report(rundir.RunDir(tmp_path, {}))
    assert f"no report.html: ZeroDivisionError: division by zero; try `r1jax report {tmp_path}`" in capsys.readouterr().out


# -- In a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra test)")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with playwright.sync_playwright() as p:
        if found is None and not Path(p.chromium.executable_path).exists():
            pytest.skip("needs a browser: apt-get install chromium, or playwright install chromium")
        made = p.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root in a container has no other way
        yield made
        made.close()


@pytest.fixture
def open_page(browser):
    """Opens a page of a certain size and scheme; fails at its end if anything was said on the console or asked of a network."""
    said, contexts = [], []

    def open_(file: Path, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(file.as_uri())
        page.wait_for_selector("#foot p")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []


def scroll(page) -> None:
    for y in range(0, page.evaluate("document.documentElement.scrollHeight"), 700):
        page.evaluate(f"scrollTo({{top: {y}, behavior: 'instant'}})")
        page.wait_for_timeout(30)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_it_fits_and_draws_everywhere(run, open_page, tmp_path, width, scheme):
    page = open_page(run / "report.html", width, scheme)
    scroll(page)
    page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.querySelector('path'))")
    assert page.locator(".plot").count() > 20
    lit = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + Number(b), 0)")
    assert (lit < 200) == (scheme == "dark")
    page.select_option("#theme", "light" if scheme == "dark" else "dark")
    assert page.evaluate("document.documentElement.dataset.theme") == ("light" if scheme == "dark" else "dark")


def test_samples_are_filtered(run, open_page):
    page = open_page(run / "report.html")
    rows = [json.loads(line) for s in ("sft", "grpo") if (f := run / s / "samples.jsonl").exists() for line in f.open()]

    def matching() -> int:
        return int(page.locator("#f-count").inner_text().split()[0])

    assert matching() == len(rows)
    assert page.locator(".sample").count() == 20
    page.click("#f-more")
    assert page.locator(".sample").count() == min(40, len(rows))
    page.fill("#f-from", "3")
    assert matching() == sum(row["step"] >= 3 for row in rows)
    page.select_option("#f-reward", "(total)")
    page.select_option("#f-compare", ">")
    page.fill("#f-value", "0.4")
    assert 0 < matching() == sum(row["step"] >= 3 and row["reward"] > 0.4 for row in rows) < len(rows)
    page.select_option("#f-held", "yes")
    assert matching() == sum(row["step"] >= 3 and row["reward"] > 0.4 and row.get("held_out", False) for row in rows)
    page.click("#f-reset")
    assert matching() == len(rows)
    page.select_option("#f-finish", "length")
    assert matching() == sum(row["finish"] == "length" for row in rows)
    page.click("#f-reset")
    page.fill("#f-text", rows[0]["prompt"].upper())
    assert matching() == sum(rows[0]["prompt"] in row["prompt"] + row["completion"] + row["answer"] for row in rows)


def test_curves_and_experts_answer_to_keys_and_choices(run, open_page):
    page = open_page(run / "report.html")
    before = page.locator(".plot").count()
    page.locator(".tracks input").first.uncheck()
    assert 0 < page.locator(".plot").count() < before
    plot = page.locator("figure", has_text="KL to the reference").locator(".plot")
    plot.scroll_into_view_if_needed()
    plot.focus()
    page.keyboard.press("Home")
    first = page.locator("#tip").inner_text()
    page.keyboard.press("ArrowRight")
    kl = [row["kl"] for row in read_metrics(run / "grpo") if "kl" in row]
    assert "step 1" in first and "step 2" in page.locator("#tip").inner_text() and kl[0] == 0
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.select_option("#heat-view", "layers")
    page.locator("#heat-step").focus()
    page.keyboard.press("Home")
    assert page.locator("#heat-step").get_attribute("aria-valuetext") == "step 1"
    page.locator(".heat canvas").hover()
    assert "of layer 1" in page.locator("#tip").inner_text()


def test_the_first_tab_skips_to_the_content(run, open_page):
    page = open_page(run / "report.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button, canvas, svg[tabindex], nav, [role=region]')].filter((e) => "
        "!(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim()).length"
    )
    assert unnamed == 0


def test_hostile_text_is_shown_and_does_nothing(tmp_path, open_page):
    page = open_page(report.write(hostile_run(tmp_path / "<img src=x onerror=window.pwned=3>")))
    scroll(page)
    assert page.evaluate("window.pwned") is None and page.locator("img").count() == 0
    assert "</script><img src=x onerror=" in page.locator(".sample").first.inner_text()


def test_a_served_page_shows_the_news_by_itself(browser, server):  # noqa: F811
    from playwright.sync_api import expect

    where, url = server
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#foot p")
    with MetricsWriter(where, tensorboard=False) as writer:
        writer.write(2, {"kl": 0.125})
    expect(page.locator(".plot").first).to_have_attribute("aria-label", re.compile("0.125 at step 2"), timeout=60_000)
    page.close()


def test_several_runs_are_laid_side_by_side(run, open_page, tmp_path):
    out = tmp_path / "both.html"
    assert report.report(Report(runs=(str(run / "sft"), str(run / "grpo")), out=out, figures=False)) == 0
    page = open_page(out)
    assert page.locator("caption", has_text="Where the runs differ").count() == 1
    assert page.locator(".tracks label").all_inner_texts() == ["sft", "grpo"]


