"use strict";
// Tables: a column's button sorts by it, best or largest first, then the other way round.
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = head.classList.contains("num") ? "descending" : "ascending";
    const second = first === "descending" ? "ascending" : "descending";
    const way = head.getAttribute("aria-sort") === first ? second : first;
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1;
    const key = row => row.cells[column].dataset.key;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");  // unknown numbers are last
      const x = Number(a), y = Number(b);
      return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y);
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  }));
}

// Legend: a pressed button shows its lines or panels.
const legend = document.querySelector(".legend");
const hidden = document.head.appendChild(document.createElement("style"));
function refresh() {
  const off = [...legend.querySelectorAll("[aria-pressed=false]")];
  const lines = off.map(b => b.dataset.hide).filter(name => name !== "task");
  hidden.textContent = lines.map(name => `.area .${name}`).join(",") + (lines.length ? "{display:none}" : "");
  const tasks = new Set(off.filter(b => b.dataset.hide === "task").map(b => b.textContent));
  for (const plot of document.querySelectorAll(".plot[data-task]")) plot.hidden = tasks.has(plot.dataset.task);
  const all = legend.querySelectorAll(".task").length;
  document.body.style.setProperty("--n", Math.max(1, Math.min(4, all - tasks.size)));
}
legend?.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
  refresh();
});

// Values under the pointer, read back from the paths.
const WIDTH = 2000, HEIGHT = 1000;
const tip = document.getElementById("tip");
const names = {};
for (const chip of document.querySelectorAll(".legend .chip")) names[chip.classList[1]] = chip.textContent;
const words = { policy: "bare policy", training: "training", published: "published", seed: "seed" };

function axis(text) {
  const [kind, low, high, unit] = text.split(",").map((part, i) => i ? Number(part) : part);
  const bend = { linear: v => v, log: Math.log10, asinh: v => Math.asinh(v / unit) }[kind];
  const back = { linear: v => v, log: v => 10 ** v, asinh: v => unit * Math.sinh(v) }[kind];
  return share => back(bend(low) + share * (bend(high) - bend(low)));
}
function points(path) {
  const numbers = path.getAttribute("d").match(/-?\d+/g).map(Number);
  if (path.classList.contains("dot")) {  // M x y h 0, for every point
    return Array.from({ length: numbers.length / 3 }, (_, i) => [numbers[3 * i], numbers[3 * i + 1]]);
  }
  const out = [];
  for (let i = 0, x = 0, y = 0; i < numbers.length; i += 2) out.push([x += numbers[i], y += numbers[i + 1]]);
  return out;
}
function content(area) {
  if (area.content) return area.content;
  const svg = area.querySelector("svg"), bands = {};
  for (const path of svg.querySelectorAll(".band")) {
    const all = points(path), half = all.length / 2;
    bands[path.classList[1] + path.classList[2]] = i => [all[all.length - 1 - i][1], all[i][1]];
    if (!half) delete bands[path.classList[1] + path.classList[2]];
  }
  const lines = [...svg.querySelectorAll(".line,.dot")].map(path => {
    const [, method, kind] = path.classList;
    return { path, method, kind, points: points(path), band: bands[method + kind] };
  });
  return area.content = { svg, lines, x: axis(area.dataset.x), y: axis(area.dataset.y) };
}
function text(value) {
  const size = Math.abs(value);
  if (size >= 1e5) return (value / (size >= 1e6 ? 1e6 : 1e3)).toPrecision(3) + (size >= 1e6 ? "M" : "k");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size < 1e-4 && size > 0 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}
let cross = null;
function leave() {
  tip.hidden = true;
  cross?.remove();
  cross = null;
}
function show(area, at, left, top) {
  const { svg, lines, x, y } = content(area), rows = [];
  const box = svg.getBoundingClientRect();
  let place = null;
  for (const line of lines) {
    if (line.kind === "k-seed" || getComputedStyle(line.path).display === "none") continue;
    let best = 0;
    line.points.forEach((p, i) => { if (Math.abs(p[0] - at) < Math.abs(line.points[best][0] - at)) best = i; });
    const [px, py] = line.points[best];
    if (Math.abs(px - at) > 0.06 * WIDTH) continue;  // no point of this line is near
    if (place === null || Math.abs(px - at) < Math.abs(place - at)) place = px;
    const value = v => text(y(1 - v / HEIGHT));
    const reach = line.band ? line.band(best).map(value).join(" to ") : "";
    rows.push({ py, method: line.method, what: words[line.kind.slice(2)] || "", value: value(py), reach });
  }
  leave();
  if (!rows.length) return;
  rows.sort((a, b) => a.py - b.py);
  const table = document.createElement("table");
  for (const row of rows) {
    const line = table.insertRow();
    const name = document.createElement("span");
    name.className = "chip " + row.method;
    name.textContent = [names[row.method] || "", row.what].filter(Boolean).join(", ");
    line.insertCell().append(name);
    line.insertCell().textContent = row.value;
    line.insertCell().textContent = row.reach;
  }
  const head = document.createElement("div"), label = area.querySelector(".xs b");
  head.className = "head";
  const own = [...area.querySelectorAll(".xs i")];
  const near = own.find(i => Math.abs(parseFloat(i.style.left) - place / WIDTH * 100) < 0.5);
  const number = label && near && Number.isNaN(Number(near.textContent.replace(/[kM]$/, "")))
    ? near.textContent : text(Number(x(place / WIDTH).toPrecision(3)));  // to 0.1 % of the axis
  head.textContent = `${number} ${label ? label.textContent : "environment frames"}`;
  tip.replaceChildren(head, table);
  tip.hidden = false;
  cross = document.createElement("div");
  cross.className = "cross";
  cross.style.left = `${svg.parentElement.clientWidth - box.width + place / WIDTH * box.width}px`;
  area.append(cross);
  const size = tip.getBoundingClientRect();
  const beside = left + 16 + size.width > innerWidth ? left - 16 - size.width : left + 16;
  tip.style.left = `${Math.max(4, Math.min(beside, innerWidth - size.width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(top + 12, innerHeight - size.height - 4))}px`;
}
for (const area of document.querySelectorAll(".area")) {
  area.addEventListener("pointermove", event => {
    const box = area.querySelector("svg").getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * WIDTH;
    if (at < 0) leave(); else show(area, at, event.clientX, event.clientY);
  });
  area.addEventListener("pointerleave", leave);
  area.addEventListener("blur", leave);
  area.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") leave();
    if (!step) return;
    event.preventDefault();
    const { svg, lines } = content(area);
    const stops = [...new Set(lines.flatMap(line => line.points.map(p => p[0])))].sort((a, b) => a - b);
    const now = area.at ?? (step > 0 ? -Infinity : Infinity);
    const next = step > 0 ? stops.find(s => s > now) : stops.findLast(s => s < now);
    if (next === undefined) return;
    area.at = next;
    const box = svg.getBoundingClientRect();
    show(area, next, box.left + next / WIDTH * box.width, box.top + 20);
  });
}
addEventListener("scroll", leave, { passive: true });
