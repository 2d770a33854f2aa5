// After page.js: tables from data, the timeline and the icicle on canvases. Names only ever become text.
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const breakable = (text) => text.split(/(?<=\/)/).flatMap((part, at) => (at ? [make("wbr"), part] : [part])); // as in page.py
const data = (id) => JSON.parse(byId(id).textContent);
const whole = (number) => number.toLocaleString("en");
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// 0.0000123 s -> "12.3 µs", as reports/units.py writes it.
function seconds(ns) {
  if (ns >= 59.95e9) return `${Math.floor(ns / 6e10)} min ${Math.round((ns % 6e10) / 1e9)} s`;
  for (const [unit, scale] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]]) {
    if (ns >= scale) return `${Number((ns / scale).toPrecision(3))} ${unit}`;
  }
  return `${Math.round(ns)} ns`;
}

// Tables: all rows are data, a few are in the page. Sorting, filtering and copying work on all of them.

class Sheet {
  constructor(box) {
    this.box = box;
    this.content = data(box.dataset.sheet);
    this.table = box.querySelector("table");
    this.shown = this.content.first;
    this.rows = this.content.rows;
    this.field = box.querySelector("input");
    this.field.addEventListener("input", () => { this.shown = this.content.first; this.filter(); });
    all("button.order", this.table).forEach((button, column) => button.addEventListener("click", () => this.sort(column)));
    box.querySelector("button.take").addEventListener("click", (event) => copy(event.currentTarget, this.text(), `${whole(this.rows.length)} rows copied`));
    box.querySelector("button.more").addEventListener("click", () => { this.shown = this.shown < 100 ? 4 * this.shown : 2 * this.shown; this.draw(); });
    this.draw();
  }

  key(row, column) {
    const cell = this.kind(column) === "part" ? row[column][1] : row[column];
    if (!Array.isArray(cell)) return cell.toLowerCase();
    return cell[0] === null ? null : cell[0] === "nan" ? Infinity : Number(String(cell[0]).replace("inf", "Infinity"));
  }

  kind(column) { return this.content.columns[column][1]; }

  sort(column) {
    const header = this.table.tHead.rows[0].cells[column];
    const first = ["text", "part"].includes(this.kind(column)) ? "ascending" : "descending"; // the largest number first
    const now = header.getAttribute("aria-sort");
    const order = now === null ? first : now === "ascending" ? "descending" : "ascending";
    all("th", this.table).forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b || 0);
    const keyed = this.content.rows.map((row) => [this.key(row, column), row]);
    keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
    this.content.rows = keyed.map(([, row]) => row);
    this.filter();
  }

  filter() {
    const words = this.field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row) => row.map((cell) => (Array.isArray(cell) ? cell[1] : cell)).join(" ").toLowerCase();
    this.rows = words.length ? this.content.rows.filter((row) => { const line = text(row); return words.every((word) => line.includes(word)); }) : this.content.rows;
    this.draw();
  }

  draw() {
    const rows = this.rows.slice(0, this.shown);
    this.table.tBodies[0].replaceChildren(...rows.map((row) => make("tr", {}, ...row.map((cell, column) => this.cell(cell, this.kind(column))))));
    const more = this.box.querySelector("button.more");
    more.hidden = rows.length === this.rows.length;
    more.textContent = `Show more (${whole(rows.length)} of ${whole(this.rows.length)} shown)`;
    const { nouns, total } = this.content;
    const count = this.rows.length === total ? whole(total) : `${whole(this.rows.length)} of ${whole(total)}`;
    this.box.querySelector(".shown").textContent = `${count} ${nouns[total === 1 ? 0 : 1]}`;
  }

  cell(content, kind) {
    if (!Array.isArray(content)) {
      const name = make("span", { className: content.length <= 24 ? "name short" : "name" }, ...breakable(content));
      if (content.length > 120) name.tabIndex = 0;
      return make("td", {}, name);
    }
    if (kind === "part") return make("td", {}, make("span", { className: "name" }, make("a", { href: `#part-p${content[0]}`, textContent: content[1] })));
    if (content.length > 2) {
      const interval = make("span", { className: `interval ${content[2]}` });
      ["--low", "--middle", "--high"].forEach((name, at) => interval.style.setProperty(name, `${content[3 + at]}%`));
      return make("td", { className: "number" }, content[1], interval);
    }
    const cell = make("td", { className: kind === "bar" ? "number share" : "number", textContent: content[1] });
    if (kind === "bar" && this.content.widest > 0) cell.style.setProperty("--part", `${(100 * Math.max(0, content[0])) / this.content.widest}%`);
    return cell;
  }

  text() { // tab-separated, numbers raw
    const plain = (cell, column) => (Array.isArray(cell) ? String(cell[this.kind(column) === "part" ? 1 : 0] ?? "") : cell).replace(/\s+/g, " ");
    const lines = [this.content.columns.map(([title]) => title), ...this.rows.map((row) => row.map(plain))];
    return lines.map((line) => line.join("\t")).join("\n");
  }
}

