"""The pipeline from a browser, as a person uses it: the smoke profile from the form to the compared runs.

One stack and one run for all of it. Screenshots land in ``work/screenshots``.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Response, expect

from flows.graph import read_graph

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # a whole pipeline, on a machine that may be busy
EXPERIMENT = "from-the-browser"
ROOT = Path(__file__).parents[2]
STAGES = {"foundation", "captions", "generate", "train@self", "train@dino", "evaluate@self", "evaluate@dino"}
STAGES |= {"sampling", "report"}
METRIC = "clip_image_image/mean"
PATIENCE = 1800.0
expect.set_options(timeout=60_000)


def sign_in(page: Page, key: str) -> None:
    page.get_by_placeholder("admin:pass").fill(key)
    page.get_by_role("button", name="Login").click()


def visit(page: Page, stack: Any, path: str) -> None:
    """Opens a page of Prefect; each test's browser is a new one, which signs in where it is asked to."""
    page.goto(f"{stack.prefect}/deployments")
    sign_in(page, stack.key)
    page.wait_for_url(f"{stack.prefect}/deployments")
    page.goto(f"{stack.prefect}{path}")


class Form:
    """The run page of a deployment."""

    def __init__(self, page: Page, stack: Any, deployment: str) -> None:
        self._page = page
        visit(page, stack, "/deployments")
        page.get_by_role("link", name=deployment, exact=True).click()
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_text("Custom run").click()
        expect(self.field("profile")).to_be_visible()

    def field(self, key: str) -> Locator:
        label = self._page.locator(".schema-form-property__label", has_text=re.compile(rf"^{re.escape(key)}\b"))
        return self._page.locator(".schema-form-property").filter(has=label).last

    def choose(self, key: str, value: str) -> None:
        self.field(key).locator(".p-select-button__control").press("ArrowDown")
        self._page.locator(".p-select-option", has_text=value).click()

    def fill(self, key: str, value: str) -> None:
        self.field(key).locator("input, textarea").fill(value)

    def submit(self, shown: Locator) -> None:
        """Presses Submit, and once more where the server is too busy to answer.

        What the page says of that lies over the button, so the mouse will not do.
        """
        unanswered: list[str] = []

        def note(answer: Response) -> None:
            if answer.status == 503 and answer.url.endswith("/create_flow_run"):
                unanswered.append(answer.url)

        self._page.on("response", note)
        for _ in range(3):
            unanswered.clear()
            self._page.get_by_role("button", name="Submit").press("Enter")
            deadline = time.monotonic() + 60
            while not unanswered and time.monotonic() < deadline:
                if shown.first.is_visible():
                    return
                self._page.wait_for_timeout(100)
        raise AssertionError(f"nothing was submitted; not answered: {unanswered}")


