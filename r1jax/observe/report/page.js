"use strict";
// Draws the page from the JSON beside it. What a model wrote only ever becomes text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const COLOURS = 7, SHOWN = 20, HEIGHT = 210;
const $ = (id) => document.getElementById(id);
let data = JSON.parse($("data").textContent);
const state = { off: new Set(), filter: {}, shown: SHOWN, heat: {}, open: new Set() };

// -- Elements

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const heading = (id, text) => el("h2", { id: "h-" + id }, text);

function scroller(label, table) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
}

function table(caption, note, head, rows, sums = 0) {
  const cells = rows.map((row) => row.map((cell, j) => (j === 0 ? el("th", { scope: "row" }, cell)
    : cell instanceof Node && cell.tagName === "TD" ? cell
      : el("td", { class: typeof cell === "string" && cell.length > 22 ? "wide" : null }, cell === null || cell === undefined ? "" : cell))));
  const isText = (j) => cells.some((row) => /wide|text|bars/.test(row[j].className));
  return scroller(caption, el("table", {}, el("caption", {}, caption, note && el("small", {}, note)),
    el("thead", {}, el("tr", {}, head.map((h, j) => el("th", { scope: "col", class: j && isText(j) ? "text" : null }, h)))),
    el("tbody", {}, cells.map((row, i) => el("tr", { class: i >= rows.length - sums ? "sum" : null }, row)))));
}

function folded(name, title, ...children) {
  return el("details", { open: state.open.has(name), ontoggle: (e) => (e.target.open ? state.open.add(name) : state.open.delete(name)) },
    el("summary", {}, title), ...children);
}

// -- Numbers

function fmt(value, unit = "") {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (unit === "bytes") {
    const names = ["B", "KiB", "MiB", "GiB", "TiB"];
    let i = 0;
    while (Math.abs(value) >= 1024 && i < names.length - 1) { value /= 1024; i++; }
    return `${value.toFixed(i && value < 100 ? 1 : 0)} ${names[i]}`;
  }
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e7)) return value.toExponential(1).replace("e+", "e");
  if (size >= 1000 || Number.isInteger(value)) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return Number(value.toPrecision(3)).toString();
}
const hours = (h) => (h < 1 ? Number(h.toPrecision(2)).toString() : fmt(h));
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const count = (n) => n.toLocaleString("en");

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step / 1e6 ? 0 : v);
  return found;
}

// The rule of the PNGs: shares from 0 to 1, else from the least to the most.
function range(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  if ((low >= 0 && high >= 0.1 && high <= 1) || (low === 0 && high === 0)) return [0, 1];
  if (low === high) { const half = Math.abs(low) / 2 || 1; return [low - half, high + half]; }
  if (low > 0 && low < high / 2) low = 0;
  return [low, high];
}

// -- Charts