// What both pictures share: a canvas that keeps its size and theme, a window on a line of nanoseconds, a hint.

const WORK = ["#4a8ad8", "#dd6b3f", "#2fae86", "#d48db8", "#e0a82e", "#86cdee", "#b06a9c", "#a1865a"]; // apart for the colour-blind too
const TONES = { other: "#8f979f", memory: "#6d87a5", calls: "#a3abb3", ranges: ["#86a3c3", "#a3b58f", "#b9a2c0", "#c3ae86"] };
const INK = "#12161a"; // on any of these colours
const FONT = "11px system-ui, -apple-system, 'Segoe UI', sans-serif";

function fit(context, text, width) { // the longest beginning that fits, at about 6.6 px a character
  const most = Math.floor(width / 6.6);
  return text.length <= most ? text : most > 3 ? `${text.slice(0, most - 1)}…` : "";
}

class Picture {
  constructor(box, span) {
    this.box = box;
    this.canvas = box.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.hint = box.querySelector(".hint");
    this.span = Math.max(1, span);
    this.from = 0;
    this.to = this.span;
    this.pending = false;
    this.listen();
  }

  listen() {
    const { canvas } = this;
    new ResizeObserver(() => this.redraw()).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.theme = null; this.redraw(); });
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", () => { this.drag = null; });
    canvas.addEventListener("pointerleave", () => { this.hint.hidden = true; });
    canvas.addEventListener("keydown", (event) => { if (!event.ctrlKey && !event.altKey && !event.metaKey && this.key(event)) event.preventDefault(); });
    all("button[data-act]", this.box).forEach((button) => button.addEventListener("click", () => this.act(button.dataset.act)));
    for (const name of ["beforeprint", "afterprint"]) addEventListener(name, () => { this.theme = null; this.draw(); });
  }

  colours() {
    if (!this.theme) {
      const style = getComputedStyle(this.box);
      const [ink, quiet, line, soft, surface] = ["--ink", "--quiet", "--line", "--soft", "--surface"].map((name) => style.getPropertyValue(name).trim());
      this.theme = { ink, quiet, line, soft, surface };
    }
    return this.theme;
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.draw(); });
  }

  draw() {
    const began = performance.now();
    const ratio = devicePixelRatio || 1;
    this.width = this.canvas.parentElement.clientWidth;
    this.height = this.tall();
    const [wide, high] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== wide || this.canvas.height !== high) Object.assign(this.canvas, { width: wide, height: high });
    this.canvas.style.height = `${this.height}px`;
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    this.context.font = FONT;
    this.context.textBaseline = "middle";
    this.scale = this.width / (this.to - this.from);
    this.paint(this.context);
    this.canvas.dataset.tookMs = (performance.now() - began).toFixed(1);
  }

  show(from, to) {
    const length = clamp(to - from, Math.min(20, this.span), this.span);
    this.from = clamp((from + to - length) / 2, 0, this.span - length);
    this.to = this.from + length;
    this.redraw();
  }

  zoom(factor, at = (this.from + this.to) / 2) {
    const length = clamp((this.to - this.from) * factor, Math.min(20, this.span), this.span);
    const from = clamp(at - ((at - this.from) / (this.to - this.from)) * length, 0, this.span - length);
    this.show(from, from + length);
  }

  pan(part) {
    const shift = clamp(part * (this.to - this.from), -this.from, this.span - this.to);
    this.show(this.from + shift, this.to + shift);
  }

  act(name) {
    if (name === "in") this.zoom(0.5);
    else if (name === "out") this.zoom(2);
    else if (name === "all") this.show(0, this.span);
    else return false;
    return true;
  }

  key({ key }) {
    const keys = { "+": "in", "=": "in", "-": "out", "_": "out", "0": "all", Escape: "all" };
    if (key === "ArrowLeft") this.pan(-0.15);
    else if (key === "ArrowRight") this.pan(0.15);
    else return key in keys && this.act(keys[key]);
    return true;
  }

  wheel(event) { // at its widest, turning back scrolls the page as usual
    const across = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (!across && event.deltaY > 0 && this.to - this.from >= this.span) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    if (across) this.pan((event.deltaX * lines) / this.width);
    else this.zoom(Math.exp(clamp(event.deltaY * lines, -240, 240) / 300), this.from + event.offsetX / this.scale);
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    const scroll = this.canvas.parentElement;
    this.drag = { x: event.clientX, y: event.clientY, from: this.from, to: this.to, top: scroll.scrollTop, moved: false };
  }

  move(event) {
    const { drag } = this;
    if (!drag) return this.point(event);
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(dx, dy) < 4) return undefined;
    drag.moved = true;
    this.hint.hidden = true;
    const shift = clamp(-dx / this.scale, -drag.from, this.span - drag.to);
    this.canvas.parentElement.scrollTop = drag.top - dy;
    return this.show(drag.from + shift, drag.to + shift);
  }

  release(event) {
    const { drag } = this;
    this.drag = null;
    if (drag && !drag.moved) this.click(event);
  }

  point(event) {
    const lines = this.describe(event.offsetX, event.offsetY);
    if (!lines) { this.hint.hidden = true; return; }
    this.tell(lines);
    const box = this.box.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    this.hint.hidden = false;
    this.hint.style.left = `${clamp(x + 14, 0, Math.max(0, box.width - this.hint.offsetWidth - 4))}px`;
    this.hint.style.top = `${y + 18}px`;
  }

  tell([title, ...lines]) {
    this.hint.replaceChildren(make("strong", { textContent: title }), ...lines.map((line) => make("span", { textContent: line })));
  }

  text(context, words, x, y, width, colour) {
    const shown = fit(context, words, width);
    if (!shown) return;
    context.fillStyle = colour;
    context.fillText(shown, x, y);
  }
}

