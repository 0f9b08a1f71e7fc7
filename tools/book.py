#!/usr/bin/env python3
"""What docs/ needs to be a book, and to stay one.

    book.py check     builds the book, and says which pages are missing in it, and which links and anchors lead nowhere, also those of
                      the pages that are not in it (README.md and others); changes nothing but target/
    book.py           is the preprocessor of mdbook that book.toml names: the source tree is not in the book, so a link to it becomes
                      its text
"""

import functools
import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILT = ROOT / "target" / "book"

FENCED = r"^(?P<indent> *)(?P<fence>```+)[^\n]*\n.*?^(?P=indent)(?P=fence) *$"
# Whichever begins first: what looks like a link in a block or a span of code is none.
LINK_OR_CODE = re.compile(
    FENCED + r"|(?P<span>`+)(?!`).+?(?<!`)(?P=span)(?!`)|\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)", re.M | re.S
)
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


def is_elsewhere(target):
    return re.match(r"[a-z]+:", target) is not None


def links(page):
    """Where a page links to."""
    return [found["target"] for found in LINK_OR_CODE.finditer(page.read_text(encoding="utf-8")) if found["target"]]


def without_the_tree(page, text):
    """A page whose links to files outside docs/ are only their text."""

    def replace(found):
        target = (found["target"] or "").partition("#")[0]
        if not target or is_elsewhere(target) or (page.parent / target).resolve().is_relative_to(DOCS):
            return found[0]
        return found["text"]

    return LINK_OR_CODE.sub(replace, text)


def preprocess(book):
    def walk(items):
        for item in items:
            # Others are titles of parts, and lines.
            if isinstance(item, dict) and "Chapter" in item:
                chapter = item["Chapter"]
                if chapter["path"] is not None:
                    chapter["content"] = without_the_tree(DOCS / chapter["path"], chapter["content"])
                walk(chapter["sub_items"])

    walk(book["items"])
    return book


@functools.cache
def anchors(page):
    """What a page's headings are called in links, by mdbook and by those who show Markdown."""
    text = re.sub(FENCED, "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in HEADING.findall(text):
        name = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "", heading)).strip().lower())
        number, unique = 0, name
        while unique in found:
            number += 1
            unique = f"{name}-{number}"
        found.add(unique)
    return found


def pages():
    """Every page that somebody wrote."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = (ROOT / name for name in listed.stdout.splitlines() if not name.startswith("vendor/"))
    return sorted(page for page in found if page.is_file())


def wrong_links(page):
    """Links of the Markdown, as it is read in the source tree."""
    for target in links(page):
        path, _, anchor = target.partition("#")
        if is_elsewhere(target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{page.relative_to(ROOT)}: {target}: there is no such file"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{page.relative_to(ROOT)}: {target}: there is no such heading"


def missing_pages():
    listed = {DOCS / target for target in links(DOCS / "SUMMARY.md")}
    for page in pages():
        if page.is_relative_to(DOCS) and page.name != "SUMMARY.md" and page not in listed:
            yield f"docs/SUMMARY.md: {page.relative_to(DOCS)} is missing"


class Rendered(html.parser.HTMLParser):
    """The links of a page of the book, and what may be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.names = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.names.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def wrong_rendered_links():
    """Links of the book itself."""
    built = {path: Rendered(path) for path in BUILT.rglob("*.html") if path.name not in ("toc.html", "print.html", "404.html")}
    for path, page in built.items():
        for target in page.links:
            file, _, anchor = target.partition("#")
            if is_elsewhere(target):
                continue
            other = (path.parent / file).resolve() if file else path
            if not other.is_file():
                yield f"the book: {path.relative_to(BUILT)}: {target}: there is no such file"
            elif anchor and other in built and anchor not in built[other].names:
                yield f"the book: {path.relative_to(BUILT)}: {target}: there is no such place"


def check():
    wrong = [*missing_pages(), *(line for page in pages() for line in wrong_links(page))]
    program = shutil.which("mdbook") or shutil.which("mdbook", path=pathlib.Path(sys.executable).parent)
    if program is None:
        wrong.append("there is no mdbook: ./test.sh setup installs it")
    else:
        done = subprocess.run([program, "build"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        # What mdbook only warns of is HTML that is not closed, and the like.
        wrong += [line.strip() for line in done.stderr.splitlines() if "WARN" in line or "ERROR" in line]
        if done.returncode != 0:
            wrong.append(f"mdbook: exit code {done.returncode}: {done.stderr}")
        else:
            wrong += wrong_rendered_links()
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["check"]:
            check()
        case ["supports", _]:
            pass
        case []:
            _context, book = json.load(sys.stdin)
            json.dump(preprocess(book), sys.stdout)
        case _:
            sys.exit(__doc__)
