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
  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // a hundred times as fast; browsers of 2025 have it
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
    return bytes;
  }

  async function load(library) {
    const deflated = bytesOf(library.textContent);
    const inflated = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(inflated).text();
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
      plot.style.height = `${layout.height}px`; // else plotly.js takes the box's own height when the window is resized
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
})();
