// Every page: sorts, filters and copies tables; links to its parts; inflates plotly.js and draws the figures.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);
const said = document.querySelector(".said");
const body = (table) => table.tBodies[0];

// Sorting: numbers by data-value (absent ones last, either way), the rest as text.
const key = (row, column) => {
  const cell = row.cells[column];
  if (!("value" in cell.dataset)) return cell.textContent.toLowerCase();
  const value = cell.dataset.value;
  return value === "" ? null : value === "inf" || value === "nan" ? Infinity : Number(value.replace("-inf", "-Infinity"));
};
const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a === b ? 0 : a < b ? -1 : 1);

function sort(header) {
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const table = header.closest("table");
  all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const rows = [...body(table).rows].map((row) => [key(row, header.cellIndex), row]);
  rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
  body(table).append(...rows.map(([, row]) => row));
}

function filter(field) {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...body(byId(field.dataset.filter)).rows];
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  const label = document.querySelector(`[data-shown="${field.dataset.filter}"]`);
  label.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} ${label.dataset.noun}s shown`;
}

// Copying: a table as tab-separated text (raw numbers, shown rows only), anything else as its text.
const cellText = (cell) => (cell.dataset.value || cell.textContent).trim().replace(/\s+/g, " ");
const textOf = (target) =>
  target.tagName !== "TABLE" ? target.textContent
    : [...target.tHead.rows, ...[...body(target).rows].filter((row) => !row.hidden)]
        .map((row) => [...row.cells].map(cellText).join("\t")).join("\n");

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or no secure context: the older way
    const field = document.body.appendChild(document.createElement("textarea"));
    field.value = text;
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    if (!copied) throw new Error("the browser does not allow copying");
  }
}

async function copy(button, text, done = "Copied") {
  try {
    await toClipboard(text);
    said.textContent = done;
  } catch (error) {
    said.textContent = `Not copied: ${error.message}`;
  }
  button.textContent = said.textContent;
  button.focus();
  setTimeout(() => { button.textContent = button.dataset.label; said.textContent = ""; }, 1600);
}

document.addEventListener("click", ({ target }) => { // here, as parts of the page may come later
  const button = target.closest("button");
  if (button?.className === "sort") sort(button.closest("th"));
  else if (button?.dataset.copy) copy(button, textOf(byId(button.dataset.copy)));
});
document.addEventListener("input", ({ target }) => { if (target.dataset.filter) filter(target); });

// What is closed and long stands in <noscript>: text until it is opened, elements to a browser that runs no script.
const elements = (html) => Object.assign(document.createElement("template"), { innerHTML: html }).content;
for (const later of all("details > noscript")) {
  later.parentElement.addEventListener("toggle", () => later.replaceWith(elements(later.textContent)), { once: true });
}

// A name that is cut off: all of it on hovering, and unfolded by a click.
document.addEventListener("pointerover", ({ target }) => {
  const name = target.closest?.(".name");
  if (!name || name.title || (name.scrollHeight <= name.clientHeight && name.scrollWidth <= name.clientWidth)) return;
  name.title = name.textContent;
  if (!name.hasAttribute("tabindex")) name.tabIndex = -1; // a click gives it the focus
});

function follow() { // a part that is closed opens
  const closed = byId(decodeURIComponent(location.hash.slice(1)))?.closest("details");
  if (closed) closed.open = true;
}

addEventListener("hashchange", follow);
follow();

// Figures.
function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // a hundred times as fast; browsers of 2025 have it
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  return bytes;
}

const inflated = (element) => new Response(new Blob([bytesOf(element.textContent)]).stream().pipeThrough(new DecompressionStream("deflate")));

async function load(library) {
  const script = document.createElement("script");
  script.textContent = await inflated(library).text();
  document.head.append(script);
  library.remove();
}

// Only these buttons: plotly.js also offers ones that send the figure to a site.
const options = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };

let loaded;

async function draw(root) {
  const plots = all(".plot", root);
  if (!plots.length) return;
  const figures = plots.map((plot) => byId(plot.dataset.figure));
  await (loaded ??= load(byId("library")));
  for (const [place, plot] of plots.entries()) {
    const { data, layout } = JSON.parse(figures[place].textContent);
    plot.replaceChildren();
    await Plotly.newPlot(plot, data, layout, options);
  }
  const fit = () => plots.filter((plot) => plot.isConnected).forEach((plot) => Plotly.Plots.resize(plot));
  window.addEventListener("beforeprint", fit);
  window.addEventListener("afterprint", fit);
}

async function show(root) { // gives whether all figures were drawn
  try {
    await draw(root);
    return "yes";
  } catch (error) {
    all(".plot .wait", root).forEach((text) => { text.textContent = `This figure could not be drawn (${error.message}); its numbers are in the tables.`; });
    return "no";
  }
}

document.addEventListener("figures", async ({ detail }) => { detail.dataset.drawn = await show(detail); }); // in a part that came later
show(document).then((drawn) => document.documentElement.setAttribute("data-drawn", drawn));
