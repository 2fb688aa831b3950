"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const blocks = data.stages.flatMap((stage) => stage.blocks);
const last = data.moments.length - 1;
const NUMBERS = [
  ["shortcut_norm", "|g| by shortcut"], ["branch_norm", "|g| by branch"],
  ["whole_norm", "|g| whole"], ["share", "shortcut's share"], ["cosine", "cosine"],
  ["x_rms", "rms of x"], ["f_rms", "rms of F(x)"],
];
const PLAIN_ROWS = ["gradient by the branch", "forward: size of F(x)"];
let epoch = last, chosen = 0, timer = null;

const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
const percent = (value) => `${Math.round(100 * value)} %`;
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 0.001 && size < 1000 ? value.toPrecision(3) : value.toExponential(2);
}
function shown(name, value) {
  if (name === "share") return percent(value);
  return name === "cosine" ? value.toFixed(2).replace("-", "−") : short(value);
}
const at = (name, block) => data.moments[epoch][name][block];
const isPlain = (block) => data.shortcuts[block] === "none";

const MARKS = { padding: "pad", projection: "1x1" };
function tile(index) {
  const share = isPlain(index) ? 0 : at("share", index), T = 13;
  const s = T * share, b = T * (1 - share), mark = MARKS[data.shortcuts[index]];
  return `<svg viewBox="0 0 100 106" aria-hidden="true">
    <path class="trunk" stroke-width="${T}" d="M-1 32H12M88 32H101"/>
    ${s ? `<path class="ribbon s" stroke-width="${s}" d="M12 32H88"/>` : ""}
    ${b ? `<path class="ribbon b" stroke-width="${b}"
      d="M88 32C80 32 84 72 72 72H28C16 72 20 32 12 32"/>` : ""}
    ${s > 4 ? '<path class="arrow" d="M33 29L27 32L33 35Z"/>' : ""}
    ${mark ? `<rect class="mark" x="36" y="23" width="28" height="18" rx="3"/>
      <text x="50" y="36">${mark}</text>` : ""}
    <rect class="f" x="31" y="58" width="38" height="28" rx="4"/>
    <text x="50" y="76">F</text>
    <circle class="join" cx="88" cy="32" r="7"/>
    ${isPlain(index) ? "" : '<path class="plus" d="M84 32H92M88 28V36"/>'}
    ${isPlain(index) ? "" : `<text class="s" x="50" y="17">${percent(share)}</text>`}
    <text class="b" x="50" y="100">${percent(1 - share)}</text>
  </svg>`;
}

function cap(text, side) {
  const part = document.createElement("div");
  part.className = "cap";
  part.setAttribute("aria-hidden", "true");
  const line = side === "left" ? "M46 32H60" : "M0 32H14";
  const x = side === "left" ? 4 : 14;
  part.innerHTML = `<svg viewBox="0 0 60 106"><path class="trunk" stroke-width="13" d="${line}"/>
    <rect class="end" x="${x}" y="17" width="42" height="30" rx="4"/>
    <text x="${x + 21}" y="36">${text}</text></svg>`;
  return part;
}

// The gradient by depth: this epoch in full, the others as shadows; one log scale for all.
const WAYS = [["whole_norm", "sum"], ["shortcut_norm", "s"], ["branch_norm", "b"]];
const sizes = data.moments.flatMap((m) => WAYS.flatMap(([name]) => m[name])).filter((v) => v > 0);
const lowest = Math.floor(Math.log10(Math.min(...sizes)));
const highest = Math.ceil(Math.log10(Math.max(...sizes)));
function profile() {
  const n = blocks.length, W = 920, H = n <= 10 ? 320 : 220, left = 52, right = 14;
  const x = (i) => left + (W - left - right) * (i + 0.5) / n;
  const y = (v) => 12 + (H - 34) * (highest - Math.log10(v)) / (highest - lowest || 1);
  const line = (values) => values.map((v, i) => (v > 0 ? `${x(i).toFixed(1)} ${y(v).toFixed(1)}` : ""))
    .filter(Boolean).join("L");
  const decades = Array.from({ length: highest - lowest + 1 }, (_, i) => lowest + i);
  const grid = decades.map((d) => `<path class="axis" d="M${left} ${y(10 ** d)}H${W - right}"/>
    <text x="${left - 8}" y="${y(10 ** d) + 4}" style="text-anchor:end">${Math.abs(d) < 4 ? Number(`1e${d}`) : `1e${d}`}</text>`).join("");
  const shadows = data.moments.map((m) =>
    `<path class="ribbon shadow" d="M${line(m.whole_norm)}"/>`).join("");
  const now = WAYS.filter(([, way]) => way !== "s" || !data.shortcuts.every((k) => k === "none"))
    .map(([name, way]) => `<path class="ribbon ${way}" stroke-width="2" stroke-linejoin="round"
      d="M${line(data.moments[epoch][name])}"/>` + data.moments[epoch][name].map((v, i) => (v > 0
      ? `<circle class="dot ${way}" cx="${x(i)}" cy="${y(v)}" r="${n > 30 ? 1.5 : 3}"/>` : "")).join(""))
    .join("");
  const every = Math.ceil(n / 12);
  const names = blocks.map((block, i) => (i % every ? "" :
    `<text x="${x(i)}" y="${H - 4}">${safe(block.name)}</text>`)).join("");
  find("profile").innerHTML = `<svg viewBox="0 0 ${W} ${H}" role="img"
    aria-label="Size of the gradient at every block's input">${grid}${shadows}
    <path class="here" d="M${x(chosen)} 12V${H - 20}"/>${now}${names}</svg>
    <figcaption>size of the gradient at every block's input: <b class="s">by the shortcut</b>,
    <b class="b">by the branch</b>, <b>together</b>; grey: together, at the other epochs</figcaption>`;
}

