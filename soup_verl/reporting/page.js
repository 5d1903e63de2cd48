"use strict";
(() => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const PRINTED = { one: 680, several: 330 }; // px: A4 with usual margins, one or two panels a row

  // What a page of a file may not be allowed to do: storage can be switched off.
  const stored = (name, value) => {
    try {
      if (value === undefined) return sessionStorage.getItem(name);
      sessionStorage.setItem(name, value);
    } catch { /* no storage: the page forgets */ }
    return null;
  };

  // ---- light and dark ----

  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const chosen = () => stored("soup-theme") || (system.matches ? "dark" : "light");

  const themed = () => {
    const style = getComputedStyle(root);
    const of = (name) => style.getPropertyValue(name).trim();
    const axis = (name) => ({
      [`${name}.gridcolor`]: of("--grid"), [`${name}.zerolinecolor`]: of("--line"), [`${name}.linecolor`]: of("--line"),
      [`${name}.spikecolor`]: of("--soft"),
    });
    return {
      "font.color": of("--text"), "hoverlabel.bgcolor": of("--panel"), "hoverlabel.bordercolor": of("--line"),
      "hoverlabel.font.color": of("--text"), ...axis("xaxis"), ...axis("yaxis"),
    };
  };

  const setTheme = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
  };
  const recolour = () => plots.forEach((plot) => plot.layout && Plotly.relayout(plot, themed()));

  setTheme(chosen());
  button.addEventListener("click", () => {
    stored("soup-theme", root.dataset.theme === "dark" ? "light" : "dark");
    setTheme(chosen());
    recolour();
  });
  system.addEventListener("change", () => { setTheme(chosen()); recolour(); });

  // ---- figures ----

  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: 13 }, hoverlabel: { font: { size: 13 }, namelength: -1 },
    margin: { l: 8, r: 10, t: 8, b: 8 },
  };
  const merged = (a, b) => {
    const both = { ...a };
    for (const [key, value] of Object.entries(b)) {
      both[key] = value && typeof value === "object" && !Array.isArray(value) ? merged(both[key] || {}, value) : value;
    }
    return both;
  };
  const nested = (flat) => Object.entries(flat).reduce(
    (tree, [path, value]) => merged(tree, path.split(".").reduceRight((inner, key) => ({ [key]: inner }), value)), {});
  const config = { responsive: true, displayModeBar: false, displaylogo: false, scrollZoom: false, doubleClick: false };

  const draw = async (plot) => {
    const { data, layout } = JSON.parse(document.getElementById(plot.dataset.plot).textContent);
    await Plotly.newPlot(plot, data, merged(merged(base, layout), nested(themed())), config);
  };

  // Light and as wide as the paper while it is printed, then as before.
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    document.querySelectorAll("details").forEach((d) => { d.dataset.was = d.open; d.open = true; });
    plots.forEach((plot) => {
      const width = plot.closest(".panels").classList.contains("one") ? PRINTED.one : PRINTED.several;
      Plotly.relayout(plot, { ...themed(), width });
    });
  });
  addEventListener("afterprint", () => {
    setTheme(chosen());
    document.querySelectorAll("details").forEach((d) => { d.open = d.dataset.was === "true"; });
    plots.forEach((plot) => Plotly.relayout(plot, { ...themed(), width: null, autosize: true }));
  });

  // ---- tokens ----

  const tooltip = document.getElementById("tooltip");
  const show = (token) => {
    tooltip.textContent = token.dataset.note;
    tooltip.hidden = false;
    token.setAttribute("aria-describedby", "tooltip");
    const at = token.getClientRects()[0] || token.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left), innerWidth - tooltip.offsetWidth - 8);
    const above = at.top - tooltip.offsetHeight - 6;
    tooltip.style.left = `${Math.max(8, left)}px`;
    tooltip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
  };
  const hide = () => {
    tooltip.hidden = true;
    document.querySelectorAll("[aria-describedby=tooltip]").forEach((t) => t.removeAttribute("aria-describedby"));
  };
  const MOVES = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };

  for (const box of document.querySelectorAll(".tokens")) {
    const tokens = [...box.querySelectorAll(".t")];
    const token = (event) => event.target.closest(".t");
    box.addEventListener("pointerover", (event) => token(event) && show(token(event)));
    box.addEventListener("pointerleave", () => (box.contains(document.activeElement) ? show(document.activeElement) : hide()));
    box.addEventListener("click", (event) => token(event)?.focus());
    box.addEventListener("focusin", (event) => show(event.target));
    box.addEventListener("focusout", hide);
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const at = tokens.indexOf(event.target);
      if (!(event.key in MOVES) || at < 0) return undefined;
      event.preventDefault();
      const next = tokens[Math.min(Math.max(at + MOVES[event.key], 0), tokens.length - 1)];
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      return undefined;
    });
  }
  addEventListener("scroll", () => { if (!document.activeElement?.matches?.(".t")) hide(); }, { passive: true });

  // ---- a page that loads itself again keeps its place ----

  const placed = `soup-place ${location.pathname}`;
  addEventListener("pagehide", () => {
    const open = [...document.querySelectorAll("details")].map((d) => d.open);
    stored(placed, JSON.stringify({ y: scrollY, open }));
  });
  const restore = () => {
    const last = JSON.parse(stored(placed) || "null");
    const again = performance.getEntriesByType("navigation")[0]?.type !== "navigate";
    if (!last || !(again || document.querySelector("meta[http-equiv=refresh]"))) return;
    const details = [...document.querySelectorAll("details")];
    if (details.length === last.open.length) details.forEach((d, i) => { d.open = last.open[i]; });
    scrollTo({ top: last.y, behavior: "instant" });
  };

  Promise.all(plots.map(draw)).then(() => {
    restore();
    root.dataset.drawn = "true";
  });
})();
