"use strict";
// Draws the data of the page. Every text goes in as a text node: nothing of it is ever read as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const NS = "http://www.w3.org/2000/svg";

function node(name, attributes, ...children) {
  const made = name.startsWith("svg:") ? document.createElementNS(NS, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}
const svg = (name, attributes, ...children) => node("svg:" + name, attributes, ...children);
const text = (number) => (number === null || number === undefined ? null : data.texts[number]);
const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−"));
const signed = (value, digits = 3) => (value > 0 ? "+" : "") + fixed(value, digits);
const percent = (part, whole) => (whole ? Math.round((100 * part) / whole) + " %" : "–");
const at = (list, i) => (list && list[i] !== null ? list[i] / data.scale : null);

// ---- what the colour may show ------------------------------------------------------------------------------------
const runOfRow = new Map();
for (const run of data.runs) for (const step of run.steps) for (const row of step.rows) runOfRow.set(row, run);
const measures = [
  { key: "u", label: "u", unit: "nats", about: "u = log π_T − log π_S: blue where the teacher, who saw more, finds the token likelier than the policy did; orange where less likely." },
  { key: "d", label: "Aₜ − A", unit: "", about: (data.runs.some((run) => run.teacher) ? "What the teacher's signal adds to the advantage of the token" : "What the algorithm adds to GRPO's advantage of the token") + ": blue reinforces it, orange suppresses it." },
  { key: "hs", label: "student entropy", unit: "nats", one: true, about: "Entropy of the policy where the token was drawn." },
  { key: "ht", label: "teacher entropy", unit: "nats", one: true, about: "Entropy of the teacher at the same place." },
  { key: "w", label: "weight", unit: "", about: (data.runs.some((run) => run.teacher) ? "What the algorithm makes of u: " : "What the algorithm makes of the token: ") + [...new Set(data.runs.map((run) => run.weight))].join(", ") + "." },
];
const centreOf = (measure, row) => (measure.key === "w" ? runOfRow.get(row).centre : 0);
for (const measure of measures) {
  measure.there = measure.key in data.scales;
  measure.scale = Math.max(0.01, data.scales[measure.key] || 0);
}
const state = { measure: measures.find((measure) => measure.there) || measures[0], threshold: 0, compare: data.runs.length > 1, panels: [] };

// ---- tokens ------------------------------------------------------------------------------------------------------
const SIGNS = { "\n": "⏎\n", "\t": "⇥\t", "\r": "␍" };
// Controls, and marks that turn the direction of writing or have no width, are shown by a sign.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
function shown(token) {
  const parts = [];
  let from = 0;
  for (const hit of token.matchAll(HIDDEN)) {
    parts.push(token.slice(from, hit.index), node("span", { class: "sign" }, SIGNS[hit[0]] || "·"));
    from = hit.index + hit[0].length;
  }
  return [...parts, token.slice(from)];
}

function paint(span, row, i) {
  const { measure } = state;
  const value = at(row[measure.key], i);
  const away = value === null ? 0 : value - centreOf(measure, row);
  const share = Math.min(1, Math.abs(away) / measure.scale);
  span.className = "t " + (value === null ? "none" : measure.one ? "one" : away < 0 ? "neg" : "pos");
  span.classList.toggle("low", value === null || share * 100 < state.threshold);
  span.style.setProperty("--k", share.toFixed(3));
}

function paintAll() {
  for (const span of document.querySelectorAll(".t")) paint(span, span.row, span.place);
  const { measure } = state;
  const from = (measure.scale * state.threshold) / 100;
  byId("threshold-value").textContent = state.threshold ? `|${measure.one ? "H" : "·"}| ≥ ${fixed(from, 2)}` : "all tokens";
  const centre = measure.key === "w" ? data.runs[0].centre : 0;
  byId("legend").replaceChildren(measure.one ? "0" : fixed(centre - measure.scale, 2), node("i", { class: measure.one ? "one" : "two" }), fixed(centre + measure.scale, 2) + " " + measure.unit);
  byId("explain").textContent = measure.about + " Hover over a token, tap it, or move with the arrow keys.";
}

function values(row, i) {
  const run = runOfRow.get(row);
  const [s, u, d] = [at(row.s, i), at(row.u, i), at(row.d, i)];
  const t = s === null || u === null ? null : s + u;
  const probability = (value) => (value === null ? "–" : Math.exp(value) < 0.001 ? Math.exp(value).toExponential(1) : fixed(Math.exp(value)));
  const teacher = (...lines) => (run.teacher ? lines : []);
  const lines = [
    ["π student", probability(s)], ...teacher(["π teacher", probability(t)]), ["log π student", fixed(s)],
    ...teacher(["log π teacher", fixed(t)], ["u", u === null ? "–" : signed(u)]),
    ["entropy student", fixed(at(row.hs, i))], ...teacher(["entropy teacher", fixed(at(row.ht, i))]),
    [run.weight || "weight", fixed(at(row.w, i))],
  ];
  if (row.d) lines.push(["A", fixed(row.A)], ["Aₜ", fixed(row.A + d)], ["Aₜ − A", signed(d)]);
  for (const view of row.v) lines.push([`log π, view ${view.n}`, fixed(at(view.t, i))]);
  return lines;
}

const tip = byId("tip");
let pointed = null;
function point(span) {
  if (pointed) pointed.classList.remove("at");
  pointed = span;
  tip.hidden = !span;
  if (!span) return;
  span.classList.add("at");
  const { row, place } = span;
  tip.replaceChildren(
    node("strong", {}, JSON.stringify(data.tokens[row.tok[place]])), node("span", {}, `  token ${place + 1} of ${row.tok.length}`),
    node("dl", {}, values(row, place).flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)])),
  );
  const box = span.getClientRects()[0] || span.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8));
  const below = box.bottom + 8 + tip.offsetHeight < innerHeight;
  tip.style.left = left + "px";
  tip.style.top = (below ? box.bottom + 8 : Math.max(8, box.top - tip.offsetHeight - 8)) + "px";
}
const tokenOf = (event) => (event.target.closest ? event.target.closest(".t") : null);
document.addEventListener("pointerover", (event) => { const span = tokenOf(event); if (span || event.pointerType === "mouse") point(span); });
document.addEventListener("focusin", (event) => point(tokenOf(event)));
document.addEventListener("click", (event) => point(tokenOf(event)));
addEventListener("scroll", () => { if (pointed && pointed !== document.activeElement) point(null); else if (pointed) point(pointed); }, { passive: true });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return point(null);
  const span = tokenOf(event);
  if (!span) return;
  const all = [...span.parentElement.children];
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -all.length, End: all.length };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const next = all[Math.max(0, Math.min(all.length - 1, all.indexOf(span) + steps[event.key]))];
  span.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