// The timeline.

const [HEAD, ROW, GROUP, FOOT] = [22, 17, 20, 4];
const WIDE = 56; // pixels of a gap that is worth saying how long it is

class Timeline extends Picture {
  constructor(box, content, columns) {
    super(box, content.span);
    Object.assign(this, { content, ...columns });
    this.offsets = [0];
    for (const length of content.lengths) this.offsets.push(this.offsets[this.offsets.length - 1] + length);
    this.lane = -1;
    this.event = -1;
    this.choice = box.querySelector("select");
    this.choice.addEventListener("change", () => { this.arrange(); this.redraw(); });
    this.arrange();
    this.show(...content.focus);
  }

  arrange() { // which lanes are shown, and where
    this.rows = [];
    this.groups = [];
    let y = HEAD;
    let last = null;
    this.content.lanes.forEach((lane, index) => {
      if (this.choice.value && this.choice.value !== lane.group) return;
      const group = `${lane.kind === "work" ? "GPU" : "CPU"} ${lane.group}`;
      if (group !== last) { this.groups.push({ y, text: lane.group }); y += GROUP; }
      last = group;
      this.rows.push({ y, lane, index });
      y += ROW;
    });
    this.bottom = y + FOOT;
  }

  tall() { return this.bottom; }

  act(name) {
    if (name !== "work") return super.act(name);
    this.show(...this.content.focus);
    return true;
  }

