// SPDX-License-Identifier: GPL-2.0-only
// Returns the properties of the page that tools/clockguest/tests/page checks; it evaluates this in the page.
(() => {
  const all = (selector, of = document) => [...of.querySelectorAll(selector)];
  const box = (element) => { const { left, right, top, bottom } = element.getBoundingClientRect(); return { left, right, top, bottom }; };
  const hidden = (element) => element.closest("head, script, style, title, desc") || (element.closest("details:not([open])") && !element.closest("summary")) ||
    getComputedStyle(element).display === "none" || !element.getClientRects().length;
  const channels = (colour) => { const found = colour.match(/[\d.]+/g).map(Number); return found.length < 4 ? [...found, 1] : found; };
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => p - q); return (y + 0.05) / (x + 0.05); };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (channels(c)[3] === 1) return c; }
    return "rgb(255, 255, 255)";
  };
  const ink = (element) => element instanceof SVGElement ? getComputedStyle(element)[element.matches("text") ? "fill" : "stroke"] : getComputedStyle(element).color;
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const seen = all("body *").filter((element) => !hidden(element));
  return {
    background: luminance(behind(document.body)),
    width: [document.documentElement.scrollWidth, window.innerWidth],
    outside: seen.filter((e) => !e.closest(".scrolling") && box(e).right > window.innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 80)),
    clipped: all("svg").flatMap((svg) => all("text", svg).filter((text) => box(text).right > box(svg).right + 0.5 || box(text).left < box(svg).left - 0.5)
      .map((text) => `${text.textContent} in ${svg.querySelector("title").textContent}`)),
    text: seen.filter(hasText).map((e) => ({ text: e.textContent.trim().slice(0, 40), contrast: contrast(ink(e), behind(e)), size: parseFloat(getComputedStyle(e).fontSize) *
      (e.ownerSVGElement ? box(e.ownerSVGElement).right > 0 ? (box(e.ownerSVGElement).right - box(e.ownerSVGElement).left) / e.ownerSVGElement.viewBox.baseVal.width : 0 : 1) })),
    marks: seen.filter((e) => e.matches("svg .line.s0, svg .line.s1, svg .line.s2, svg .line.s3, svg [data-value]")).map((e) => contrast(ink(e), behind(e))),
    runs: document.getElementById("runs").textContent,
    rows: all("table.stacking tbody tr").map((row) => ({ table: row.closest("table").id, run: row.dataset.run,
      cells: all("td", row).map((cell) => ({ name: cell.dataset.name, value: cell.dataset.value, text: cell.innerText.trim() })) })),
    charts: all("figure").map((figure) => {
      const svg = figure.querySelector("svg"), table = figure.querySelector("table");
      return {
        label: svg.getAttribute("aria-labelledby").split(" ").map((id) => document.getElementById(id)?.textContent),
        title: svg.querySelector("title").textContent, names: all("text", svg).map((text) => text.textContent),
        files: all("figcaption a", figure).map((a) => a.getAttribute("href")),
        band: all("rect.band", svg).map(box)[0] ?? null, area: box(svg), lines: all("path.line", svg).map((e) => [e.getAttribute("class"), e.getAttribute("stroke-dasharray")]),
        marks: all("[data-value]", svg).map((e) => ({ ...e.dataset, hollow: e.matches(".hollow"), d: e.getAttribute("d"), down: (box(e).top + box(e).bottom) / 2, right: (box(e).left + box(e).right) / 2 })),
        table: all("tr", table).map((row) => all("th, td", row).map((cell) => cell.textContent)),
      };
    }),
    ids: all("[id]").map((e) => e.id),
    scripts: all("script").map((e) => e.type),
    handlers: all("*").filter((e) => e.getAttributeNames().some((name) => name.startsWith("on"))).length,
  };
})()
