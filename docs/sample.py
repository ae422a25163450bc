"""Run the examples, and write their report into the documentation: the page, the text of the terminal, the README's picture.

python docs/sample.py             # or: make sample
python docs/sample.py --picture   # only the picture, from the page that is there
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytest_trainability.report.html import page

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "docs" / "_static" / "demo.html"
TEXT = ROOT / "docs" / "demo.md"
PICTURE = ROOT / "docs" / "_static" / "demo.png"
SHOWN = "test_gpt2_decimal_slip"
"""The example of the README."""


def run_the_examples() -> tuple[dict[str, Any], str]:
    """Run the examples, and return their JSON report and what they print."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / "demo.py", f"--trainability-json={report}"],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
            stdout=subprocess.PIPE,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            sys.exit(done.stdout)
        return json.loads(report.read_text(encoding="utf-8")), done.stdout


def sample(report: dict[str, Any]) -> str:
    """Return the page of a report, without what is true of one machine only."""
    environment = {**report["environment"], "command": "make demo", "platform": "", "processor": ""}
    return page({**report, "environment": environment})


def section(printed: str) -> str:
    """Return the section of this plugin in what a session prints."""
    (found,) = re.findall(r"^=+ trainability =+\n.*? measured in .*? s\n", printed, re.DOTALL | re.MULTILINE)
    return str(found)


def with_section(text: str, printed: str) -> str:
    """Return the text of the documentation with another section in it."""
    head, found, rest = text.partition("```text\n=")
    _, ended, tail = rest.partition("```\n")
    if not (found and ended):
        sys.exit(f"{TEXT.relative_to(ROOT)} must have a block of text that begins with the section of the plugin")
    return f"{head}```text\n{section(printed)}```\n{tail}"


def digest(text: str) -> str:
    """Return the digest of a check in a page, which its picture holds as well."""
    (found,) = re.findall(rf'<details [^>]*data-id="[^"]*::{SHOWN}">.*?</dl>', text, re.DOTALL)
    return hashlib.sha256(found.encode()).hexdigest()


def with_comment(png: bytes, comment: str) -> bytes:
    """Return a PNG file with a comment before its last chunk."""
    data = b"tEXtComment\0" + comment.encode("ascii")
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    end = png.rindex(b"IEND") - 4
    return png[:end] + chunk + png[end:]


def picture() -> bytes:
    """Return the picture of the README's example in the page: its modules and charts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1160, "height": 2400}, color_scheme="light", device_scale_factor=1.5)
        tab.goto(SAMPLE.as_uri())
        check = tab.locator(f'[data-id$="::{SHOWN}"]')
        check.evaluate("check => { check.open = true }")
        tab.wait_for_timeout(500)
        whole, rest = check.bounding_box(), check.get_by_text("Numbers: Steps").bounding_box()
        assert whole is not None and rest is not None
        png = tab.screenshot(clip={**whole, "height": rest["y"] - whole["y"] - 12})
        browser.close()
    return with_comment(png, digest(SAMPLE.read_text(encoding="utf-8")))


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", action="store_true", help="write only the picture, from the page")
    if not parser.parse_args().picture:
        report, printed = run_the_examples()
        SAMPLE.write_text(sample(report), encoding="utf-8")
        TEXT.write_text(with_section(TEXT.read_text(encoding="utf-8"), printed), encoding="utf-8")
    PICTURE.write_bytes(picture())
    for path in (SAMPLE, TEXT, PICTURE):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