function spoken(index) {
  const ways = isPlain(index) ? "all of the gradient by the branch, no shortcut"
    : `${percent(at("share", index))} of the gradient by the shortcut, ` +
      `${percent(1 - at("share", index))} by the branch, cosine ${at("cosine", index).toFixed(2)}`;
  return `${blocks[index].name}: ${ways}, size ${short(at("whole_norm", index))}`;
}

const buttons = [];
function build() {
  document.title = data.title;
  find("title").textContent = data.title;
  find("facts").textContent = data.facts.join(" · ");
  // A short net stands in one row, a longer one has a row per stage; 1.3: stem and loss.
  const longest = Math.max(...data.stages.map((stage) => stage.blocks.length));
  const across = (blocks.length <= 10 ? blocks.length : Math.min(longest, 12)) + 1.3;
  find("net").style.setProperty("--tile", `clamp(4.6rem, ${100 / across}cqi, 8rem)`);
  for (const stage of data.stages) {
    const [C, H, W] = stage.blocks[0].output;
    const part = document.createElement("div");
    part.className = "stage";
    part.setAttribute("role", "group");
    part.setAttribute("aria-label", stage.name);
    const heading = document.createElement("h3");
    heading.textContent = stage.name;
    const note = document.createElement("span");
    note.textContent = `${C} channels of ${H}x${W}`;
    heading.append(note);
    const row = document.createElement("div");
    row.className = "blocks";
    for (let i = 0; i < stage.blocks.length; i++) {
      const index = buttons.length, button = document.createElement("button");
      button.type = "button";
      button.className = "block";
      button.addEventListener("focus", () => choose(index));
      button.addEventListener("click", () => choose(index));
      button.addEventListener("keydown", (event) => step(event, index));
      buttons.push(button);
      row.append(button);
    }
    part.append(heading, row);
    find("net").append(part);
  }
  const rows = find("net").querySelectorAll(".blocks");
  rows[0].prepend(cap("stem", "left"));
  rows[rows.length - 1].append(cap("loss", "right"));
  const slider = find("epoch");
  slider.max = last;
  slider.value = epoch;
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  find("play").addEventListener("click", () => (timer ? stop() : play()));
  find("all").addEventListener("toggle", fill);
  if (last === 0) for (const part of [slider, find("play")]) part.disabled = true;
  stop();
  show(epoch);
}

function step(event, index) {
  const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: blocks.length - 1 };
  if (!(event.key in to) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  buttons[Math.min(Math.max(to[event.key], 0), blocks.length - 1)].focus();
}

function play() {
  if (epoch === last) show(0);
  timer = setInterval(() => { show(epoch + 1); if (epoch === last) stop(); }, 700);
  icon("Pause", "M3 2h4v12H3zM9 2h4v12H9z");
}
function stop() {
  clearInterval(timer);
  timer = null;
  icon("Play", "M4 2l10 6-10 6z");
}
function icon(label, shape) {
  find("play").setAttribute("aria-label", label);
  find("play").querySelector("path").setAttribute("d", shape);
}

function show(to) {
  epoch = Math.min(Math.max(to, 0), last);
  const slider = find("epoch"), text = data.moments[epoch].text;
  slider.value = epoch;
  slider.setAttribute("aria-valuetext", text);
  find("now").textContent = text;
  buttons.forEach((button, index) => {
    button.innerHTML = tile(index);
    button.setAttribute("aria-label", spoken(index));
  });
  choose(chosen);
  fill();
}

function choose(index) {
  buttons[chosen].setAttribute("aria-pressed", "false");
  chosen = index;
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  const block = blocks[index];
  find("block").textContent = block.name;
  find("kind").textContent =
    `${block.kind}: ${block.layers.join(" → ")}. Shortcut: ${data.names[data.shortcuts[index]]}.`;
  const rows = [
    ["gradient by the shortcut", short(at("shortcut_norm", index)), "s"],
    ["share", percent(at("share", index)), "s"],
    ["gradient by the branch", short(at("branch_norm", index)), "b"],
    ["share", percent(1 - at("share", index)), "b"],
    ["together", short(at("whole_norm", index)), ""],
    ["cosine", shown("cosine", at("cosine", index)), ""],
    ["forward: size of x", short(at("x_rms", index)), ""],
    ["forward: size of F(x)", short(at("f_rms", index)), ""],
  ].filter(([name]) => !isPlain(index) || PLAIN_ROWS.includes(name));
  find("numbers").innerHTML = rows.map(
    ([name, value, way]) => `<dt>${name}</dt><dd class="${way}">${value}</dd>`).join("");
  find("vectors").innerHTML = isPlain(index) ? "" : vectors(index);
  find("course").innerHTML = course(index);
  profile();
}