  first(index, time) { // the first event of a lane that ends after `time`
    let [low, high] = [this.offsets[index], this.offsets[index + 1]];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.end[middle] > time) high = middle; else low = middle + 1;
    }
    return low;
  }

  tone(lane, event) {
    if (lane.kind === "calls") return TONES.calls;
    const name = this.name[event];
    if (lane.kind === "ranges") return TONES.ranges[name % TONES.ranges.length];
    const tone = this.content.tones[name];
    return tone < -1 ? TONES.memory : tone < 0 ? TONES.other : WORK[tone];
  }

  paint(context) {
    const theme = this.colours();
    this.axis(context, theme);
    for (const group of this.groups) this.text(context, group.text, 0, group.y + GROUP / 2 + 2, this.width, theme.quiet);
    for (const row of this.rows) this.paintLane(context, row, theme);
    if (this.event >= 0) this.mark(context, theme);
  }

  axis(context, theme) {
    const step = [1, 2, 5, 10].map((times) => times * 10 ** Math.floor(Math.log10(((this.to - this.from) * 90) / this.width))).find((ns) => ns * this.scale >= 80) || 1;
    context.fillStyle = theme.line;
    for (let time = Math.ceil(this.from / step) * step; time <= this.to; time += step) {
      const x = (time - this.from) * this.scale;
      context.fillStyle = theme.line;
      context.fillRect(Math.round(x), 0, 1, this.height);
      context.fillStyle = theme.quiet;
      context.fillText(this.stamp(time, step), x + 4, HEAD / 2 - 2);
    }
  }

  stamp(ns, step) { // a time with as many digits as the step between ticks needs
    const [unit, scale] = [["s", 1e9], ["ms", 1e6], ["µs", 1e3], ["ns", 1]].find(([, size]) => step >= size / 10) || ["ns", 1];
    return `${(ns / scale).toLocaleString("en", { maximumFractionDigits: Math.max(0, Math.ceil(-Math.log10(step / scale))) })} ${unit}`;
  }

  paintLane(context, { y, lane, index }, theme) {
    const { start, end, idle, from, scale } = this;
    const [height, stop, to, gaps] = [ROW - 2, this.offsets[index + 1], this.to, lane.kind === "work"];
    context.fillStyle = theme.soft;
    context.fillRect(0, y, this.width, height);
    const narrow = new Map(); // colour and how full a pixel is -> pixels
    const broad = new Map(); // colour -> left edges and widths; one change of colour is dearer than many boxes
    const labels = [];
    let pixel = -1, full = 0, longest = -1, most = 0, before = -1;
    const flush = () => {
      if (pixel < 0) return;
      const key = this.tone(lane, longest) + Math.min(4, Math.ceil(full * 4));
      if (narrow.has(key)) narrow.get(key).push(pixel); else narrow.set(key, [pixel]);
      pixel = -1;
    };
    for (let event = this.first(index, from); event < stop && start[event] < to; event += 1) {
      const left = (start[event] - from) * scale;
      const wide = (end[event] - start[event]) * scale;
      if (wide < 1.5) {
        const at = Math.max(0, Math.floor(left));
        if (at !== pixel) { flush(); pixel = at; full = 0; most = -1; }
        full += Math.max(wide, 0.02) * (1 - idle[event] / 255);
        if (wide > most) { most = wide; longest = event; }
      } else {
        flush();
        const [x, right] = [Math.max(0, left), Math.min(this.width, left + wide)];
        const size = Math.max(1, right - x - (wide > 4 ? 1 : 0));
        const tone = this.tone(lane, event);
        if (idle[event]) { // a block of several: the paler, the less of it was busy
          context.globalAlpha = 1 - 0.7 * (idle[event] / 255);
          context.fillStyle = tone;
          context.fillRect(x, y, size, height);
          context.globalAlpha = 1;
        } else if (broad.has(tone)) broad.get(tone).push(x, size);
        else broad.set(tone, [x, size]);
        if (right - x > 28) labels.push([event, x, right - x]);
      }
      if (gaps && before >= 0 && (start[event] - before) * scale >= WIDE) this.gap(context, before, start[event], y, theme);
      before = end[event];
    }
    flush();
    for (const [key, pixels] of narrow) {
      context.fillStyle = key.slice(0, 7);
      context.globalAlpha = 0.25 + 0.1875 * Number(key.slice(7));
      for (const x of pixels) context.fillRect(x, y, 1, height);
    }
    context.globalAlpha = 1;
    for (const [tone, boxes] of broad) {
      context.fillStyle = tone;
      for (let place = 0; place < boxes.length; place += 2) context.fillRect(boxes[place], y, boxes[place + 1], height);
    }
    for (const [event, x, wide] of labels) this.text(context, this.title(event), x + 3, y + height / 2 + 0.5, wide - 6, INK);
  }

  gap(context, from, to, y, theme) { // how long nothing ran, where there is room to say it
    const [x, right] = [Math.max(0, (from - this.from) * this.scale), Math.min(this.width, (to - this.from) * this.scale)];
    context.strokeStyle = theme.quiet;
    context.globalAlpha = 0.6;
    context.setLineDash([2, 3]);
    context.beginPath();
    context.moveTo(x + 2, y + ROW - 5);
    context.lineTo(right - 2, y + ROW - 5);
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
    const words = `${seconds(to - from)} idle`;
    if (right - x > 6 * words.length + 8) this.text(context, words, (x + right) / 2 - 3 * words.length, y + ROW / 2 - 2, right - x, theme.quiet);
  }

  mark(context, theme) {
    const row = this.rows.find(({ index }) => index === this.lane);
    if (!row) return;
    context.strokeStyle = theme.ink;
    context.lineWidth = 2;
    const x = (this.start[this.event] - this.from) * this.scale;
    context.strokeRect(x, row.y - 1, Math.max(3, (this.end[this.event] - this.start[this.event]) * this.scale), ROW);
    context.lineWidth = 1;
  }

  title(event) {
    const others = this.others[event];
    return this.content.names[this.name[event]] + (others ? ` and ${whole(others)} more` : "");
  }

  lines(lane, event) {
    const lines = [this.title(event), `${seconds(this.end[event] - this.start[event])}, from ${seconds(this.start[event])}`];
    if (this.others[event]) lines[1] += `; ${whole(this.others[event] + 1)} events as one block, busy ${Math.round((100 * (255 - this.idle[event])) / 255)} % of it`;
    if (this.owner[event]) lines.push(`in ${this.content.names[this.owner[event]]}`);
    return [...lines, `${lane.group}, ${lane.title}`];
  }

  at(x, y) {
    const row = this.rows.find((one) => y >= one.y && y < one.y + ROW);
    if (!row) return null;
    const time = this.from + x / this.scale;
    const slack = 3 / this.scale;
    const event = this.first(row.index, time - slack);
    return event < this.offsets[row.index + 1] && this.start[event] <= time + slack ? { row, event } : null;
  }

  describe(x, y) {
    const found = this.at(x, y);
    return found && this.lines(found.row.lane, found.event);
  }

  click(event) {
    const found = this.at(event.offsetX, event.offsetY);
    if (!found) { this.event = -1; this.redraw(); return; }
    const again = this.event === found.event && this.lane === found.row.index;
    this.choose(found.row.index, found.event);
    if (again) this.near(found.event);
  }

  near(event) { // a click on what is chosen: let it fill half of the picture
    const length = Math.max(this.end[event] - this.start[event], 10);
    this.show(this.start[event] - length / 2, this.end[event] + length / 2);
  }

  choose(lane, event) {
    Object.assign(this, { lane, event });
    said.textContent = this.lines(this.content.lanes[lane], event).join(", ");
    if (this.end[event] < this.from || this.start[event] > this.to) {
      const half = (this.to - this.from) / 2;
      this.show(this.start[event] - half, this.start[event] + half);
    }
    this.redraw();
  }

  key(event) {
    if (super.key(event)) return true;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") return this.step(event.key === "ArrowDown" ? 1 : -1);
    if (event.key === "n" || event.key === "p") return this.next(event.key === "n" ? 1 : -1);
    if (event.key === "Enter" && this.event >= 0) { this.near(this.event); return true; }
    return false;
  }

  step(by) { // the chosen event moves to the lane above or below
    const place = this.rows.findIndex(({ index }) => index === this.lane);
    const row = this.rows[clamp(place + by, 0, this.rows.length - 1)];
    const time = this.event >= 0 ? this.start[this.event] : (this.from + this.to) / 2;
    this.choose(row.index, Math.min(this.first(row.index, time), this.offsets[row.index + 1] - 1));
    return true;
  }

  next(by) {
    if (this.event < 0) return this.step(1);
    this.choose(this.lane, clamp(this.event + by, this.offsets[this.lane], this.offsets[this.lane + 1] - 1));
    return true;
  }
}

