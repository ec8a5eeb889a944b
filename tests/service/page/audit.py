"""What a page owes to people who cannot see it, or not its colours, or use no mouse: rules of WCAG 2.2, checked in the page.

Each rule answers a list of complaints, so that a test shows all of them at once.
"""

from typing import Any

# Names of controls, targets of references, distinct ids, order of headings, size of targets, text alternatives of pictures.
STRUCTURE = """() => {
  const found = [], seen = (e) => e.checkVisibility({ visibilityProperty: true });
  const name = (e) => e.outerHTML.slice(0, 90);
  for (const e of document.querySelectorAll("input, select, textarea")) {
    if (![...e.labels].some((label) => label.textContent.trim())) found.push(`no label: ${name(e)}`);
  }
  for (const e of document.querySelectorAll("button, a, summary")) {
    if (!e.textContent.trim()) found.push(`no name: ${name(e)}`);
  }
  for (const attribute of ["aria-describedby", "aria-labelledby", "for"]) {
    for (const e of document.querySelectorAll(`[${attribute}]`)) {
      for (const id of e.getAttribute(attribute).split(" ")) {
        if (!document.getElementById(id) && seen(e)) found.push(`${attribute} leads nowhere: ${name(e)}`);
      }
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) found.push(`an id stands twice: ${ids.filter((id, i) => ids.indexOf(id) !== i)}`);
  let level = 0;
  for (const e of [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(seen)) {
    const own = Number(e.tagName[1]);
    if (own > level + 1) found.push(`a heading is left out before: ${name(e)}`);
    level = own;
  }
  for (const e of [...document.querySelectorAll("button, input, select, textarea, summary")].filter(seen)) {
    const { width, height } = e.getBoundingClientRect();
    if (!e.classList.contains("link") && Math.min(width, height) < 24) found.push(`smaller than 24 px: ${name(e)}`);
  }
  for (const e of document.querySelectorAll("svg:not([aria-hidden=true]), img:not([alt])")) found.push(`no text: ${name(e)}`);
  for (const e of document.querySelectorAll("[tabindex]")) if (e.tabIndex > 0) found.push(`own tab order: ${name(e)}`);
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  if (!document.querySelector("main") || !document.documentElement.lang || !document.title) found.push("no main, lang or title");
  return found;
}"""

# Contrast of every text on its ground: 4.5, and 3 where it is large (24 px, or 18.66 px and bold).
CONTRAST = """() => {
  const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
  const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (e) => {
    if (e === null) return [255, 255, 255, 1];
    const own = rgba(getComputedStyle(e).backgroundColor);
    return own[3] === 1 ? own : over(own, ground(e.parentElement));
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let checked = 0;
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, isShown = e.checkVisibility({ visibilityProperty: true });
    if (!texts.currentNode.data.trim() || !isShown || e.closest("option, noscript")) continue;
    const style = getComputedStyle(e), size = parseFloat(style.fontSize), back = ground(e);
    const [a, b] = [light(over(rgba(style.color), back)), light(back)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    checked += 1;
    if (ratio < (isLarge ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${texts.currentNode.data.trim().slice(0, 40)}`);
  }
  return { found, checked };
}"""

# What sticks out to the right of the window.
TOO_WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"""

UNFOLD = """() => { for (const e of document.querySelectorAll("details")) e.open = true; }"""


def assert_accessible(page: Any, *, min_texts: int) -> None:
    """Hold a page against every rule, with all that is folded unfolded. At least `min_texts` texts must be there to check."""
    page.evaluate(UNFOLD)
    assert page.evaluate(STRUCTURE) == []
    contrast = page.evaluate(CONTRAST)
    assert contrast["found"] == []
    assert contrast["checked"] >= min_texts
    assert page.evaluate(TOO_WIDE) == []