// ---- completions: drawn when they come near the window -------------------------------------------------------------
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    entry.target.replaceChildren(...completion(entry.target.row, entry.target.step));
  }
}, { rootMargin: "600px" });

function question(row) {
  const prompt = text(row.p);
  try {
    const messages = JSON.parse(prompt);
    const last = Array.isArray(messages) && messages.filter((message) => message && message.role === "user").pop();
    if (last && typeof last.content === "string") return last.content;
  } catch { /* plain text */ }
  return prompt;
}

function folded(title, whole, part) {
  const from = part ? whole.indexOf(part) : -1;
  const inside = from < 0 ? [whole] : [whole.slice(0, from), node("mark", {}, part), whole.slice(from + part.length)];
  return node("details", {}, node("summary", {}, title), node("pre", {}, ...inside));
}

function completion(row, step) {
  const asked = runOfRow.get(row).teacher;
  const us = (row.u || []).filter((value) => value !== null);
  const mean = us.length ? us.reduce((a, b) => a + b, 0) / us.length / data.scale : null;
  const fact = (name, value) => node("span", {}, name + " ", node("b", {}, value));
  const facts = node("div", { class: "facts" },
    node("span", { class: row.ok ? "good" : "bad" }, row.ok ? "✓ correct" : "✗ not correct"),
    fact("step", step), fact("group", row.g), fact("row", row.i), fact("reward", fixed(row.r, 2)),
    row.A === null ? null : fact("A", fixed(row.A, 2)), fact("tokens", row.tok.length),
    ...(asked ? [fact("mean u", mean === null ? "–" : signed(mean, 3)), fact("teacher saw", text(row.src) || "nothing")] : []));
  const area = node("div", { class: "tokens", role: "group", "aria-label": "tokens of the completion" });
  row.tok.forEach((number, i) => {
    const span = node("span", { tabindex: i ? -1 : 0 }, shown(data.tokens[number]));
    span.row = row;
    span.place = i;
    paint(span, row, i);
    area.append(span);
  });
  const prompt = text(row.tp);
  const aside = !asked ? null : prompt === null ? node("span", { class: "note" }, "without a teacher") : folded("Teacher's prompt", prompt, text(row.c));
  const views = row.v.filter((view) => text(view.tp) !== null).map((view) => folded(`View ${view.n}`, text(view.tp), text(view.c)));
  return [facts, node("p", { class: "asked" }, question(row)), node("div", { class: "both" }, area, node("div", { class: "asides" }, aside, views))];
}

