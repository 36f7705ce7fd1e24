// What the page does beyond standing there: links table and plots, sorts, filters, saves, prints.
"use strict";
const all = (what, inside = document) => [...inside.querySelectorAll(what)];
const plots = () => all(".js-plotly-plot");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// --- what the file has compressed: the library of the plots, the pages of the trials -------------
async function unpacked(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), each => each.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
async function bind() {
  const pages = document.createElement("div");
  pages.innerHTML = await unpacked("pages");
  document.body.append(pages);
  all("button[data-open]", pages).forEach(button => button.addEventListener("click", () => open(button.dataset.open)));
  all("dialog", pages).forEach(page => page.addEventListener("close", () => history.replaceState(null, "", " ")));
  if (location.hash.startsWith("#trial-")) open(location.hash.slice(7));
}
async function draw() {
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.head.append(library);
  await Promise.all(all("script[data-figure]").map(script => {
    const { data, layout } = JSON.parse(script.textContent);
    return Plotly.newPlot(script.dataset.figure, data, layout, { displayModeBar: false, responsive: true });
  }));
  paint();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  addEventListener("beforeprint", () => { resize(true); paint(); });
  addEventListener("afterprint", () => { resize(false); paint(); });
  for (const plot of plots()) {
    plot.on("plotly_click", event => { const n = event.points[0].customdata; if (n !== undefined) open(n); });
    plot.on("plotly_hover", event => { const n = event.points[0].customdata; if (n !== undefined) pick(n); });
  }
}

// --- colours of the plots, which do not follow the page by themselves ---------------------------
const ROLES = { "#1f5fbf": "front", "#8793a0": "rest", "#c0392b": "over" };
function paint() {
  for (const plot of plots()) {
    const grid = colour("line"), ink = colour("ink");
    const axes = {};
    for (const axis of ["xaxis", "yaxis"])
      Object.assign(axes, { [`${axis}.gridcolor`]: grid, [`${axis}.zerolinecolor`]: grid, [`${axis}.linecolor`]: grid });
    // All traces at once: each call draws the plot anew.
    const update = {};
    plot.data.forEach((trace, index) => {
      trace.roles ??= ["marker", "line", "error_x", "error_y"].flatMap(part =>
        ROLES[trace[part]?.color] ? [[`${part}.color`, ROLES[trace[part].color]]] : []);
      for (const [key, role] of trace.roles) (update[key] ??= plot.data.map(() => undefined))[index] = colour(role);
    });
    Plotly.update(plot, update, { "font.color": ink, ...axes });
  }
}

// --- a trial's page, from the table, a plot, or a link in another page ---------------------------
function open(number) {
  const page = document.getElementById(`trial-${number}`);
  if (!page) return;
  all("dialog[open]").forEach(other => other.close());
  page.showModal();
  history.replaceState(null, "", `#trial-${number}`);
}
function pick(number) {
  all("#trials tbody tr").forEach(row => row.classList.toggle("picked", row.dataset.number === String(number)));
}
function point(number) {
  // Shows a row's points in all plots that have them.
  for (const plot of plots()) {
    const hovered = [];
    plot.data.forEach((trace, curveNumber) => (trace.customdata || []).forEach((each, pointNumber) => {
      if (String(each) === String(number) && trace.hoverinfo !== "skip") hovered.push({ curveNumber, pointNumber });
    }));
    hovered.length ? Plotly.Fx.hover(plot, hovered.slice(0, 1)) : Plotly.Fx.unhover(plot);
  }
}

// --- the table -----------------------------------------------------------------------------------
const key = cell => cell.dataset.value ?? cell.textContent.trim();
function unfold() {
  document.getElementById("trials").classList.remove("short");
  document.getElementById("more")?.remove();
}
function sort(head) {
  unfold();
  const up = head.getAttribute("aria-sort") !== "ascending";
  all("#trials th").forEach(each => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const column = head.cellIndex, body = document.querySelector("#trials tbody");
  const compare = (a, b) => {
    const [x, y] = [a, b].map(row => key(row.cells[column]));
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return up ? order : -order;
  };
  body.append(...[...body.rows].sort(compare));
}
function filter() {
  unfold();
  const words = document.getElementById("words").value.toLowerCase(), status = document.getElementById("status").value;
  let count = 0;
  for (const row of all("#trials tbody tr")) {
    row.hidden = !(row.dataset.words.includes(words) && (!status || row.dataset.status === status));
    count += !row.hidden;
  }
  document.getElementById("count").textContent = `${count} shown`;
}
function csv() {
  const quote = text => `"${String(text).replaceAll('"', '""').replace(/\s+/g, " ").trim()}"`;
  const lines = all("#trials tr").filter(row => !row.hidden).map(row =>
    [...row.cells].map(cell => quote(cell.dataset.value ?? cell.textContent)).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
  link.download = `${document.body.dataset.study}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

// --- paper ---------------------------------------------------------------------------------------
const heights = new Map();
const PAPER = { height: 250, width: 335, "font.size": 8, "margin.t": 34, "margin.b": 34 };
const SCREEN = { width: null, autosize: true, "font.size": 13, "margin.t": 40, "margin.b": 52 };
function resize(onPaper) {
  for (const plot of plots()) {
    if (onPaper) heights.set(plot, plot.layout.height);
    Plotly.relayout(plot, onPaper ? PAPER : { height: heights.get(plot), ...SCREEN });
  }
}

addEventListener("DOMContentLoaded", () => {
  for (const row of all("#trials tbody tr")) {
    row.addEventListener("click", () => open(row.dataset.number));
    // Unless it ends here, the same key press goes on to the page's button, which closes it.
    row.addEventListener("keydown", event => { if (event.key === "Enter") { event.preventDefault(); open(row.dataset.number); } });
    for (const event of ["mouseenter", "focus"]) row.addEventListener(event, () => { pick(row.dataset.number); point(row.dataset.number); });
  }
  all("#trials th button").forEach(button => button.addEventListener("click", () => sort(button.parentElement)));
  for (const [id, event] of [["words", "input"], ["status", "change"]]) document.getElementById(id)?.addEventListener(event, filter);
  document.getElementById("more")?.addEventListener("click", unfold);
  document.getElementById("csv")?.addEventListener("click", csv);
  all("button[data-plot]").forEach(button => button.addEventListener("click", () =>
    Plotly.downloadImage(button.dataset.plot, { format: "png", scale: 2, filename: `${document.body.dataset.study}-${button.dataset.plot}` })));
  all("button[data-copy]").forEach(button => button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(button.dataset.copy); button.textContent = "copied"; } catch { getSelection().selectAllChildren(button.previousElementSibling); }
  }));
  Promise.all([bind(), draw()]).then(() => document.body.dataset.drawn = "yes", () => {
    document.body.dataset.drawn = "no";
    all(".plot").forEach(plot => plot.textContent = "This browser cannot unpack plots and trials; one of 2023 or later can.");
  });
});