const marker = (i, x, y, r = 3.4) => {
  const path = [
    `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`, `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    `M${x},${y - r * 1.2}l${r * 1.2},${r * 2.1}h${-r * 2.4}z`, `M${x},${y - r * 1.3}l${r * 1.3},${r * 1.3}l${-r * 1.3},${r * 1.3}l${-r * 1.3},${-r * 1.3}z`,
    `M${x - r},${y - r}l${2 * r},${2 * r}m0,${-2 * r}l${-2 * r},${2 * r}`,
  ][i % 5];
  const colour = `var(--s${i % COLOURS})`;
  return svg("path", { d: path, style: `fill:${i % 5 === 4 ? "none" : colour};stroke:${colour};stroke-width:${i % 5 === 4 ? 2 : 1}` });
};
const stroke = (i, width = 2) => `fill:none;stroke:var(--s${i % COLOURS});stroke-width:${width};stroke-dasharray:${DASHES[Math.floor(i / COLOURS) % 4] || DASHES[i % 4] || "none"};stroke-linejoin:round`;

function running(values, window) {
  const before = (window - 1) >> 1, after = (window >> 1) + 1, sums = [0];
  for (const v of values) sums.push(sums[sums.length - 1] + v);
  return values.map((_, i) => {
    const a = Math.max(0, i - before), b = Math.min(values.length, i + after);
    return (sums[b] - sums[a]) / (b - a);
  });
}

function chart(title, unit, note, series) {
  const drawn = series.filter((s) => s.curve.x.length);
  const lost = series.reduce((n, s) => n + s.curve.bad, 0);
  const label = `${title}${unit ? `, ${unit}` : ""}, over steps. ` + drawn.map((s) =>
    `${s.name}: ${fmt(s.curve.y[0], unit)} at step ${fmt(s.curve.x[0])}, ${fmt(s.curve.y.at(-1), unit)} at step ${fmt(s.curve.x.at(-1))}`).join("; ") + ". Arrow keys read the values.";
  const plot = svg("svg", { class: "plot", role: "img", tabindex: "0", "aria-label": label });
  const figure = el("figure", {},
    el("figcaption", {}, title, unit && el("span", { class: "unit" }, ` (${unit})`)),
    note && el("p", { class: "hint" }, note),
    series.length > 1 || data.tracks.length > 1 ? el("ul", { class: "legend" }, series.map((s) =>
      el("li", {}, svg("svg", { width: 30, height: 12, "aria-hidden": "true" }, svg("path", { d: "M1,6H29", style: stroke(s.index) }), marker(s.index, 15, 6)), s.name))) : "",
    plot,
    lost ? el("p", { class: "lost" }, `${count(lost)} value${lost > 1 ? "s were" : " was"} not finite and left out`) : "");
  plot.draw = () => draw(plot, drawn, unit);
  watch(plot);
  return figure;
}

function draw(plot, series, unit) {
  const width = Math.max(200, plot.clientWidth);
  plot.replaceChildren();
  plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  if (!series.length) {
    plot.append(svg("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no values yet"));
    return;
  }
  const [low, high] = range(series.flatMap((s) => [...s.curve.y, ...(s.curve.lo || []), ...(s.curve.hi || [])]));
  const pad = (high - low) * 0.03;
  const marks = ticks(low, high, 5), words = marks.map((v) => fmt(v, unit));
  const left = 14 + Math.max(...words.map((w) => w.length)) * 6.6, right = width - 10, top = 8, bottom = HEIGHT - 34;
  let [first, last] = [Infinity, -Infinity];
  for (const s of series) { first = Math.min(first, s.curve.x[0]); last = Math.max(last, s.curve.x.at(-1)); }
  if (first === last) { first -= 0.5; last += 0.5; }
  const px = (x) => left + ((x - first) / (last - first)) * (right - left);
  const py = (y) => bottom - ((y - low + pad) / (high - low + 2 * pad)) * (bottom - top);
  const path = (xs, ys) => "M" + xs.map((x, i) => `${px(x).toFixed(1)},${py(ys[i]).toFixed(1)}`).join("L");
  marks.forEach((v, i) => plot.append(
    svg("path", { class: "rule", d: `M${left},${py(v)}H${right}` }), svg("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, words[i])));
  for (const v of ticks(first, last, Math.max(2, Math.floor((right - left) / 80)))) {
    if (Number.isInteger(v)) plot.append(svg("text", { x: px(v), y: bottom + 15, "text-anchor": "middle" }, fmt(v)));
  }
  plot.append(svg("path", { class: "axis", d: `M${left},${bottom}H${right}` }),
    svg("text", { x: (left + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step"));
  for (const s of series) {
    const { x, y, lo, hi } = s.curve;
    if (lo) plot.append(svg("path", { d: `${path(x, hi)}L${path([...x].reverse(), [...lo].reverse()).slice(1)}z`, style: `fill:var(--s${s.index % COLOURS});opacity:.17` }));
    const smooth = y.length > 40 ? running(y, Math.max(3, Math.floor(y.length / 20))) : y;
    if (smooth !== y) plot.append(svg("path", { d: path(x, y), style: stroke(s.index, 1) + ";stroke-dasharray:none;opacity:.35" }));
    plot.append(svg("path", { d: path(x, smooth), style: stroke(s.index, 2.2) }));
    const apart = (px(x.at(-1)) - px(x[0])) / Math.max(1, y.length - 1);
    const every = y.length > 40 ? Math.floor(y.length / 5) : Math.max(1, Math.ceil(12 / Math.max(apart, 0.1))), begin = y.length > 40 ? (s.index * 7 + 3) % every : 0;
    for (let i = begin; i < y.length; i += every) plot.append(marker(s.index, px(x[i]), py(smooth[i]), y.length > 20 ? 2.8 : 3.4));
  }
  const cursor = svg("path", { class: "cursor", d: "" });
  plot.append(cursor);
  const steps = [...new Set(series.flatMap((s) => s.curve.x))].sort((a, b) => a - b);
  const show = (x, where) => {
    cursor.setAttribute("d", `M${px(x)},${top}V${bottom}`);
    tip(where, el("b", {}, `step ${fmt(x)}`), series.map((s) => {
      const i = nearest(s.curve.x, x), spread = s.curve.lo ? ` (${fmt(s.curve.lo[i], unit)} to ${fmt(s.curve.hi[i], unit)})` : "";
      return el("div", {}, el("span", {}, s.name), el("b", {}, fmt(s.curve.y[i], unit) + spread));
    }));
  };
  const hide = () => { cursor.setAttribute("d", ""); tip(null); };
  let at = steps.length - 1;
  plot.onpointermove = (e) => {
    const box = plot.getBoundingClientRect(), x = first + (((e.clientX - box.left) * width) / box.width - left) / (right - left) * (last - first);
    at = nearest(steps, x);
    show(steps[at], { x: e.clientX, y: e.clientY });
  };
  plot.onpointerleave = plot.onblur = hide;
  plot.onkeydown = (e) => {
    const jump = Math.max(1, Math.round(steps.length / 20)) * (e.shiftKey ? 1 : 0) || 1;
    const to = { ArrowLeft: at - jump, ArrowRight: at + jump, Home: 0, End: steps.length - 1 }[e.key];
    if (e.key === "Escape") return hide();
    if (to === undefined) return;
    e.preventDefault();
    at = Math.min(steps.length - 1, Math.max(0, to));
    const box = plot.getBoundingClientRect();
    show(steps[at], { x: box.left + (px(steps[at]) / width) * box.width, y: box.top + 40 });
  };
}

function nearest(sorted, x) {
  let a = 0, b = sorted.length - 1;
  while (b - a > 1) { const m = (a + b) >> 1; if (sorted[m] < x) a = m; else b = m; }
  return x - sorted[a] <= sorted[b] - x ? a : b;
}

function tip(where, ...children) {
  const box = $("tip");
  box.hidden = !where;
  if (!where) return;
  box.replaceChildren(...children.flat());
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(6, Math.min(where.x + 14, innerWidth - width - 6))}px`;
  box.style.top = `${where.y + 16 + height > innerHeight ? Math.max(6, where.y - height - 12) : where.y + 16}px`;
}

// A chart is drawn when it comes near the window, and again when its width changes.
const near = new IntersectionObserver((entries) => entries.forEach((e) => {
  if (e.isIntersecting && !e.target.drawn) { e.target.drawn = e.target.clientWidth; e.target.draw(); }
}), { rootMargin: "600px" });
const wide = new ResizeObserver((entries) => entries.forEach((e) => {
  if (e.target.drawn && e.target.clientWidth && e.target.clientWidth !== e.target.drawn) { e.target.drawn = e.target.clientWidth; e.target.draw(); }
}));
function watch(plot) { near.observe(plot); wide.observe(plot); }
addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach((p) => p.draw()));