// ---- charts ------------------------------------------------------------------------------------------------------
function frame(width, height, box, x, y) {
  const [left, top, right, bottom] = box;
  const inner = [width - left - right, height - top - bottom];
  const X = (v) => left + ((v - x.from) / (x.to - x.from || 1)) * inner[0];
  const Y = (v) => top + inner[1] - ((v - y.from) / (y.to - y.from || 1)) * inner[1];
  const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const [v, label] of y.ticks) made.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: Y(v), y2: Y(v) }), svg("text", { x: left - 5, y: Y(v) + 4, "text-anchor": "end" }, label));
  for (const [v, label] of x.ticks) made.append(svg("text", { x: X(v), y: height - bottom + 15, "text-anchor": "middle" }, label));
  return { made, X, Y };
}
function ticks(from, to, digits) {
  const raw = (to - from) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw);
  const list = [];
  for (let v = Math.ceil(from / size) * size; v <= to + size * 1e-6; v += size) list.push([v, fixed(v, digits ?? Math.max(0, -Math.floor(Math.log10(size))))]);
  return list;
}
const figure = (title, caption, ...inside) => node("figure", {}, node("h3", {}, title), inside, caption ? node("figcaption", {}, caption) : null);

function density(stats) {
  const cells = 24;
  const lowest = -8;
  const marks = [[-6.908, "0.001"], [-4.605, "0.01"], [-2.303, "0.1"], [0, "1"]];
  const axis = { from: lowest, to: 0, ticks: marks };
  const { made, X, Y } = frame(340, 290, [44, 8, 14, 34], axis, axis);
  const top = Math.log(1 + Math.max(1, ...stats.density.map((cell) => cell[1])));
  const side = -lowest / cells;
  for (const [cell, count] of stats.density) {
    const [x, y] = [lowest + Math.floor(cell / cells) * side, lowest + (cell % cells) * side];
    const share = 12 + 88 * (Math.log(1 + count) / top);
    made.append(svg("rect", { x: X(x), y: Y(y + side), width: X(side) - X(0), height: Y(0) - Y(side), style: `fill: color-mix(in srgb, var(--one) ${share.toFixed(0)}%, transparent)` }, svg("title", {}, `${count} tokens`)));
  }
  made.append(svg("line", { x1: X(lowest), y1: Y(lowest), x2: X(0), y2: Y(0), stroke: "var(--soft)", "stroke-dasharray": "4 3" }), svg("text", { x: 180, y: 286, "text-anchor": "middle" }, "π student"), svg("text", { x: 50, y: 18 }, "π teacher"));
  return figure("Student and teacher", "Tokens by the probability that each gave them: the stronger the colour, the more. Above the dashed line the teacher finds them likelier. Below 0.0003 they share a cell.", made);
}

function positions(stats) {
  const points = stats.positions;
  const ends = points.flatMap((p) => [p[1] - p[2], p[1] + p[2]]);
  const [from, to] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const last = Math.max(1, ...points.map((p) => p[0]));
  const { made, X, Y } = frame(340, 170, [44, 8, 14, 34], { from: 0, to: last, ticks: ticks(0, last, 0) }, { from, to, ticks: ticks(from, to) });
  const band = [...points.map((p) => `${X(p[0])},${Y(p[1] + p[2])}`), ...points.toReversed().map((p) => `${X(p[0])},${Y(p[1] - p[2])}`)];
  made.append(svg("polygon", { points: band.join(" "), fill: "var(--a)", opacity: 0.2 }), svg("polyline", { points: points.map((p) => `${X(p[0])},${Y(p[1])}`).join(" "), fill: "none", stroke: "var(--a)", "stroke-width": 2 }));
  for (const p of points) made.append(svg("circle", { cx: X(p[0]), cy: Y(p[1]), r: 3, fill: "var(--a)" }, svg("title", {}, `from token ${p[0] + 1}: mean u ${signed(p[1])}, ${p[3]} tokens`)));
  made.append(svg("text", { x: 180, y: 166, "text-anchor": "middle" }, "position of the token"));
  return figure("u by position", "Mean u in nats, with one standard error.", made);
}

