"""The page in a browser: figures that move, text that stays text, keys, colours and a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser, program
from shop import free_port, serving, shop

HELD = "!document.querySelector('[data-id=holder]').hidden"
LIVE = "document.getElementById('state').dataset.state === 'live'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, str]]:
    """A browser, and the address of the dashboard of a busy application."""
    program()
    folder = tmp_path_factory.mktemp("shop")
    profile = tmp_path_factory.mktemp("profile")
    with shop(folder) as (_, url), browser(profile) as shown:
        yield shown, url


@pytest.fixture
def shown(page: tuple[Browser, str]) -> Iterator[Browser]:
    """The page, newly opened; afterwards the browser has had nothing to complain about."""
    shown, url = page
    shown.complaints.clear()
    shown.size(1280, 900)
    shown.prefer(color_scheme="light", reduced_motion="no-preference")
    shown.open(url)
    shown.until(LIVE)
    yield shown
    shown.value("1")  # all it has to tell has come
    assert shown.complaints == []


def stop_when(shown: Browser, expression: str) -> None:
    """Pause at the first moment at which an expression is true, so that it stays true."""
    shown.value(
        "new Promise((stopped) => { const look = () => {"
        f" if (!({expression})) {{ setTimeout(look, 10); return; }}"
        " document.getElementById('pause').click(); stopped(); }; look(); })"
    )


def text(part: str) -> str:
    """An expression: what a part of the page says."""
    return f"document.querySelector('[data-id={part}]').textContent"


def test_the_figures_move_while_the_application_writes(shown: Browser) -> None:
    """Commits are counted, the holder and those behind it come and go, lines are drawn."""
    first = shown.value(text("commits-sub"))
    shown.until(f"{text('commits-sub')} !== {json.dumps(first)}")
    shown.until(f"parseFloat({text('commits')}) > 0")
    shown.until(f"{HELD} && {text('where')}.includes('in report')")
    shown.until("document.querySelectorAll('[data-id=line] li').length === 5")
    shown.until("document.querySelector('[data-id=slow]').textContent.includes('in report')")
    shown.until(
        "document.querySelector('[data-id=commits-spark] .trace').getAttribute('d').includes('L')"
    )
    stop_when(shown, "document.querySelector('[data-id=line] li')")
    assert "process" in shown.value("document.querySelector('[data-id=line] li').textContent")
    assert shown.value("document.title").endswith("qsession")


def test_text_of_the_application_stays_text(shown: Browser) -> None:
    """The name of a task and a statement are HTML that would run."""
    stop_when(shown, f"{HELD} && {text('statement')}.includes('<img src=x')")
    assert "<img src=x" in shown.value(text("task"))
    assert shown.value("document.querySelectorAll('main img').length") == 0
    assert shown.value("document.title") != "broken"


def test_the_policy_is_in_force(shown: Browser) -> None:
    """What an attacker might get into the page would neither run nor load anything."""
    shown.value(
        """
        window.blocked = [];
        document.addEventListener("securitypolicyviolation", (e) => {
          blocked.push(e.violatedDirective);
        });
        try { document.body.innerHTML = "<b>x</b>"; } catch (e) { blocked.push(e.name); }
        for (const [tag, name] of [["script", "src"], ["img", "src"], ["iframe", "src"]]) {
          const node = document.createElement(tag);
          try { node[name] = "https://attacker.example/"; } catch (e) { blocked.push(e.name); }
          document.body.append(node);
        }
        const inline = document.createElement("script");
        try { inline.text = "window.ran = true"; } catch (e) { blocked.push(e.name); }
        document.body.append(inline);
        """
    )
    shown.until("['img-src', 'frame-src'].every((each) => blocked.includes(each))")
    assert shown.value("blocked.filter((each) => each === 'TypeError').length") >= 3
    assert shown.value("window.ran") is None
    assert shown.complaints
    shown.complaints.clear()


def test_all_is_reached_by_keys(shown: Browser) -> None:
    """P pauses and resumes; Tab reaches the link, the button and the calls, which show it."""
    shown.press("p")
    shown.until("document.getElementById('state').textContent.startsWith('Paused at')")
    assert shown.value("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
    assert shown.value("document.getElementById('pause').innerText").startswith("Resume")
    shown.press("P")
    shown.until(LIVE)

    shown.press("Tab", 9)
    assert shown.value("document.activeElement.className") == "skip"
    assert shown.value("document.activeElement.getBoundingClientRect().left") >= 0
    shown.press("Tab", 9)
    assert shown.value("document.activeElement.id") == "pause"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert shown.value(outline) == "solid"
    shown.press("Enter", 13)
    shown.until("document.getElementById('state').dataset.state === 'paused'")
    shown.press("Enter", 13)
    shown.until(LIVE)


def test_ctrl_p_is_the_browsers_own(shown: Browser) -> None:
    """A key with a modifier does not pause."""
    for modifiers in (1, 2, 4):
        shown.ask("Input.dispatchKeyEvent", type="rawKeyDown", key="p", modifiers=modifiers)
    assert shown.value("document.getElementById('pause').getAttribute('aria-pressed')") is None


def test_while_it_is_paused_the_page_stands_still(shown: Browser) -> None:
    """The server has newer figures, and the page does not show them."""
    shown.press("p")
    shown.until("document.getElementById('state').dataset.state === 'paused'")
    before = shown.value("document.getElementById('databases').innerText")
    commits = "fetch('state.json').then((each) => each.json()).then((all) => COMMITS)"
    commits = commits.replace("COMMITS", "all.databases[0].totals.commits")
    first = shown.value(commits)
    shown.until(f"{commits}.then((now) => now > {first})")
    assert shown.value("document.getElementById('databases').innerText") == before


def test_a_phone_needs_no_sideways_scrolling(shown: Browser) -> None:
    """Whatever is shown: the holder, those in line, and a place in the code."""
    for width in (320, 390, 600, 760, 1024):
        shown.size(width, 800)
        stop_when(shown, f"{HELD} && innerWidth === {width}")
        assert shown.value("document.documentElement.scrollWidth") <= width
        assert shown.value(BEYOND) == []
        shown.press("p")


BEYOND = """
[...document.querySelectorAll("main *")]
  .filter((each) => !each.closest("thead, svg"))
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
  .map((each) => each.outerHTML)