def newest(stack: Any) -> Any:
    """The flow run that was created last."""
    return stack.ask("flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=1)[0]


@pytest.fixture(scope="module")
def run(stack: Any, browser: Browser) -> Any:
    """The flow run of the smoke profile that the first test submits, when it has come to its end."""
    deadline = time.monotonic() + PATIENCE
    while (run := newest(stack))["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        assert time.monotonic() < deadline, (stack.folder / "work" / "stack" / "flows.log").read_text()
        time.sleep(0.5)
    return run


def test_prefect_shows_nothing_before_one_has_signed_in(stack: Any, page: Page) -> None:
    page.goto(f"{stack.prefect}/deployments")
    sign_in(page, "m2m:guessed")
    expect(page.get_by_text("Authentication failed.").first).to_be_visible()
    expect(page.get_by_role("link", name="full", exact=True)).not_to_be_visible()
    page.get_by_role("button", name="Login").wait_for()
    sign_in(page, stack.key)
    expect(page.get_by_role("link", name="full", exact=True)).to_be_visible()


def test_a_value_out_of_bounds_is_refused_before_anything_runs(stack: Any, page: Page) -> None:
    form = Form(page, stack, "full")
    form.fill("generate.images_per_set", "1")
    form.submit(page.get_by_text("1 is less than the minimum of 2"))
    assert stack.ask("flow_runs/filter") == []


def test_the_form_is_filled_in_and_submitted(stack: Any, page: Page) -> None:
    form = Form(page, stack, "full")
    form.choose("profile", "smoke")
    form.fill("experiment", EXPERIMENT)
    form.fill("generate.seed", "7")
    form.submit(page.get_by_role("button", name="View run"))
    made = newest(stack)
    page.get_by_role("link", name=made["name"]).first.click()
    page.wait_for_url("**/runs/flow-run/*")
    given = made["parameters"]
    assert (given["profile"], given["experiment"]) == ("smoke", EXPERIMENT)
    assert given["changes"] == {"generate_seed": 7}  # what the form shows; all else is as in the profile


def test_the_run_shows_its_stages(stack: Any, run: Any, page: Page) -> None:
    visit(page, stack, f"/runs/flow-run/{run['id']}")
    expect(page.get_by_text("Completed").first).to_be_visible()
    page.get_by_text("Task Runs", exact=True).click()
    for stage in STAGES:
        expect(page.get_by_role("link", name=stage, exact=True)).to_be_visible()
    tasks = stack.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    assert len(tasks) == len(read_graph(ROOT))  # each once, and none got lost
    assert {task["name"]: task["state"]["name"] for task in tasks} == {
        **dict.fromkeys((stage.name for stage in read_graph(ROOT)), "Completed"),
        "foundation": "Skipped",  # it comes with the repository
    }


def test_the_summary_is_a_page_with_tables_and_pictures(stack: Any, run: Any, page: Page) -> None:
    visit(page, stack, f"/runs/flow-run/{run['id']}")
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_role("link", name="summary").click()
    expect(page.get_by_role("table").first).to_contain_text("M2M-DINO, this run")
    assert page.get_by_role("img").count() >= 2
    expect(page.get_by_text(f"dvc exp apply {EXPERIMENT}")).to_be_visible()


def test_each_evaluation_left_its_pictures_when_it_ended(stack: Any, run: Any, page: Page) -> None:
    kept = stack.ask("artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})
    pictures = {each["key"]: each for each in kept if each["key"].endswith("-pictures")}
    assert pictures.keys() == {
        f"{stage.name.replace('@', '-')}-pictures" for stage in read_graph(ROOT) if "evaluate@" in stage.name
    }
    (summary,) = (each for each in kept if each["key"] == "summary")
    assert all(each["created"] < summary["created"] for each in pictures.values())
    visit(page, stack, f"/artifacts/artifact/{pictures['evaluate-dino-nvs-pictures']['id']}")
    expect(page.get_by_role("img", name="drawn by M2M-dino-nvs")).to_be_visible()


def linked(stack: Any, run: Any, what: str) -> str:
    """The address that the summary gives of a page."""
    artifacts = stack.ask("artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})
    (summary,) = (each["data"] for each in artifacts if each["key"] == "summary")
    found = re.search(rf"\[{what}\]\((\S+)\)", summary)
    assert found, summary
    return found[1]


def test_the_two_variants_are_compared_side_by_side(stack: Any, run: Any, page: Page) -> None:
    experiment = stack.ask_mlflow("experiments/search", filter="name = 'evaluate'", max_results=1)["experiments"][0]
    number = experiment["experiment_id"]
    names = ("evaluate-self", "evaluate-dino")
    found = stack.ask_mlflow("runs/search", experiment_ids=[number])["runs"]
    runs = [each for each in found if each["info"]["run_name"] in names]
    assert len(runs) == 2
    page.goto(linked(stack, run, "newest scores of both variants"))
    for name in names:
        expect(page.get_by_text(name, exact=True)).to_be_visible()
    page.get_by_role("switch", name="Metrics - Show diff only").click()  # what both share are the baselines
    page.get_by_role("link", name=METRIC, exact=True).scroll_into_view_if_needed()
    for each in runs:
        (value,) = (metric["value"] for metric in each["data"]["metrics"] if metric["key"] == METRIC)
        expect(page.get_by_role("grid").last).to_contain_text(f"{value:.4g}")


@pytest.mark.parametrize(
    ("what", "stage", "metric"),
    [
        ("newest training curves of both", "train", "held_out_loss"),
        ("their FID by position", "evaluate", "position/fid"),
    ],
)
def test_both_curves_are_in_one_chart(stack: Any, run: Any, page: Page, what: str, stage: str, metric: str) -> None:
    page.goto(linked(stack, run, what))
    for variant in ("self", "dino"):
        expect(page.get_by_text(f"{stage}-{variant} ({metric})").first).to_be_visible()


def test_both_models_are_registered_with_scores_and_pictures(stack: Any, run: Any, page: Page) -> None:
    page.goto(linked(stack, run, "registered models"))
    page.get_by_role("button", name="Try it now").click()
    for name in ("m2m-self", "m2m-dino"):
        expect(page.get_by_role("row", name=f"{name} Version 1")).to_be_visible()
    page.goto(f"{stack.mlflow}/#/models/m2m-dino/versions/1")
    expect(page.get_by_role("cell", name="fid/mean")).to_be_visible()
    gallery = page.locator('img[src*="given-"]')
    expect(gallery).to_be_visible()
    assert gallery.evaluate("picture => picture.naturalWidth") > 100


def test_the_experiment_comes_back_with_everything_skipped(stack: Any, run: Any) -> None:
    assert EXPERIMENT in stack.run("dvc", "exp", "show", "--csv")
    stack.run("dvc", "exp", "apply", EXPERIMENT)
    again = stack.run("dvc", "repro")
    assert again.count("didn't change, skipping") == len(read_graph(ROOT)), again
    assert not re.search("^Running|is cached", again, re.MULTILINE), again