function decode(content, bytes) { // the other half of reports/figures/timeline.py
  const count = content.lengths.reduce((sum, length) => sum + length, 0);
  let offset = 0;
  const read = (planes, into) => {
    for (let plane = 0, weight = 1; plane < planes; plane += 1, weight *= 256) {
      for (let index = 0; index < count; index += 1) into[index] += weight * bytes[offset + index];
      offset += count;
    }
    return into;
  };
  const columns = {};
  const types = { gap: Float64Array, length: Float64Array, name: Uint16Array, owner: Uint16Array, others: Uint32Array, idle: Uint8Array };
  for (const [name, planes] of Object.entries(content.columns)) columns[name] = read(planes, new types[name](count));
  const { gap: start, length: end } = columns; // reused: differences become times
  let event = 0;
  for (const length of content.lengths) {
    let before = 0;
    for (const stop = event + length; event < stop; event += 1) {
      const folded = start[event];
      start[event] = before + (folded % 2 ? -(folded + 1) / 2 : folded / 2);
      before = end[event] += start[event];
    }
  }
  return { start, end, name: columns.name, owner: columns.owner, others: columns.others, idle: columns.idle };
}

async function drawTimeline(box) {
  const began = performance.now();
  const content = data(box.dataset.content);
  const timeline = new Timeline(box, content, decode(content, new Uint8Array(await inflated(byId(box.dataset.columns)).arrayBuffer())));
  timeline.draw();
  box.dataset.readyMs = (performance.now() - began).toFixed(0);
  box.querySelector(".wait").remove();
  box.picture = timeline;
}