// -- Overview

const kinds = { grpo: "GRPO", sft: "SFT", rejection_sampling: "rejection sampling" };
const kindOf = (track) => kinds[track.kind] || track.kind;
const tone = { finished: "good", running: "run", guard: "bad", failed: "bad", killed: "bad" };
const stepOf = (t) => (t.steps ? `${count(t.step)} of ${count(t.steps)}` : count(t.step));
const label = (key) => ({ "reward/total": "Training reward", "length/mean": "Tokens per answer", "length/truncated": "Answers cut off", kl: "KL to the reference", entropy: "Entropy", loss: "Loss", "eval/total": "Held-out reward", "eval/length": "Held-out length", "eval/truncated": "Held-out cut off", "eval/entropy": "Held-out entropy", "eval/left_out": "Held-out, left out" })[key]
  || key.replace(/^eval\//, "Held-out ");

function overview() {
  const one = data.runs.length === 1;
  const tiles = one ? tilesOf() : [];
  return [
    el("p", { class: "eyebrow" }, one ? (data.runs[0].pipeline ? "r1jax pipeline" : "r1jax run") : `r1jax, ${data.runs.length} runs`),
    el("h1", { id: "h-overview" }, data.title),
    data.runs.map((run) => [
      el("div", { class: "chips" }, el("span", { class: `chip ${tone[run.state] || ""}` }, run.says), !one && el("strong", {}, run.name),
        el("span", { class: "chip" }, run.path), el("span", { class: "chip" }, `last change ${run.changed.slice(0, 16).replace("T", " ")}`)),
      run.why && el("p", { class: "notice" }, run.why)]),
    tiles.length ? el("div", { class: "tiles" }, tiles.map(([what, value, more]) =>
      el("div", { class: "tile" }, el("div", { class: "what" }, what), el("div", { class: "value" }, value), el("div", { class: "more" }, more)))) : "",
    stageTable(),
    folded("paper", "The same table in R1's paper", table("DeepSeek-R1, stage by stage", "Nature 2025, table 2: pass@1 in percent, but where said. Dev1: cold-start SFT; Dev2: RL stage 1; Dev3: SFT stage 2.",
      ["Benchmark", ...data.published.stages], Object.entries(data.published.table).map(([name, row]) => [name, ...row.map(String)])))];
}

function tilesOf() {
  const found = [], solved = data.tracks.filter((t) => t.edges["eval/pass@1"]), rewarded = data.tracks.filter((t) => t.edges["reward/total"]);
  if (solved.length) {
    const [from, to] = [solved[0].edges["eval/pass@1"][0], solved.at(-1).edges["eval/pass@1"][1]];
    found.push(["Held-out pass@1", fmt(to), `from ${fmt(from)}${to === from ? "" : `, ${to > from ? "+" : "−"}${fmt(Math.abs(to - from))}`}`]);
  }
  if (rewarded.length) found.push(["Training reward", fmt(rewarded.at(-1).edges["reward/total"][1]), `from ${fmt(rewarded.at(-1).edges["reward/total"][0])}`]);
  const last = data.tracks.at(-1);
  if (last) found.push([data.runs[0].pipeline ? `Step of ${last.stage}` : "Step", count(last.step), last.steps ? `of ${count(last.steps)}` : last.says]);
  const total = data.cost[0].total, stages = Object.values(data.cost[0].stages);
  const sum = (key) => stages.reduce((n, s) => n + (s[key] || 0), 0);
  if (total.device_hours) found.push(["Device-hours", hours(total.device_hours), total.dollars ? `$${total.dollars.toFixed(2)}` : total.redone_hours ? `${percent(total.redone_hours / total.device_hours)} redone` : "all stages"]);
  if (sum("tokens_sampled")) found.push(["Tokens sampled", fmt(sum("tokens_sampled")), `${fmt(sum("tokens_trained"))} trained on`]);
  if (data.samples.total) found.push(["Samples kept", count(data.samples.total), `${count(data.samples.rows.length)} on this page`]);
  return found;
}

function stageTable() {
  if (!data.tracks.length) return el("p", { class: "lead" }, "Nothing has begun yet.");
  const keys = [...new Set(data.tracks.flatMap((t) => Object.keys(t.edges)))].filter((k) => k !== "eval/left_out" || data.tracks.some((t) => t.edges[k] && t.edges[k][1]));
  const rank = (k) => (k === "eval/pass@1" ? "0" : k.startsWith("eval/pass@") ? "1" + k.slice(10).padStart(6, "0") : k === "eval/greedy" ? "2" : k.startsWith("eval/") ? "3" + k : "4" + k);
  keys.sort((a, b) => (rank(a) < rank(b) ? -1 : 1));
  const facts = [["Kind", kindOf], ["Begins with", (t) => t.init.split("/").pop()], ["State", (t) => t.says], ["Step", stepOf]];
  return table("Stage by stage", "The first value and the last one. R1's own table is folded below.", ["", ...data.tracks.map((t) => t.label)], [
    ...facts.map(([name, f]) => [name, ...data.tracks.map((t) => f(t))]),
    ...keys.map((key) => [label(key), ...data.tracks.map((t) => {
      const edge = t.edges[key];
      return edge ? el("td", {}, edge[0] === edge[1] ? "" : el("small", {}, `${fmt(edge[0])} → `), fmt(edge[1])) : "";
    })])]);
}

// -- Curves

const short = (key) => key.replace(/^(reward|eval|reflection|time|source|length|expert|clip|loss|sampler)\//, "");

function curves() {
  near.disconnect();
  wide.disconnect();
  if (!data.groups.length) return [];
  const on = data.tracks.map((_, i) => i).filter((i) => !state.off.has(data.tracks[i].label));
  const picker = data.tracks.length > 1 ? el("fieldset", { class: "tracks" }, el("legend", {}, "Shown:"), data.tracks.map((t, i) =>
    el("label", {}, el("input", { type: "checkbox", checked: on.includes(i), onchange: (e) => {
      e.target.checked ? state.off.delete(t.label) : state.off.add(t.label);
      show("curves");
      [...$("curves").querySelectorAll(".tracks input")][i].focus();
    } }), svg("svg", { width: 26, height: 12, "aria-hidden": "true" }, svg("path", { d: "M1,6H25", style: stroke(i) }), marker(i, 13, 6)), t.label))) : "";
  const groups = data.groups.map((group) => {
    const figures = group.panels.flatMap((panel) => {
      const has = (i, key) => data.curves[i][key], owners = on.filter((i) => panel.keys.some((key) => has(i, key)));
      if (owners.length === 1) {
        const [i] = owners, keys = panel.keys.filter((key) => has(i, key)), alone = keys.length === 1;
        const of = data.tracks.length > 1 ? `${data.tracks[i].label}: ` : "";
        return [chart(panel.title, panel.unit, panel.note, keys.map((key, index) => ({
          name: alone ? data.tracks[i].label : of + short(key), index: alone ? i : index, curve: has(i, key) })))];
      }
      return panel.keys.filter((key) => on.some((i) => has(i, key))).map((key) => chart(
        panel.keys.length > 1 ? `${panel.title}: ${short(key)}` : panel.title, panel.unit, panel.note,
        on.filter((i) => has(i, key)).map((i) => ({ name: data.tracks[i].label, index: i, curve: has(i, key) }))));
    });
    return figures.length ? el("div", { class: "group" }, el("h3", {}, group.title), el("div", { class: "grid" }, figures)) : "";
  });
  return [heading("curves", "Curves"),
    el("p", { class: "lead" }, "Every metric over the steps. Of a long curve the band is the least and the most of each stretch, the line their mean. Point at a chart, or focus it and use the arrow keys, to read values."),
    picker, groups];
}

// -- Expert load

function experts() {
  const have = data.tracks.map((_, i) => i).filter((i) => data.experts[i]);
  if (!have.length) return [];
  const h = state.heat;
  if (!have.includes(h.track)) Object.assign(h, { track: have.at(-1), step: null, layer: 0 });
  const load = data.experts[h.track], bytes = Uint8Array.from(atob(load.data), (c) => c.charCodeAt(0));
  if (h.step === null || h.step >= load.steps.length) h.step = load.steps.length - 1;
  if (!h.view) h.view = load.layers > 4 && load.steps.length < 3 ? "layers" : "steps";
  if (h.layer >= load.layers) h.layer = 0;
  const overSteps = h.view === "steps";
  const rows = overSteps ? load.experts : load.layers, columns = overSteps ? load.steps.length : load.experts;
  const at = (row, column) => bytes[overSteps ? (column * load.layers + h.layer) * load.experts + row : (h.step * load.layers + row) * load.experts + column];
  const canvas = el("canvas", { width: columns, height: rows, role: "img" });
  canvas.style.height = `${Math.max(120, Math.min(460, rows * 22))}px`;
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).split(",").map(Number);
  const [less, more, even, none] = ["--less", "--more", "--even", "--none"].map(colour);
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  let [most, least] = [[0], [256]];
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    const level = at(r, c), t = Math.max(-1, Math.min(1, (level - 128) / 64));
    const mix = level ? even.map((v, k) => v + Math.abs(t) * ((t < 0 ? less : more)[k] - v)) : none;
    image.data.set([...mix, 255], (r * columns + c) * 4);
    if (level > most[0]) most = [level, r, c];
    if (level < least[0]) least = [level, r, c];
  }
  context.putImageData(image, 0, 0);
  const value = (level) => (level ? `${fmt(2 ** ((level - 128) / 32))} × the mean` : "none");
  const place = (r, c) => (overSteps ? `expert ${r} at step ${count(load.steps[c])}` : `expert ${c} of layer ${r + 1}`);
  const summary = `Most loaded: ${place(most[1], most[2])}, ${value(most[0])}. Least: ${place(least[1], least[2])}, ${value(least[0])}.`;
  canvas.setAttribute("aria-label", `Heat map of expert load. ${summary}`);
  canvas.onpointermove = (e) => {
    const box = canvas.getBoundingClientRect();
    const c = Math.min(columns - 1, Math.floor(((e.clientX - box.left) / box.width) * columns)), r = Math.min(rows - 1, Math.floor(((e.clientY - box.top) / box.height) * rows));
    if (c >= 0 && r >= 0) tip({ x: e.clientX, y: e.clientY }, el("b", {}, place(r, c)), el("div", {}, value(at(r, c))));
  };
  canvas.onpointerleave = () => tip(null);
  const change = (name, value) => { h[name] = value; show("experts"); const again = $(`heat-${name}`); if (again) again.focus(); };
  const pick = (name, text, options, chosen) => el("label", {}, text, el("select", { id: `heat-${name}`, onchange: (e) => change(name, name === "view" ? e.target.value : Number(e.target.value)) },
    options.map(([v, words]) => el("option", { value: v, selected: String(v) === String(chosen) }, words))));
  const rgb = (c) => `rgb(${c.join(",")})`;
  return [heading("experts", "Load of the experts"),
    el("p", { class: "lead" }, "Tokens that each expert got, over the mean of its layer. Without colour a share is even; orange is more, blue less.",
      load.left_out ? ` ${count(load.left_out)} of ${count(load.left_out + load.steps.length)} recorded steps are left out, evenly.` : ""),
    el("figure", { class: "heat" },
      el("div", { class: "controls" },
        have.length > 1 && pick("track", "Stage", have.map((i) => [i, data.tracks[i].label]), h.track),
        pick("view", "View", [["steps", "experts over the steps"], ["layers", "layers and experts at one step"]], h.view),
        overSteps && load.layers > 1 && pick("layer", "Expert layer", [...Array(load.layers).keys()].map((i) => [i, `${i + 1} of ${load.layers}`]), h.layer),
        !overSteps && el("label", { class: "span" }, `Step ${count(load.steps[h.step])}`, el("input", { id: "heat-step", type: "range", min: 0, max: load.steps.length - 1, value: h.step,
          "aria-valuetext": `step ${load.steps[h.step]}`, oninput: (e) => change("step", Number(e.target.value)) }))),
      el("div", { class: "row" }, el("div", { class: "ylabel" }, el("span", {}, overSteps ? "0" : "1"), el("b", {}, overSteps ? "expert" : "expert layer"), el("span", {}, String(overSteps ? rows - 1 : rows))), canvas),
      el("div", { class: "axes" }, el("span", {}, overSteps ? `step ${count(load.steps[0])}` : "expert 0"), el("span", {}, overSteps ? `step ${count(load.steps.at(-1))}` : `expert ${load.experts - 1}`)),
      el("div", { class: "scale" }, "¼ of the mean or less", el("span", { class: "ramp", style: `background:linear-gradient(to right, ${rgb(less)}, ${rgb(even)}, ${rgb(more)})` }), "4 times or more"),
      el("p", { class: "note", "aria-live": "polite" }, summary))];
}

