import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flgo_hydra.report.command import main


@pytest.fixture(scope="module")
def page(run_maker, make_sweep, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page")
    make_run = run_maker(root)
    make_sweep(make_run)
    make_run("sweep/20", [2.0], failure="Error: <script>alert('&')</script>", algorithm="<b>", lr=0.1)
    make_run("sweep/21", [2.0, 0.1], status=None, lr=7)
    assert main([str(root / "sweep"), "--html", str(root / "out" / "page.html")]) == 0
    return root / "out" / "page.html"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(page):
    text = page.read_text()
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    images = [attributes for tag, attributes in tags.found if tag == "img"]
    assert len(images) == 5 and all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert {image["alt"] for image in images} >= {
        "test_loss by algorithm, each at its best lr by best_valid_loss",
        "best_valid_loss over lr and algorithm",
    }
    assert (
        not [tag for tag, _ in tags.found if tag in ("link", "iframe")]
        and "http://" not in text
        and "https://" not in text
    )
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text and "<b>" not in text
    assert text.count("<table>") == 4 and "running (1 of 5)" in text and "larger than seed noise" in text


def test_it_opens_in_a_browser(page, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    # Clicks the heading of best_valid_loss twice, and tells what the page came to.
    probe = """<script>
      const heads = [...document.querySelectorAll("table")[0].querySelectorAll("th")];
      const index = heads.findIndex(head => head.textContent === "best valid_loss");
      const rows = document.querySelectorAll("table")[0].tBodies[0].rows;
      const column = () => [...rows].map(row => row.cells[index].textContent);
      heads[index].querySelector("button").click();
      const up = column();
      heads[index].querySelector("button").click();
      const pictures = [...document.images].map(image => image.naturalWidth);
      const told = {up, down: column(), sort: heads[index].ariaSort, pictures};
      document.title = JSON.stringify(told);
    </script></body>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", probe))
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        + ["--virtual-time-budget=3000", "--dump-dom", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&amp;", "&"))
    numbers = [float(text) for text in told["up"]]
    assert len(numbers) == 14 and numbers == sorted(numbers) and told["sort"] == "descending"
    assert [float(text) for text in told["down"]] == numbers[::-1]
    assert len(told["pictures"]) == 5 and all(width > 200 for width in told["pictures"])
