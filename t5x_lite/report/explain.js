// Attention: small maps of every layer and head, one of them large; tokens that can be chosen.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const $ = id => document.getElementById(id);
const maps = Object.entries(data.attention).map(([kind, map]) => {
  const bytes = Uint8Array.from(atob(map.weights), c => c.charCodeAt(0));
  return { kind, ...map, bytes };
});
let shown = maps.length ? { map: maps[0], layer: 0, head: 0 } : null;
let query = null;

const weight = (map, layer, head, q, k) =>
  (map.bytes[((layer * map.heads + head) * map.queries + q) * map.keys + k] / 255) ** 2;

function paint(canvas, map, layer, head) {
  canvas.width = map.keys;
  canvas.height = map.queries;
  const context = canvas.getContext("2d"), image = context.createImageData(map.keys, map.queries);
  const ink = dark.matches ? [132, 162, 255] : [30, 70, 170], cells = map.keys * map.queries;
  const bytes = map.bytes.subarray((layer * map.heads + head) * cells, (layer * map.heads + head + 1) * cells);
  const most = bytes.reduce((a, b) => Math.max(a, b), 1); // roots of weights: small ones are seen, too
  bytes.forEach((byte, i) => image.data.set([...ink, 255 * byte / most], 4 * i));
  context.putImageData(image, 0, 0);
}

function tokens_of(map) {
  return { queries: [...$(map.query_side).children], keys: [...$(map.key_side).children] };
}

function show() {
  const { map, layer, head } = shown;
  paint($("large"), map, layer, head);
  $("large").style.aspectRatio = `${map.keys} / ${map.queries}`;
  $("which").textContent = `${map.kind}, layer ${layer}, head ${head}`;
  for (const small of document.querySelectorAll(".small canvas"))
    small.classList.toggle("chosen", +small.dataset.layer === layer && +small.dataset.head === head);
  light();
}

function light() { // the keys that the chosen query attends to
  for (const token of document.querySelectorAll(".token")) {
    token.style.outline = "";
    token.style.boxShadow = "";
  }
  if (!shown || query === null) return;
  const { map, layer, head } = shown, { queries, keys } = tokens_of(map);
  if (!queries[query]) return;
  queries[query].style.outline = "2px solid var(--accent)";
  keys.forEach((key, i) => {
    const k = i + map.shift, value = k < map.keys ? weight(map, layer, head, query, k) : 0;
    key.style.boxShadow = value > 0.02 ? `inset 0 -${(0.9 * value).toFixed(2)}em var(--accent)` : "";
  });
}

function grid() {
  const { map } = shown, place = $("maps");
  place.textContent = "";
  for (let layer = 0; layer < map.layers; layer++) {
    const row = place.appendChild(document.createElement("div"));
    row.className = "small";
    row.append(`${layer}`);
    for (let head = 0; head < map.heads; head++) {
      const canvas = row.appendChild(document.createElement("canvas"));
      Object.assign(canvas.dataset, { layer, head });
      canvas.title = `layer ${layer}, head ${head}`;
      canvas.onclick = () => { Object.assign(shown, { layer, head }); show(); };
      paint(canvas, map, layer, head);
    }
  }
  show();
}

function details(token) {
  const box = $("details");
  box.textContent = "";
  const rows = JSON.parse(token.dataset.alternatives || "[]");
  box.append(token.dataset.about || "");
  for (const [text, one] of rows) {
    const row = box.appendChild(document.createElement("div"));
    const bar = row.appendChild(document.createElement("span"));
    bar.className = "probability";
    bar.style.width = `${Math.max(1, 100 * Math.exp(one)).toFixed(1)}px`;
    row.append(` ${text}  ${one.toFixed(2)}`);
  }
}

for (const token of document.querySelectorAll(".token")) {
  token.onclick = () => {
    details(token);
    const side = token.parentElement.id, i = [...token.parentElement.children].indexOf(token);
    const fits = shown && shown.map.query_side === side ? shown.map : maps.find(m => m.query_side === side);
    if (!fits) return;
    const other = fits !== shown.map;
    query = i;
    if (other) { shown = { map: fits, layer: 0, head: 0 }; $("kind").value = fits.kind; }
    other ? grid() : light();
  };
}
if (shown) {
  $("kind").onchange = () => {
    shown = { map: maps.find(map => map.kind === $("kind").value), layer: 0, head: 0 };
    query = null;
    grid();
  };
  $("large").onpointermove = event => {
    const { map, layer, head } = shown, box = $("large").getBoundingClientRect();
    const k = Math.min(map.keys - 1, Math.floor((event.clientX - box.left) / box.width * map.keys));
    const q = Math.min(map.queries - 1, Math.floor((event.clientY - box.top) / box.height * map.queries));
    if (k < 0 || q < 0) return;
    const { queries, keys } = tokens_of(map);
    const text = node => (node ? JSON.stringify(node.textContent) : "the start");
    const value = weight(map, layer, head, q, k).toFixed(3);
    $("cell").textContent = `${text(queries[q])} to ${text(keys[k - map.shift])}: ${value}`;
    query = q;
    light();
  };
  dark.addEventListener("change", grid);
  grid();
}
const seen = [...document.querySelectorAll("[data-heat]")];
seen.sort((a, b) => b.dataset.heat - a.dataset.heat)[0]?.click(); // where the model is most wrong