// -- Samples

const truncated = (row) => row.finish === "length";
function matches(row, f) {
  if (f.track !== "" && row.track !== Number(f.track)) return false;
  if (f.from !== "" && !(row.step >= Number(f.from))) return false;
  if (f.to !== "" && !(row.step <= Number(f.to))) return false;
  if (f.source !== "" && row.source !== f.source) return false;
  if (f.held !== "" && Boolean(row.held) !== (f.held === "yes")) return false;
  if (f.finish !== "" && row.finish !== f.finish) return false;
  if (f.dropped !== "" && (f.dropped === "kept" ? row.dropped : row.dropped !== f.dropped)) return false;
  if (f.status === "faults" && !Object.values(row.rewards).some((r) => r[1] !== "ok")) return false;
  if (f.status !== "" && f.status !== "faults" && !Object.values(row.rewards).some((r) => r[1] === f.status)) return false;
  if (f.reward !== "" && f.value !== "") {
    const found = f.reward === "(total)" ? row.reward : row.rewards[f.reward] && row.rewards[f.reward][0];
    if (typeof found !== "number") return false;
    const value = Number(f.value);
    if (!{ "=": found === value, "≠": found !== value, "<": found < value, ">": found > value }[f.compare]) return false;
  }
  const wanted = f.text.trim().toLowerCase();
  return !wanted || ["prompt", "thought", "answer", "expected"].some((n) => (row[n] || "").toLowerCase().includes(wanted));
}
const orders = {
  newest: ["newest first", (a, b) => b.step - a.step], oldest: ["oldest first", (a, b) => a.step - b.step],
  lowest: ["lowest reward first", (a, b) => (a.reward ?? 0) - (b.reward ?? 0)], highest: ["highest reward first", (a, b) => (b.reward ?? 0) - (a.reward ?? 0)],
  longest: ["longest first", (a, b) => (b.length ?? 0) - (a.length ?? 0)],
};
const ends = { length: "cut off at the cap", stop: "end token", stop_string: "stop string" };