// The icicle: boxes of GPU time under the ranges that launched it.

const BOX = 21;

class Icicle extends Picture {
  constructor(box, content) {
    super(box, content.total);
    this.content = content;
    this.domains = [...new Set(content.domain)];
    this.kernelTones = new Map(content.tones.map((name, rank) => [name, rank]));
    this.deepest = content.depth.reduce((most, depth) => Math.max(most, depth), 0);
    this.chosen = -1;
  }

  tall() { return (this.deepest + 1) * BOX; }

  tone(index) {
    const { kind, domain, name } = this.content;
    if (kind[index] === "kernel") return WORK[this.kernelTones.get(name[index])] ?? TONES.other;
    return kind[index] === "rest" ? TONES.other : TONES.ranges[this.domains.indexOf(domain[index]) % TONES.ranges.length];
  }

  paint(context) {
    const { start, length, depth, name } = this.content;
    for (let index = 0; index < start.length; index += 1) {
      const left = (start[index] - this.from) * this.scale;
      const right = left + length[index] * this.scale;
      if (right < 0 || left > this.width || right - left < 0.3) continue;
      const [x, wide, y] = [Math.max(0, left), Math.min(this.width, right) - Math.max(0, left), depth[index] * BOX];
      context.fillStyle = this.tone(index);
      context.fillRect(x, y, Math.max(0.5, wide - (wide > 3 ? 1 : 0)), BOX - 1);
      if (wide > 28) {
        const share = wide > 150 ? `  ${this.share(index)}` : "";
        this.text(context, fit(context, name[index], wide - 8 - 6 * share.length) + share, x + 4, y + BOX / 2, wide - 6, INK);
      }
      if (index === this.chosen) {
        context.strokeStyle = this.colours().ink;
        context.lineWidth = 2;
        context.strokeRect(x + 1, y + 1, Math.max(2, wide - 3), BOX - 3);
      }
    }
  }

  share(index) { return `${Number(((100 * this.content.length[index]) / this.span).toPrecision(3))} %`; }

