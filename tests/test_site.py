"""The site is whole: every link of every built page leads somewhere, and the reference shows what users call."""

import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import urllib.parse

import pytest

bs4 = pytest.importorskip("bs4", reason="needs the extra `docs`")
for needed in ("furo", "keras_tuner"):
    pytest.importorskip(needed, reason="needs the extras `docs` and `test`")

ROOT = pathlib.Path(__file__).parents[1]
MODULES = ["", ".augmentation", ".callbacks", ".datasets", ".guidance", ".plotting", ".tuner"]
OWN_METHODS = {
    *("save save_weights load_weights quantize kd_weight teacher_cost take_snapshot predict_stochastic").split(),
    *("guidance_weights teacher_representations training_loss update_average write_average").split(),
}

pytestmark = [pytest.mark.slow, pytest.mark.once]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@functools.cache
def parsed(path):
    return bs4.BeautifulSoup(path.read_text(), "html.parser")


@functools.cache
def anchors(path):
    return {tag.get("id") or tag.get("name") for tag in parsed(path).select("[id], a")}


def links(path):
    """The names of the tags of a page that refer to something, and what that is."""
    for tag in parsed(path).select("[href], [src]"):
        yield tag.name, urllib.parse.urlsplit(tag.get("href") or tag["src"])


def leads_somewhere(page, link):
    """Whether a link within the site has its file and, if it names one, its anchor there."""
    path = page if not link.path else page.parent / urllib.parse.unquote(link.path)
    path = path / "index.html" if path.is_dir() else path
    return path.is_file() and (not link.fragment or link.fragment in anchors(path.resolve()))


def test_every_link_within_the_site_leads_to_a_page_and_an_anchor(site):
    inner = [(page, link) for page in sorted(site.rglob("*.html")) for _, link in links(page)]
    inner = [(page, link) for page, link in inner if not link.scheme and link.geturl() not in ("", "#")]
    assert len(inner) > 3000 and sum(bool(link.fragment) for _, link in inner) > 500
    broken = [(page, link) for page, link in inner if not leads_somewhere(page.resolve(), link)]
    assert [f"{page.relative_to(site)}: {link.geturl()}" for page, link in broken] == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<a id="here" href="#here"></a><a href="page.html#there"></a><img src="picture.png">')
    assert [leads_somewhere(page, link) for _, link in links(page)] == [True, False, False]


def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = [link for name, link in links(page) if name not in ("a", "form")]
        assert [link.geturl() for link in loaded if link.netloc] == []


def test_the_reference_describes_every_public_name_and_no_hook_of_keras(site):
    pages = [site / "docs" / "api.html", *(site / "docs" / "api").glob("*.html")]
    documented = {tag["id"] for page in pages for tag in parsed(page).select("dt.sig-object[id]")}
    for suffix in MODULES:
        module = importlib.import_module("keras_ssd" + suffix)
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        names = {name for name in getattr(module, "__all__", own) if name[0] != "_" and f".{name}" not in MODULES}
        assert names and {f"{module.__name__}.{name}" for name in names} <= documented
    assert {name.split(".")[-1] for name in documented if name.startswith("keras_ssd.SSDModel.")} == OWN_METHODS


def test_the_reference_shows_the_arguments_of_a_layer_and_code_as_code(site):
    signature = parsed(site / "docs" / "api" / "augmentation.html").find(id="keras_ssd.augmentation.Jitter").get_text()
    assert "(stddev=0.05, seed=None, **kwargs)" in signature
    for path in (site / "docs" / "api").glob("*.html"):
        assert "`" not in parsed(path).find("article").get_text()


def test_search_finds_words_of_the_text(site):
    from sphinx.search.en import SearchEnglish

    index = json.loads((site / "searchindex.js").read_text().removeprefix("Search.setIndex(").rstrip("\n;)"))
    found = index["terms"][SearchEnglish({}).stem("microcontroller")]
    pages = [index["docnames"][number] for number in ([found] if isinstance(found, int) else found)]
    assert "docs/export" in pages


@pytest.mark.parametrize("name", ["first_steps", "search", "wearables"])
def test_notebooks_show_their_stored_outputs(site, name):
    cells = json.loads((ROOT / "examples" / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    shown = parsed(site / "examples" / "notebooks" / f"{name}.html")
    printed = " ".join(shown.get_text().split())
    for output in outputs:
        if output["output_type"] == "stream":
            assert " ".join("".join(output["text"]).split()) in printed
    assert len(shown.select(".cell_output img")) == sum(output["output_type"] == "display_data" for output in outputs)