function samples() {
  const all = data.samples.rows, f = state.filter;
  for (const name of ["track", "from", "to", "source", "held", "finish", "dropped", "status", "reward", "value", "text"]) f[name] ??= "";
  f.compare ??= "="; f.order ??= "newest";
  if (!all.length) return [heading("samples", "Samples"), el("p", { class: "lead" }, data.samples.total ? "" : "None were written: the run has sampled nothing, or its log.samples_per_step is 0.")];
  const distinct = (get) => [...new Set(all.map(get).filter((v) => v !== undefined && v !== ""))].sort();
  const rewards = [...new Set(all.flatMap((r) => Object.keys(r.rewards)))];
  const statuses = [...new Set(all.flatMap((r) => Object.values(r.rewards).map((x) => x[1])))].filter((s) => s !== "ok");
  const set = (name) => (e) => { f[name] = e.target.value; state.shown = SHOWN; list(); };
  const choice = (name, text, options) => (options.length > 1 || f[name] !== "") && el("label", {}, text, el("select", { id: `f-${name}`, onchange: set(name) },
    el("option", { value: "" }, "all"), options.map(([v, words]) => el("option", { value: v, selected: String(v) === f[name] }, words))));
  const number = (name, text) => el("label", {}, text, el("input", { id: `f-${name}`, type: "number", step: "any", value: f[name], oninput: set(name) }));
  const both = (words) => words.map((w) => [w, w]);
  const found = el("div", { id: "found" }), said = el("p", { class: "note", id: "f-count", role: "status", "aria-live": "polite" });
  const list = () => {
    const hits = all.filter((row) => matches(row, f)).sort(orders[f.order][1]);
    said.textContent = `${count(hits.length)} of the ${count(all.length)} samples on this page match.`;
    found.replaceChildren(...hits.slice(0, state.shown).map(sample),
      hits.length > state.shown ? el("button", { class: "again", type: "button", id: "f-more", onclick: () => {
        const before = state.shown; state.shown += SHOWN; list(); found.children[before].querySelector("h3").focus();
      } }, `Show ${Math.min(SHOWN, hits.length - state.shown)} more`) : "");
  };
  const left = data.samples.total - all.length, t = data.samples.texts;
  const form = el("form", { class: "controls", "aria-label": "Filter the samples", onsubmit: (e) => e.preventDefault() },
    el("label", { class: "span" }, "Text in prompt, thought or answer", el("input", { id: "f-text", type: "search", value: f.text, oninput: set("text") })),
    choice("track", "Stage", [...new Set(all.map((r) => r.track))].map((i) => [i, data.tracks[i].label])),
    number("from", "From step"), number("to", "To step"),
    choice("source", "Source", both(distinct((r) => r.source))),
    choice("held", "Problems", all.some((r) => r.held) ? [["no", "of training"], ["yes", "held out"]] : []),
    el("div", { class: "field span" }, el("span", {}, "Reward"), el("div", { class: "pair" },
      el("select", { id: "f-reward", "aria-label": "Reward", onchange: set("reward") }, [["", "any"], ["(total)", "total"], ...both(rewards)].map(([v, w]) => el("option", { value: v, selected: v === f.reward }, w))),
      el("select", { id: "f-compare", "aria-label": "Comparison", onchange: set("compare") }, ["=", "≠", "<", ">"].map((c) => el("option", { selected: c === f.compare }, c))),
      el("input", { id: "f-value", type: "number", step: "any", "aria-label": "Value", value: f.value, oninput: set("value") }))),
    choice("status", "Scores", statuses.length ? [["faults", "that failed"], ...both(statuses)] : []),
    choice("finish", "Ended by", distinct((r) => r.finish).map((e) => [e, ends[e] || e])),
    choice("dropped", "Dropped", all.some((r) => r.dropped) ? [["kept", "kept"], ...both(distinct((r) => r.dropped))] : []),
    el("label", {}, "Order", el("select", { id: "f-order", onchange: set("order") }, Object.entries(orders).map(([v, [w]]) => el("option", { value: v, selected: v === f.order }, w)))),
    el("button", { type: "button", id: "f-reset", onclick: () => { state.filter = {}; state.shown = SHOWN; show("samples"); $("f-text").focus(); } }, "Reset"));
  list();
  return [heading("samples", "Samples"),
    el("p", { class: "lead" }, left > 0 ? `${count(all.length)} of ${count(data.samples.total)} samples, evenly spread over the run; the other ${count(left)} are in the run's samples.jsonl (r1jax samples).` : `All ${count(all.length)} samples that the run wrote.`,
      ` Of a long text the beginning and the end are shown: ${count(t.prompt)} characters of a prompt, ${count(t.thought)} of a thought, ${count(t.answer)} of an answer.`),
    form, said, found];
}