function tokenTable(title, list, what) {
  const rows = list.map((hit) => node("tr", {}, node("td", { title: JSON.stringify(hit.token) }, node("code", {}, JSON.stringify(hit.token))), node("td", { class: "n" }, hit.n), node("td", { class: "n" }, signed(hit.sum, 2)),
    node("td", { class: "example" }, shown(hit.before.slice(-18).replaceAll("\n", "⏎")), node("b", {}, shown(hit.token.replaceAll("\n", "⏎"))), shown(hit.after.slice(0, 14).replaceAll("\n", "⏎")))));
  const head = node("tr", {}, ["token", "times", what, "example"].map((name, i) => node("th", { class: i === 1 || i === 2 ? "n" : null }, name)));
  return figure(title, rows.length ? null : "None.", rows.length ? node("table", { class: "words" }, head, rows) : null);
}

function plainTable(title, caption, names, lines) {
  const head = node("tr", {}, names.map((name, i) => node("th", { class: i ? "n" : null }, name)));
  return figure(title, caption, node("table", {}, head, lines.map((line) => node("tr", {}, line.map((value, i) => node("td", { class: i ? "n" : null }, value))))));
}

function statistics(run, stats) {
  const adds = run.steps.some((step) => step.rows.some((row) => row.d));
  const what = adds ? "Σ Aₜ − A" : "Σ u";
  const whole = stats.sources.reduce((sum, source) => sum + source[1], 0);
  return [
    ...(run.teacher ? [density(stats), positions(stats)] : []), tokenTable("Most reinforced tokens", stats.most, what), tokenTable("Most suppressed tokens", stats.least, what),
    plainTable("Epistemic and procedural tokens", "Epistemic: wait, hmm, perhaps, … Procedural: numbers, operators, and so, then, thus, …", ["kind", "tokens", ...(run.teacher ? ["mean u"] : []), ...(adds ? ["mean Aₜ − A"] : [])], stats.kinds.map(([kind, n, u, d]) => [kind, n, ...(run.teacher ? [signed(u)] : []), ...(adds ? [signed(d)] : [])])),
    ...(run.teacher ? [plainTable("What the teacher saw", null, ["source", "rows", "share", "correct"], stats.sources.map(([name, n, ok]) => [name ?? "nothing: without a teacher", n, percent(n, whole), percent(ok, n)]))] : []),
  ];
}

// ---- panels ------------------------------------------------------------------------------------------------------
const FILTERS = { all: ["all completions", () => true], right: ["correct ones", (row) => row.ok], wrong: ["those not correct", (row) => !row.ok], bare: ["those without a teacher", (row) => row.src === null] };
const choice = (name, options, selected) => node("select", { "aria-label": name }, options.map(([value, label]) => node("option", { value, selected: String(value) === String(selected) }, label)));

function drawPanel(panel) {
  const run = data.runs[panel.run];
  const stepOptions = [["all", "all steps"], ...run.steps.map((step, i) => [i, `step ${step.step}`])];
  const runs = choice("run", data.runs.map((each, i) => [i, each.name]), panel.run);
  const steps = choice("step", stepOptions, panel.step);
  const filters = choice("completions", Object.entries(FILTERS).filter(([key]) => key !== "bare" || run.teacher).map(([key, [label]]) => [key, label]), panel.filter);
  runs.onchange = () => { panel.run = Number(runs.value); panel.step = data.runs[panel.run].steps.length - 1; drawPanel(panel); };
  steps.onchange = () => { panel.step = steps.value === "all" ? "all" : Number(steps.value); drawPanel(panel); };
  filters.onchange = () => { panel.filter = filters.value; drawPanel(panel); };
  const chosen = panel.step === "all" ? run.steps : [run.steps[panel.step]];
  const list = node("div", { class: "list" });
  for (const step of chosen) {
    for (const row of step.rows.filter(FILTERS[panel.filter][1])) {
      const card = node("article", { class: "card row" });
      card.row = row;
      card.step = step.step;
      list.append(card);
      near.observe(card);
    }
  }
  const count = list.children.length;
  const kept = chosen.reduce((sum, step) => sum + step.recorded, 0);
  const held = chosen.reduce((sum, step) => sum + step.rows.length, 0);
  const note = `${count} of ${kept} recorded completions` + (held < kept ? `; ${kept - held} are left out to keep the file small, the statistics have them` : "");
  if (!count) list.append(node("p", { class: "note" }, "There are none."));
  const picks = node("div", { class: "pick" }, data.runs.length > 1 ? runs : null, steps, filters, node("span", { class: "note" }, note));
  const stats = node("div", { class: "stats" }, statistics(run, panel.step === "all" ? run.all : run.steps[panel.step].stats));
  point(null);
  panel.element.replaceChildren(picks, stats, list);
}

