// Line charts of a run's numbers. Drag to zoom, double-click to zoom out, click a name to hide it.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const svgns = "http://www.w3.org/2000/svg";
const state = { x: "step" };
const charts = [];
const axes = { step: "step", tokens: "tokens", seconds: "time" };

function make(parent, tag, attributes, text) {
  const svg = parent.namespaceURI === svgns || tag === "svg";
  const node = svg ? document.createElementNS(svgns, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function short(value) {
  const size = Math.abs(value);
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= limit) return +(value / (unit === "k" ? 1e3 : limit)).toPrecision(4) + unit;
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(+value.toPrecision(5));
}

function clock(seconds) {
  if (seconds < 120) return +seconds.toPrecision(3) + "s";
  return seconds < 7200 ? +(seconds / 60).toPrecision(3) + "m" : +(seconds / 3600).toPrecision(3) + "h";
}

const shown_x = value => (state.x === "seconds" ? clock(value) : short(value));

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(n => n * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function log_ticks(low, high) { // low and high are exponents of 10
  const found = [], several = high - low < 2 ? [1, 2, 5] : [1];
  for (let e = Math.floor(low); e <= high; e++)
    for (const n of several) {
      const at = e + Math.log10(n);
      if (at >= low && at <= high) found.push(at);
    }
  return found.length > 2 ? found : ticks(10 ** low, 10 ** high, 3).filter(t => t > 0).map(Math.log10);
}

class Chart {
  constructor(parent, spec) {
    this.spec = spec;
    this.hidden = new Set();
    this.log = !!spec.log;
    const head = make(parent, "div", { class: "head" });
    make(head, "b", {}, spec.title);
    if (spec.choice) {
      const select = make(head, "select", { "aria-label": "value" });
      for (const name of spec.choice) make(select, "option", {}, name);
      select.onchange = () => { this.choose(select.value); this.reset(); };
      this.choose(spec.choice[0]);
    }
    const label = make(head, "label");
    const box = make(label, "input", { type: "checkbox" });
    box.checked = this.log;
    box.onchange = () => { this.log = box.checked; this.draw(); };
    label.append(" logarithmic");
    this.legend = make(parent, "div", { class: "legend" });
    this.svg = make(parent, "svg", { role: "img", "aria-label": spec.title });
    this.tip = make(parent, "div", { class: "tip" });
    this.svg.onpointerdown = e => this.press(e);
    this.svg.onpointermove = e => this.move(e);
    this.svg.onpointerup = e => this.release(e);
    this.svg.onpointerleave = () => { this.tip.hidden = true; };
    this.svg.ondblclick = () => this.reset();
    charts.push(this);
  }

  choose(name) { this.spec.lines = data.runs.flatMap((run, i) =>
    run.series[name] ? [{ run: i, metric: name, label: run.name }] : []); }

  reset() { this.range = null; this.draw(); }

  points(line) {
    const series = data.runs[line.run].series[line.metric];
    const per_step = data.runs[line.run].tokens_per_step;
    const xs = state.x === "seconds" ? series.seconds : series.step;
    const scale = state.x === "tokens" ? per_step || NaN : 1;
    return xs.map((x, i) => [x * scale, series.value[i]])
      .filter(([x, y]) => isFinite(x) && x !== null && y !== null && (!this.log || y > 0));
  }

  draw() {
    this.svg.textContent = this.legend.textContent = "";
    this.tip.hidden = true;
    const width = this.svg.clientWidth || 600, height = 240, left = 58, bottom = 24, top = 8;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.all = this.spec.lines.map(line => ({ line, points: this.points(line) }));
    for (const { line } of this.all) {
      const key = make(this.legend, "button", { type: "button" });
      make(key, "span", { class: "key", style: `background:${this.colour(line)}` });
      key.append(line.label);
      key.classList.toggle("off", this.hidden.has(line.label));
      key.onclick = () => {
        if (!this.hidden.delete(line.label)) this.hidden.add(line.label);
        this.draw();
      };
    }
    this.seen = this.all.filter(({ line }) => !this.hidden.has(line.label));
    const xs = this.seen.flatMap(s => s.points.map(p => p[0]));
    if (!xs.length) {
      make(this.svg, "text", { x: left, y: 40, class: "tick" }, "nothing to draw");
      this.to = null;
      return;
    }
    let [low, high] = this.range || [Math.min(...xs), Math.max(...xs)];
    if (low === high) { low -= 0.5; high += 0.5; }
    const value = y => (this.log ? Math.log10(y) : y);
    const within = this.seen.flatMap(s => s.points.filter(p => p[0] >= low && p[0] <= high));
    const ys = (within.length ? within : this.seen.flatMap(s => s.points)).map(p => value(p[1]));
    let floor = Math.min(...ys), ceiling = Math.max(...ys);
    const room = (ceiling - floor) * 0.05 || Math.abs(floor) * 0.05 || 0.5;
    floor -= room; ceiling += room;
    if (!this.log && floor < 0 && Math.min(...ys) >= 0) floor = 0;
    const x = v => left + (v - low) / (high - low) * (width - left - 10);
    const y = v => top + (ceiling - value(v)) / (ceiling - floor) * (height - bottom - top);
    this.to = { x, y, low, high, left, width, height, bottom, top };
    for (const t of this.log ? log_ticks(floor, ceiling) : ticks(floor, ceiling, 4)) {
      const at = y(this.log ? 10 ** t : t);
      make(this.svg, "line", { x1: left, x2: width - 10, y1: at, y2: at, class: "grid" });
      make(this.svg, "text", { x: left - 6, y: at + 4, class: "tick right" }, short(this.log ? 10 ** t : t));
    }
    for (const t of ticks(low, high, Math.max(2, width / 130)))
      make(this.svg, "text", { x: x(t), y: height - 6, class: "tick middle" }, shown_x(t));
    const clip = "clip" + charts.indexOf(this);
    const path = make(make(this.svg, "clipPath", { id: clip }), "rect",
      { x: left, y: 0, width: width - left - 10, height: height - bottom });
    for (const { line, points } of this.seen) {
      const group = make(this.svg, "g", { "clip-path": `url(#${clip})`, stroke: this.colour(line) });
      const d = points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`);
      make(group, "path", { d: d.join(""), class: line.dots ? "line dotted" : "line" });
      if (line.dots || points.length < 2)
        for (const p of points)
          make(group, "circle", { cx: x(p[0]), cy: y(p[1]), r: 3, fill: this.colour(line) });
    }
    this.mark = make(this.svg, "line", { y1: top, y2: height - bottom, class: "mark", x1: -9, x2: -9 });
    this.band = make(this.svg, "rect", { y: top, height: height - bottom - top, class: "band", width: 0 });
  }

  colour(line) { return data.colours[(line.colour ?? line.run) % data.colours.length]; }

  at(event) { // the x value under the pointer
    const { low, high, left, width } = this.to, box = this.svg.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * width;
    return Math.min(high, Math.max(low, low + (place - left) / (width - left - 10) * (high - low)));
  }

  press(event) { if (this.to) { this.from = this.at(event); this.svg.setPointerCapture(event.pointerId); } }

  release(event) {
    if (!this.to || this.from === undefined) return;
    const [a, b] = [this.from, this.at(event)].sort((p, q) => p - q);
    this.from = undefined;
    if (b - a > (this.to.high - this.to.low) / 100) this.range = [a, b];
    this.draw();
  }

  move(event) {
    if (!this.to) return;
    const here = this.at(event), x = this.to.x(here);
    this.mark.setAttribute("x1", x);
    this.mark.setAttribute("x2", x);
    if (this.from !== undefined) {
      const other = this.to.x(this.from);
      this.band.setAttribute("x", Math.min(x, other));
      this.band.setAttribute("width", Math.abs(x - other));
    }
    this.tip.textContent = "";
    make(this.tip, "div", { class: "soft" }, `${axes[state.x]} ${shown_x(here)}`);
    for (const { line, points } of this.seen) {
      if (!points.length) continue;
      const near = points.reduce((a, b) => (Math.abs(b[0] - here) < Math.abs(a[0] - here) ? b : a));
      const row = make(this.tip, "div");
      make(row, "span", { class: "key", style: `background:${this.colour(line)}` });
      row.append(`${line.label}: ${short(near[1])}`);
    }
    this.tip.hidden = false;
    const right = x > this.to.width / 2;
    this.tip.style.left = right ? "" : `${x + 14}px`;
    this.tip.style.right = right ? `${this.svg.clientWidth - x + 14}px` : "";
  }
}

for (const place of document.querySelectorAll("[data-chart]"))
  new Chart(place, data.charts[place.dataset.chart]);
for (const input of document.querySelectorAll("input[name=x]"))
  input.onchange = () => { state.x = input.value; charts.forEach(chart => chart.reset()); };
const draw_all = () => charts.forEach(chart => chart.draw());
addEventListener("resize", draw_all);
for (const folded of document.querySelectorAll("details")) folded.ontoggle = draw_all;
draw_all();