function sample(row) {
  const track = data.tracks[row.track];
  const facts = [row.reward !== undefined && `reward ${fmt(row.reward)}`, row.advantage !== undefined && `advantage ${fmt(row.advantage)}`, row.length !== undefined && `${count(row.length)} tokens`,
    row.finish && (truncated(row) ? "cut off at the cap" : `ended by ${ends[row.finish] || row.finish}`), row.dropped && `dropped: ${row.dropped}`, `prompt.sample ${row.id}`].filter(Boolean);
  const part = (name, text) => text && el("div", { class: `part ${name}` }, el("span", {}, { expected: "expected answer", why: "why it was dropped" }[name] || name), el("div", { class: "text", tabindex: text.length > 900 ? "0" : null },
    text.split(/(\[\.\.\. [\d,]+ characters left out \.\.\.\])/).map((piece, i) => (i % 2 ? el("span", { class: "left" }, piece) : piece))));
  return el("article", { class: "sample" },
    el("h3", { tabindex: "-1" }, [data.tracks.length > 1 && track.label, `step ${count(row.step)}`, row.source, row.held && "held out"].filter(Boolean).join(" · "), el("small", {}, facts.join(" · "))),
    el("div", { class: "parts" }, el("div", {}, part("prompt", row.prompt), part("expected", row.expected), part("why", row.why),
    el("div", { class: "rewards" }, Object.entries(row.rewards).map(([name, [value, status, why]]) => [
      el("span", {}, name), el("span", { class: "n" }, value === null ? "none" : fmt(value)), el("span", { class: "why" }, status === "ok" ? why : el("span", { class: "lost" }, `${status}${why ? `: ${why}` : ""}`))]))),
    el("div", {}, part("thought", row.thought), part("answer", row.answer))));
}