  lines(index) {
    const { length, name, kind, domain, kernels, parent } = this.content;
    const path = [];
    for (let above = parent[index]; above >= 0; above = parent[above]) path.unshift(name[above]);
    const what = kind[index] === "range" ? `range in ${domain[index] ? `domain ${domain[index]}` : "the default domain"}` : kind[index] === "kernel" ? "kernel" : "";
    return [name[index], `${seconds(length[index])} of GPU time, ${this.share(index)} of all, ${whole(kernels[index])} kernel launches`,
      ...(what ? [what] : []), ...(path.length ? [`under ${path.join(" › ")}`] : [])];
  }

  at(x, y) {
    const { start, length, depth } = this.content;
    const [time, level] = [this.from + x / this.scale, Math.floor(y / BOX)];
    return start.findIndex((left, index) => depth[index] === level && left <= time && time < left + length[index]);
  }

  describe(x, y) {
    const index = this.at(x, y);
    return index < 0 ? null : this.lines(index);
  }

  click(event) {
    const index = this.at(event.offsetX, event.offsetY);
    if (index < 0) return;
    this.choose(index);
    this.show(this.content.start[index], this.content.start[index] + this.content.length[index]);
  }

  choose(index) {
    this.chosen = index;
    said.textContent = this.lines(index).join(", ");
    this.redraw();
  }

  key(event) {
    const { parent, depth, start, length } = this.content;
    const now = this.chosen;
    if (event.key === "Enter" && now >= 0) { this.show(start[now], start[now] + length[now]); return true; }
    const step = { ArrowDown: (i) => parent[i] === now, ArrowUp: (i) => i === parent[now] }[event.key];
    if (!step && !["ArrowLeft", "ArrowRight"].includes(event.key)) return super.key(event);
    if (now < 0) { this.choose(0); return true; }
    const siblings = start.map((_, i) => i).filter((i) => depth[i] === depth[now]).sort((a, b) => start[a] - start[b]);
    const found = step ? start.findIndex((_, i) => step(i)) : siblings[siblings.indexOf(now) + (event.key === "ArrowRight" ? 1 : -1)];
    if (found >= 0) this.choose(found);
    return true;
  }
}

// Everything once; tables in closed parts when they are opened.

function drawIcicle(box) {
  box.picture = new Icicle(box, data(box.dataset.icicle));
  box.picture.draw();
  box.querySelector(".wait").remove();
}

async function enliven(root) { // gives whether all pictures were drawn
  for (const box of all("[data-sheet]", root)) {
    const closed = box.closest("details:not([open])");
    if (closed) closed.addEventListener("toggle", () => new Sheet(box), { once: true });
    else new Sheet(box);
  }
  try {
    await Promise.all([...all("[data-icicle]", root).map(async (box) => drawIcicle(box)), ...all("[data-columns]", root).map(drawTimeline)]);
    return "yes";
  } catch (error) {
    all(".picture .wait", root).forEach((text) => { text.textContent = `This picture could not be drawn (${error.message}); its numbers are in the tables.`; });
    return "no";
  }
}

// Parts that are elements only once they are asked for, one at a time; one that was shown before comes back as it was.
const stage = byId("stage");
const built = new Map();

function written(id) { // no name can look like an element: all of them are escaped
  const text = byId("parts").textContent;
  const from = text.indexOf(`<article id="${id}">`);
  return text.slice(from, text.indexOf("</article>", from));
}

async function open(id) {
  const fresh = !built.has(id);
  if (fresh) built.set(id, elements(written(id)).firstElementChild);
  const part = built.get(id);
  stage.replaceChildren(part);
  const heading = part.querySelector(".headline");
  heading.tabIndex = -1;
  heading.focus();
  part.scrollIntoView();
  if (!fresh) { dispatchEvent(new Event("resize")); return; } // the window may have changed meanwhile
  const drawn = await enliven(part);
  document.dispatchEvent(new CustomEvent("figures", { detail: part }));
  part.dataset.pictures = drawn;
}

function openNamed() { // the part that the address names
  const id = location.hash.slice(1);
  if (id.startsWith("part-") && byId("parts")?.textContent.includes(`<article id="${id}">`)) open(id);
}

addEventListener("hashchange", openNamed);
openNamed();
enliven(document).then((drawn) => document.documentElement.setAttribute("data-pictures", drawn));
