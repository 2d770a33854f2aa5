"use strict";
// Sorts, filters and copies tables; inflates plotly.js and draws the figures. No network, no globals.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
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

  async function copy(button) {
    const said = document.querySelector(".said");
    try {
      await toClipboard(textOf(byId(button.dataset.copy)));
      said.textContent = "Copied";
    } catch (error) {
      said.textContent = `Not copied: ${error.message}`;
    }
    button.textContent = said.textContent;
    button.focus();
    setTimeout(() => { button.textContent = button.dataset.label; said.textContent = ""; }, 1600);
  }

  all("button.sort").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));
  all("input[data-filter]").forEach((field) => field.addEventListener("input", () => filter(field)));
  all("button.copy").forEach((button) => button.addEventListener("click", () => copy(button)));

  // Figures.
  async function load(library) {
    const deflated = Uint8Array.from(atob(library.textContent), (character) => character.charCodeAt(0));
    const inflated = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(inflated).text();
    document.head.append(script);
    library.remove();
  }

  // Only these buttons: plotly.js also offers ones that send the figure to a site.
  const options = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };

  async function draw() {
    const plots = all(".plot");
    if (!plots.length) return;
    await load(byId("library"));
    for (const plot of plots) {
      const { data, layout } = JSON.parse(byId(plot.dataset.figure).textContent);
      plot.replaceChildren();
      plot.style.height = `${layout.height}px`; // else plotly.js takes the box's own height when the window is resized
      await Plotly.newPlot(plot, data, layout, options);
    }
    const fit = () => plots.forEach((plot) => Plotly.Plots.resize(plot));
    window.addEventListener("beforeprint", fit);
    window.addEventListener("afterprint", fit);
  }

  draw().then(() => document.documentElement.setAttribute("data-drawn", "yes"), (error) => {
    all(".plot .wait").forEach((text) => { text.textContent = `This figure could not be drawn (${error.message}); its numbers are in the tables.`; });
    document.documentElement.setAttribute("data-drawn", "no");
  });
})();