// -- Cost

function cost() {
  const parts = data.cost.map((bill, i) => {
    const names = Object.keys(bill.stages);
    if (!names.length) return "";
    const rows = [...names.map((n) => [n, bill.stages[n]]), ...(Object.keys(bill.put_aside).length ? [["put aside", bill.put_aside]] : []), ...(names.length > 1 ? [["total", bill.total]] : [])];
    const columns = {
      "Device-hours": (r) => hours(r.device_hours || 0), "Sampled tokens/s": (r) => (r.tokens_per_s_sampled ? fmt(r.tokens_per_s_sampled) : ""), "Trained tokens/s": (r) => (r.tokens_per_s_trained ? fmt(r.tokens_per_s_trained) : ""),
      FLOPs: (r) => (r.flops ? r.flops.toExponential(1).replace("e+", "e") : ""), "Of peak": (r) => (r.utilisation ? percent(r.utilisation) : ""), Idle: (r) => (r.idle_share !== undefined ? percent(r.idle_share) : ""),
      Redone: (r) => (r.redone_hours ? percent(r.redone_hours / r.device_hours) : ""), kWh: (r) => (r.kwh ? fmt(r.kwh) : ""), Dollars: (r) => (r.dollars !== undefined ? r.dollars.toFixed(2) : ""),
    };
    const used = Object.keys(columns).filter((c) => rows.some(([, r]) => columns[c](r) !== ""));
    const title = data.runs.length > 1 ? `What ${data.runs[i].name} cost` : "What it cost";
    const phases = names.map((n) => {
      const all = Object.entries(bill.stages[n].phases).sort((a, b) => b[1].device_hours - a[1].device_hours), whole = bill.stages[n].device_hours || 1;
      return table(`Where the time of ${n} went`, "", ["Phase", "Device-hours", "Share", "Tokens", "Tokens/s", "FLOPs"], all.map(([phase, p]) => [phase, hours(p.device_hours),
        el("td", { class: "bars" }, el("span", { class: "share", style: `width:${Math.max(0, Math.min(70, (70 * p.device_hours) / whole)).toFixed(1)}px` }), ` ${percent(p.device_hours / whole)}`),
        p.tokens ? fmt(p.tokens) : "", p.tokens_per_s ? fmt(p.tokens_per_s) : "", p.flops ? p.flops.toExponential(1).replace("e+", "e") : ""]));
    });
    const beside = Object.entries(bill.published).map(([part, { ours, published }]) => [part, hours(ours.device_hours), ours.dollars !== undefined ? ours.dollars.toFixed(2) : "", count(published.device_hours), count(published.dollars)]);
    return [table(title, "Tokens per second are those of the phase that makes them; idle is time outside of sampling, scoring and updates.", ["", ...used], rows.map(([n, r]) => [n, ...used.map((c) => columns[c](r))]), names.length > 1 ? 1 : 0),
      beside.length ? table("Beside R1's bill", "Published: H800 hours, at 2 dollars each (arXiv 2501.12948v2, appendix); 147K hours and $294K in all.", ["", "Device-hours here", "Dollars here", "H800 hours published", "Dollars published"], beside) : "",
      folded(`phases${i}`, "By phase", phases)];
  });
  return parts.some((p) => p !== "") ? [heading("cost", "Cost"), parts] : [];
}

function speed() {
  if (!data.bench.length) return [];
  return [heading("speed", "Speed"), el("p", { class: "lead" }, "Measured by r1jax bench on a machine's own limit: of matrix products (MFU) and of a copy."),
    data.bench.map((b) => table(`bench ${b.command}: ${b.settings.model || ""}`, `${b.file}; ${b.limits.devices} × ${b.limits.device}; ${Object.entries(b.versions).map((v) => v.join(" ")).join(", ")}`,
      ["", "Seconds", "Least to most", "Tokens/s", "MFU", "Of copy"], Object.entries(b.figures).flatMap(([side, phases]) => Object.entries(phases).map(([phase, p]) => [`${side}, ${phase}`, fmt(p.seconds), `${fmt(p.seconds_min)} to ${fmt(p.seconds_max)}`,
        p.tokens_per_s ? fmt(p.tokens_per_s) : "", p.mfu ? percent(p.mfu) : "", p.bandwidth_share ? percent(p.bandwidth_share) : ""]))))];
}

// -- Provenance and config

const text = (v) => (v === null || v === undefined ? "none" : typeof v === "string" ? v || "(empty)" : JSON.stringify(v));
const counts = (o, most = 8) => { const e = Object.entries(o || {}); return e.slice(0, most).map(([k, n]) => `${k} ${count(n)}`).join(", ") + (e.length > most ? ` and ${e.length - most} more` : ""); };