"""
"""What reaches over the edge of the screen."""

CONTRAST = """
(() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colour, ground) => {
    for (const each of [ground, colour]) {
      paint.fillStyle = each;
      paint.fillRect(0, 0, 1, 1);
    }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((each) => each / 255)
      .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const groundOf = (node) => {
    const chain = [];
    for (let each = node; each; each = each.parentElement) {
      chain.unshift(getComputedStyle(each).backgroundColor);
    }
    return chain.reduce((ground, each) => `rgb(${over(each, ground).join(", ")})`, "#fff");
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim();
    const node = walk.currentNode.parentElement;
    if (!text || !node.getClientRects().length) continue;
    const ground = groundOf(node);
    const both = [over(getComputedStyle(node).color, ground), over(ground, ground)];
    const [dark, light] = both.map(luminance).sort((a, b) => a - b);
    found.push([(light + 0.05) / (dark + 0.05), text]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_easy_to_read(shown: Browser, scheme: str) -> None:
    """In both schemes it has the contrast that WCAG 2 asks for at level AA, 4.5 to 1."""
    shown.prefer(color_scheme=scheme)
    stop_when(shown, f"{HELD} && document.querySelector('[data-id=slow]').children.length > 0")
    ground = shown.value("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].split(",")[0]) < 128) is (scheme == "dark")
    found: list[list[Any]] = shown.value(CONTRAST)
    assert len(found) > 30
    assert [each for each in found if each[0] < 4.5] == []


def test_nothing_moves_for_those_who_do_not_want_it(shown: Browser) -> None:
    """No transition and no animation is left."""
    shown.prefer(reduced_motion="reduce")
    assert shown.value(MOVING) == 0


MOVING = """
[...document.querySelectorAll("*")].map(getComputedStyle)
  .filter((each) => parseFloat(each.transitionDuration) || each.animationName !== "none").length
"""


def test_roles_and_names(shown: Browser) -> None:
    """What a screen reader is told: landmarks, headings, tables, and a state to be read out."""
    stop_when(shown, "document.querySelector('[data-id=slow]').children.length > 0")
    tree = shown.ask("Accessibility.getFullAXTree")["nodes"]
    told = {
        (each["role"]["value"], each.get("name", {}).get("value", "").strip())
        for each in tree
        if not each["ignored"]
    }
    roles = {role for role, _ in told}
    assert {"main", "banner", "status", "table", "columnheader", "rowheader", "cell"} <= roles
    assert ("heading", "qsession") in told
    assert ("heading", "shop.db") in told
    assert ("region", "shop.db") in told
    assert ("button", "Resume") in told
    pictures = [name for role, name in told if role == "image"]
    assert any(each.startswith("The last two minutes; highest") for each in pictures)
    assert all(name for role, name in told if role in ("button", "link", "columnheader"))


def test_it_comes_back_when_the_server_does(tmp_path: Path) -> None:
    """It says that it is not connected, and is live again without being asked."""
    program()
    (tmp_path / "a.db").touch()
    (tmp_path / "profile").mkdir()
    port = free_port()
    url = f"http://localhost:{port}/"
    command = ("qsession.ext.dashboard", "a.db", "--port", str(port))
    with browser(tmp_path / "profile") as shown:
        with serving(tmp_path, url, *command):
            shown.open(url)
            shown.until(LIVE)
            assert "No process" in shown.value("document.body.innerText")
        shown.until("document.getElementById('state').dataset.state === 'lost'")
        with serving(tmp_path, url, *command):
            shown.until(LIVE)


def test_those_who_are_refused_see_what_to_do(page: tuple[Browser, str]) -> None:
    """With the style of the page, which everybody may have."""
    shown, url = page
    shown.ask("Network.enable")
    shown.ask("Network.setExtraHTTPHeaders", headers={"X-Forwarded-For": "203.0.113.9"})
    shown.open(url)
    assert "What to do" in shown.value("document.body.innerText")
    assert shown.value("document.styleSheets[0].cssRules.length") > 10
    shown.ask("Network.setExtraHTTPHeaders", headers={})
    shown.complaints.clear()