function drawPanels() {
  byId("panels").classList.toggle("two", state.compare);
  const count = state.compare ? 2 : 1;
  while (state.panels.length < count) {
    const second = state.panels.length;
    const run = second && data.runs.length > 1 ? 1 : 0;
    const last = data.runs[run].steps.length - 1;
    state.panels.push({ run, step: second && data.runs.length === 1 ? 0 : last, filter: "all", element: node("div", { class: "panel" }) });
  }
  byId("panels").replaceChildren(...state.panels.slice(0, count).map((panel) => panel.element));
  state.panels.slice(0, count).forEach(drawPanel);
}

// ---- over the steps ------------------------------------------------------------------------------------------------
const DASHES = [null, "6 4"];
function curve(title, names) {
  const lines = [];
  data.runs.forEach((run, r) => names.forEach((name, n) => {
    const points = run.history.filter((line) => name in line).map((line) => [line.step, line[name]]);
    if (points.length) lines.push({ points, label: name, run, dash: DASHES[r], wide: !n && names.length > 1, colour: n ? "var(--b)" : "var(--a)" });
  }));
  if (!lines.length) return null;
  const ys = lines.flatMap((line) => line.points.map((p) => p[1]));
  const xs = lines.flatMap((line) => line.points.map((p) => p[0]));
  let [from, to] = [Math.min(...ys), Math.max(...ys)];
  if (to - from < 1e-9 && from >= 0 && to <= 1) [from, to] = [0, 1];
  if (to - from < 1e-9) [from, to] = [from - 0.5 * (Math.abs(from) || 1), to + 0.5 * (Math.abs(to) || 1)];
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const { made, X, Y } = frame(300, 150, [46, 8, 12, 22], { from: first, to: last, ticks: ticks(first, last, 0) }, { from, to, ticks: ticks(from, to) });
  for (const line of lines) {
    made.append(svg("polyline", { points: line.points.map((p) => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`).join(" "), fill: "none", stroke: line.colour, "stroke-width": line.wide ? 3.5 : 1.8, "stroke-dasharray": line.dash, "stroke-linejoin": "round" }));
    for (const [x, y] of line.points) made.append(svg("circle", { cx: X(x), cy: Y(y), r: 4, fill: line.colour, "fill-opacity": line.points.length > 1 ? 0 : 1 }, svg("title", {}, `${line.run.name}, step ${x}: ${line.label} ${fixed(y)}`)));
  }
  const labels = names.filter((name) => lines.some((line) => line.label === name));
  const words = labels.flatMap((name) => [node("span", { style: `color: ${names.indexOf(name) ? "var(--b)" : "var(--a)"}` }, "■ "), name.replace(/^self_distill\/|^completions\//, "") + "  "]);
  return node("figure", { class: "card" }, node("h3", {}, title), made, node("figcaption", {}, words));
}

// ---- the page ------------------------------------------------------------------------------------------------------
for (const measure of measures.filter((each) => each.there)) {
  const input = node("input", { type: "radio", name: "measure", value: measure.key, checked: measure === state.measure });
  input.onchange = () => { state.measure = measure; paintAll(); };
  byId("measures").append(node("label", {}, input, measure.label));
}
byId("threshold").oninput = (event) => { state.threshold = Number(event.target.value); paintAll(); };
byId("compare").checked = state.compare;
byId("compare").onchange = (event) => { state.compare = event.target.checked; drawPanels(); };
const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = null; // of the system, until the button is pressed
function applyTheme() {
  const now = theme || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now;
  byId("theme").textContent = now === "dark" ? "Light" : "Dark";
}
byId("theme").onclick = () => { theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark"; applyTheme(); };
dark.addEventListener("change", applyTheme);
applyTheme();
byId("summary").textContent = data.runs.map((run) => `${run.name}: ${run.trainer}, ${run.steps.length} recorded step${run.steps.length > 1 ? "s" : ""}, ${run.recorded} completions, ${run.all.tokens} scored tokens`).join(" · ");
byId("curves").append(...data.curves.map(([title, names]) => curve(title, names)).filter(Boolean));
if (data.runs.length > 1) byId("runs-legend").append(...data.runs.map((run, r) => node("span", {}, svg("svg", { viewBox: "0 0 34 8" }, svg("line", { x1: 0, x2: 34, y1: 4, y2: 4, stroke: "var(--ink)", "stroke-width": 2, "stroke-dasharray": DASHES[r] })), run.name)));
drawPanels();
paintAll();
