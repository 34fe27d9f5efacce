"""Prints README.md as the page of a package index needs it: with a repository's address in front of relative links.

    python tools/package_page.py --repository https://example.org/someone/keras-ssd --branch v0.1.0

Links lead to the page of a file in the repository, pictures to the file itself. `--out README.md` writes a
file: do that in a copy of the repository before `python -m build`, which takes the page from there.
"""

import argparse
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PICTURES = (".gif", ".jpg", ".jpeg", ".png", ".svg")
# Blocks of code and inline code, in which `x[0](y)` is no link, and the targets of links.
PARTS = re.compile(r"^```.*?^```$|`[^`\n]+`|(?<=\]\()[^)\s]+(?=\))", flags=re.M | re.S)


def package_page(text, repository, branch="main"):
    """Markdown whose links to files of the repository are absolute; others, and code, are as they were."""

    def absolute(found):
        target = found[0]
        if target.startswith(("`", "#")) or re.match(r"\w+:", target):
            return target
        kind = "raw" if target.lower().endswith(PICTURES) else "blob"
        return f"{repository.rstrip('/')}/{kind}/{branch}/{target}"

    return PARTS.sub(absolute, text)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", required=True, help="address, as a browser shows it")
    parser.add_argument("--branch", default="main", help="branch, tag or commit")
    parser.add_argument("--out", type=pathlib.Path, help="file to write; default: print")
    arguments = parser.parse_args(argv)
    page = package_page((ROOT / "README.md").read_text(), arguments.repository, arguments.branch)
    arguments.out.write_text(page) if arguments.out else print(page, end="")


if __name__ == "__main__":
    main()