function provenance() {
  const rows = data.tracks.flatMap((t, i) => data.provenance[i].sources.map((s) => [data.tracks.length > 1 ? t.label : s.name, el("td", { class: "wide" }, `${s.use} ${s.name}`, el("br"), el("small", {}, s.path)),
    el("td", { class: "wide" }, Object.entries(s.rewards).map(([n, w]) => `${n} × ${fmt(w)}`).join(", ")), el("td", { class: "wide" }, s.digest ? el("code", {}, s.digest.slice(0, 23) + (s.digest.length > 23 ? "…" : "")) : ""),
    el("td", { class: "wide" }, s.summary ? [`licences: ${counts(s.summary.licences)}`, s.summary.rows_that_name_a_model !== undefined && el("div", {}, `${count(s.summary.rows_that_name_a_model)} rows name a model`)] : el("small", {}, "not recorded beside the rows"))]));
  const from = data.tracks.flatMap((t, i) => [...Object.entries(data.provenance[i].commits), ...Object.entries(data.provenance[i].inputs)].map(([n, v]) => [t.label, el("td", { class: "wide" }, n), el("td", { class: "wide" }, el("code", {}, v))]));
  const made = data.tracks.flatMap((t, i) => { const m = data.provenance[i].made; return m ? [[t.label, fmt(m.answers), fmt(m.kept), fmt(m.rows), el("td", { class: "wide" }, counts(m.dropped, 12))]] : []; });
  return rows.length ? [heading("provenance", "Provenance"), el("p", { class: "lead" }, "What rows and weights each stage began with. A digest names rows by content, a commit what a name on the Hub stood for."),
    table("Rows", "Licences as r1jax data provenance counted them, where its summary lies beside the file.", [data.tracks.length > 1 ? "Stage" : "Source", "Rows", "Rewards and weights", "Digest", "Known of the rows"], rows),
    from.length ? table("Weights and rows by content", "", ["Stage", "Name", "Stood for"], from) : "",
    made.length ? table("Rows that were made here", "", ["Stage", "Answers", "Kept", "Rows", "Dropped because"], made) : ""] : [];
}

function settings() {
  const blocks = data.tracks.map((t, i) => {
    const rows = data.settings[i];
    if (!rows.length) return "";
    const verdict = (r) => (!r.published.length ? el("small", {}, "unpublished") : r.same.length ? (r.same.length === r.published.length ? "as published" : `as ${r.same.join(", ")}`) : el("span", { class: "differs" }, "differs"));
    const grouped = (r) => Object.entries(r.published.reduce((by, [name, v]) => { (by[text(v)] ??= []).push(name); return by; }, {})).map(([v, names]) => el("div", {}, v, r.published.length > 1 || names.length ? el("small", {}, ` ${names.join(", ")}`) : ""));
    const differ = rows.filter((r) => r.published.length && !r.same.length).length;
    const block = table(`${data.tracks.length > 1 ? t.label : kindOf(t)}: ${differ} of ${rows.filter((r) => r.published.length).length} published settings differ`, "", ["Setting", "Here", "Published of R1", "", "Source"],
      rows.map((r) => [el("code", {}, r.field), el("td", { class: "text" }, text(r.here)), el("td", { class: "wide" }, r.published.length ? grouped(r) : ""), el("td", { class: "text" }, verdict(r)), el("td", { class: "wide" }, el("small", {}, r.note))]));
    return data.tracks.length > 1 ? folded(`settings${i}`, `${t.label} (${kindOf(t)}): ${differ} differ`, block) : block;
  });
  return [heading("config", "Config"), el("p", { class: "lead" }, "Settings beside R1's published ones, and those that were never published."),
    data.differences.length ? table("Where the runs differ", "", ["Setting", ...data.runs.map((r) => r.name)], data.differences.map((d) => [el("code", {}, d.field), ...d.values.map((v) => el("td", { class: "wide" }, text(v)))])) : "",
    blocks, data.configs.map((c, i) => folded(`config${i}`, `The whole config of ${data.runs[i].name}`, el("pre", { tabindex: "0" }, JSON.stringify(c, null, 1))))];
}

// -- The page

const sections = { overview, curves, experts, samples, cost, speed, provenance, config: settings };
const titles = { overview: "Overview", curves: "Curves", experts: "Experts", samples: "Samples", cost: "Cost", speed: "Speed", provenance: "Provenance", config: "Config" };
function show(name) { $(name).replaceChildren(...[sections[name]()].flat(Infinity).filter(Boolean)); }

function showAll() {
  Object.keys(sections).forEach(show);
  $("nav").replaceChildren(...Object.keys(sections).filter((n) => $(n).hasChildNodes()).map((n) => el("li", {}, el("a", { href: `#${n}` }, titles[n]))));
  $("foot").replaceChildren(el("p", {}, `Made by r1jax ${data.version} on ${data.made.replace("T", " ")}. ${data.live ? "Live: this page looks for news every few seconds." : "This page loads nothing from any network."}`));
}

function theme(choice) {
  const dark = choice === "dark" || (choice !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
function kept(value) {
  try { if (value) localStorage.setItem("r1jax-theme", value); return localStorage.getItem("r1jax-theme"); } catch { return null; } // no storage for files in some browsers
}
const chooser = $("theme");
chooser.value = kept() || "auto";
theme(chooser.value);
const repaint = () => { theme(chooser.value); show("experts"); };
chooser.addEventListener("change", () => { kept(chooser.value); repaint(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
addEventListener("scroll", () => tip(null), { passive: true });

async function follow() {
  try {
    const answer = await fetch(`data.json?since=${encodeURIComponent(data.live)}`);
    if (answer.status === 200) {
      const busy = document.activeElement && document.activeElement.id;
      data = await answer.json();
      showAll();
      if (busy && $(busy)) $(busy).focus({ preventScroll: true });
    }
    setTimeout(follow, 3000);
  } catch {
    $("foot").append(el("p", { class: "lost" }, "The server of this page has ended; what is shown is what it said last."));
  }
}
showAll();
if (data.live) setTimeout(follow, 3000);