// The two parts as vectors in the plane that holds them, and their sum.
function vectors(index) {
  const s = at("shortcut_norm", index), b = at("branch_norm", index), cosine = at("cosine", index);
  const sine = Math.sqrt(Math.max(0, 1 - cosine * cosine));
  const tips = [[s, 0], [b * cosine, b * sine], [s + b * cosine, b * sine]];
  const low = Math.min(0, ...tips.map((p) => p[0])), high = Math.max(...tips.map((p) => p[0]));
  const up = Math.max(...tips.map((p) => p[1]));
  const scale = Math.min(220 / (high - low || 1), 84 / (up || 1));
  const place = ([x, y]) => [
    20 + (220 - scale * (high - low)) / 2 + scale * (x - low), 98 - scale * y];
  const [o, p, q, r] = [[0, 0], ...tips].map(place);
  const arrow = (from, to, way, width) => {
    const dx = to[0] - from[0], dy = to[1] - from[1], length = Math.hypot(dx, dy);
    if (length < 1) return "";
    const [ux, uy] = [dx / length, dy / length], head = Math.min(8, length / 2);
    const back = [to[0] - head * ux, to[1] - head * uy];
    return `<path class="ribbon ${way}" stroke-width="${width}" d="M${from}L${to}
      M${back[0] - head * 0.5 * uy} ${back[1] + head * 0.5 * ux}L${to}
      L${back[0] + head * 0.5 * uy} ${back[1] - head * 0.5 * ux}"/>`;
  };
  return `<svg viewBox="0 0 260 106" role="img" aria-label="The two parts as vectors and their sum,
    cosine ${cosine.toFixed(2)}"><path class="here" d="M${p}L${r}M${q}L${r}" fill="none"/>
    ${arrow(o, r, "sum", 1.4)}${arrow(o, p, "s", 2.4)}${arrow(o, q, "b", 2.4)}</svg>
    <figcaption>the two parts and their sum, as vectors</figcaption>`;
}

// How the share of the shortcut changed over the epochs.
function course(index) {
  const values = data.moments.map((m) => (isPlain(index) ? m.whole_norm : m.share)[index]);
  const logs = isPlain(index) ? values.map((v) => Math.log10(v || 1e-30)) : values;
  const low = isPlain(index) ? Math.min(...logs) : 0, high = isPlain(index) ? Math.max(...logs) : 1;
  const x = (i) => 42 + 206 * (last ? i / last : 0.5);
  const y = (v) => 74 - 62 * (v - low) / (high - low || 1);
  const points = logs.map((v, i) => `${x(i).toFixed(1)} ${y(v).toFixed(1)}`);
  const ends = isPlain(index) ? [short(10 ** low), short(10 ** high)] : ["0", "100 %"];
  const way = isPlain(index) ? "b" : "s";
  return `<svg viewBox="0 0 260 94" role="img" aria-label="Course over the epochs">
    <path class="axis" d="M42 12V74H250M42 12H250${isPlain(index) ? "" : "M42 43H250"}"/>
    <path class="ribbon ${way}" stroke-width="2" stroke-linejoin="round" d="M${points.join("L")}"/>
    <path class="here" d="M${x(epoch)} 12V74"/>
    <circle cx="${x(epoch)}" cy="${y(logs[epoch])}" r="4" fill="var(--ground)" stroke-width="2"
      class="${way}"/>
    <text x="38" y="16" style="text-anchor:end">${ends[1]}</text>
    <text x="38" y="78" style="text-anchor:end">${ends[0]}</text>
    <text x="42" y="90">0</text><text x="250" y="90">${last}</text><text x="146" y="90">epoch</text>
    </svg><figcaption>${isPlain(index) ? "size of the gradient" : "the shortcut's share"}
    by epoch</figcaption>`;
}

// Every number of the epoch as a table: only when it is asked for.
function fill() {
  if (!find("all").open) return;
  const head = ["block", "shortcut", ...NUMBERS.map(([, title]) => title)];
  const rows = blocks.map((block, i) => [
    block.name, data.names[data.shortcuts[i]], ...NUMBERS.map(([name]) => shown(name, at(name, i)))]);
  find("table").innerHTML =
    `<caption>${safe(data.moments[epoch].text)}</caption>` +
    `<thead><tr>${head.map((h) => `<th scope="col">${h}</th>`).join("")}</tr></thead>` +
    `<tbody>${rows.map((r) => `<tr>${r.map((c) => `<td>${safe(c)}</td>`).join("")}</tr>`).join("")}</tbody>`;
}

build();
