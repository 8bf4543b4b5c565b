// Tables, pictures, the comparison, and what ties the parts together.
const state = { a: 0, b: -1, layer: null, metric: metricsAtHand()[0], hidden: new Set(), shown: "all" };

function sortable(table, rows, headings) {
  // rows: arrays of {text, sort}; headings: names. Sorting keeps to the table's own rows.
  let at = -1, down = false;
  const draw = () => {
    const order = [...rows];
    if (at >= 0) {
      const key = (row) => row.cells[at].sort;
      order.sort((p, q) => {
        if (key(p) === null || key(q) === null) return (key(p) === null) - (key(q) === null);
        return (down ? -1 : 1) * (typeof key(p) === "string" ? key(p).localeCompare(key(q)) : key(p) - key(q));
      });
    }
    const head = headings.map((name, i) => html("th", { scope: "col", "aria-sort": i !== at ? "none" : down ? "descending" : "ascending" },
      html("button", { type: "button", "data-column": i, onclick: () => { down = i === at ? !down : i > 0; at = i; draw(); table.querySelector(`[data-column="${i}"]`).focus(); } }, name)));
    table.replaceChildren(html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...order.map((row) =>
      html("tr", row.attributes, ...row.cells.map((cell, i) => html(i ? "td" : "th", i ? {} : { scope: "row" }, cell.node || cell.text))))));
  };
  draw();
}

function layersTable(pick) {
  const headings = ["layer", "number", "1 − ρ²", "ρ", "bits", "stored", "entropy", "bytes", "codes", "levels", "scales", "weights", "shape"];
  const rows = RESULTS[state.a].layers.map((layer, i) => {
    const cell = (value, text) => ({ sort: value, text: value === null ? "–" : text ? text(value) : grouped(value) });
    const parts = layer.parts || [null, null, null];
    return { attributes: { "data-layer": layer.path }, cells: [
      { sort: layer.path, node: html("button", { type: "button", class: "pick", onclick: () => pick(layer.path) }, layer.path) },
      cell(i + 1), cell(layer.lost, (x) => x.toExponential(2)), cell(layer.rho, (x) => x.toFixed(5)), cell(layer.bits),
      cell((8 * layer.bytes) / layer.size, (x) => x.toFixed(2)), cell(layer.entropy, (x) => x.toFixed(2)), cell(layer.bytes),
      ...parts.map((part) => cell(part)), cell(layer.size), { sort: layer.shape.join("×"), text: layer.shape.join("×") },
    ] };
  });
  sortable(find("#layers-table"), rows, headings);
}

// The results table stands in the page already: its rows are moved.
function resultsTable(choose) {
  const table = find("#results-table"), bodies = [...table.tBodies].slice(1);
  const homes = bodies.map((body) => [body, [...body.rows]]);
  const all = homes.flatMap(([, rows]) => rows).filter((row) => row.dataset.result);
  let at = null, down = true;
  const key = (row) => {
    if (at < 0) return row.cells[0].textContent;
    const value = row.cells[at + 1].dataset.sort;
    return value === undefined ? null : Number(value);
  };
  const home = () => { for (const [body, rows] of homes) body.append(...rows); };
  for (const button of table.tHead.querySelectorAll("button"))
    button.addEventListener("click", () => {
      const column = Number(button.dataset.column);
      if (at === column && !down) at = null; // the third time: as it was
      else [at, down] = [column, at === column ? false : column >= 0];
      if (at !== null && at < 0 && at !== column) down = false;
      for (const th of table.tHead.rows[0].cells) th.setAttribute("aria-sort", "none");
      table.classList.toggle("sorted", at !== null);
      home();
      if (at === null) return;
      button.parentElement.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = [...all].sort((p, q) => {
        const [x, y] = [key(p), key(q)];
        if (x === null || y === null) return (x === null) - (y === null);
        return (down ? -1 : 1) * (typeof x === "string" ? x.localeCompare(y) : x - y);
      });
      bodies[0].append(...sorted);
    });
  for (const row of all)
    row.querySelector("button.pick").addEventListener("click", () => choose(Number(row.dataset.result)));
}

function markRows() {
  for (const row of document.querySelectorAll("#results-table tr[data-result]")) {
    const number = Number(row.dataset.result);
    if (number === state.a) row.dataset.mark = "a";
    else if (number === state.b) row.dataset.mark = "b";
    else delete row.dataset.mark;
  }
}

// -- Pictures

function picturesPart(redraw) {
  const a = RESULTS[state.a], b = RESULTS[state.b], run = runOf(a), pictures = run.pictures;
  const grid = find("#pictures-grid"), claim = find("#pictures-claim");
  const known = pictures && a.answers;
  find("#pictures-shown").hidden = !known || !pictures.shown.length;
  find("#matrix-box").hidden = !known || !a.answers.matrix;
  if (!known) {
    claim.textContent = "What A makes of single pictures was not recorded";
    grid.replaceChildren();
    find("#confused").replaceChildren();
    return;
  }
  const name = (c) => (c < 0 ? "unknown" : pictures.names[c] || `class ${c}`);
  const others = b && b.answers && runOf(b).pictures && b.answers.shown.length === a.answers.shown.length ? b.answers : null;
  const changed = a.answers.shown.map(([c], i) => pictures.shown[i].float && c !== pictures.shown[i].float[0]);
  const count = changed.filter(Boolean).length;
  claim.textContent = pictures.shown.length
    ? `A gives another answer than the float network to ${count} of the ${pictures.shown.length} pictures shown`
    : "The pictures themselves were not recorded";
  choices(find("#pictures-shown"), [["all", "all pictures"], ["changed", `changed by A (${count})`]], state.shown,
    (value) => { state.shown = value; redraw(); });
  const answer = (who, [c, sure], reference, views) => {
    const isSame = reference === null || c === reference;
    const sign = reference === null ? "" : isSame ? "=\u00a0" : "≠\u00a0";
    const counted = views && pictures.views > 1 ? `; ${views[0]} of ${pictures.views} views as\u00a0float` : "";
    return html("p", { class: isSame ? "same" : "changed" },
      `${who}: ${sign}${name(c)} (${Math.round(100 * sure)}\u00a0%${counted})`);
  };
  const cards = pictures.shown.map((one, i) => {
    if (state.shown === "changed" && !changed[i]) return null;
    const truth = one.float && one.float[0];
    return html("figure", { "data-picture": i }, html("img", { src: one.uri, alt: `picture of: ${name(one.label)}`, width: 96, height: 96 }),
      html("p", {}, html("b", {}, one.label < 0 ? "no label" : name(one.label))),
      one.float ? answer("float", one.float, null) : null, answer("A", a.answers.shown[i], truth, a.answers.same && [a.answers.same[i]]),
      others ? answer("B", others.shown[i], truth, others.same && [others.same[i]]) : null);
  });
  grid.replaceChildren(...cards.filter(Boolean));
  const head = ["float network", "A", pictures.views > 1 ? "views" : "pictures"];
  find("#confused").replaceChildren(
    html("thead", {}, html("tr", {}, ...head.map((text) => html("th", { scope: "col" }, text)))),
    html("tbody", {}, ...(a.answers.confused.length ? a.answers.confused : [null]).map((row) => (row
      ? html("tr", {}, html("th", { scope: "row" }, name(row[0])), html("td", {}, name(row[1])), html("td", {}, String(row[2])))
      : html("tr", {}, html("th", { scope: "row" }, "none"), html("td", {}, "–"), html("td", {}, "0"))))));
  if (a.answers.matrix) confusionMatrix(a.answers.matrix, name);
}

function confusionMatrix({ classes, counts }, name) {
  const rows = counts.map((row, i) => {
    const total = row.reduce((p, q) => p + q, 0);
    return html("tr", {}, html("th", { scope: "row" }, name(classes[i])), ...row.map((n, j) => {
      const cell = html("td", { title: `${name(classes[i])} taken for ${name(classes[j])}: ${n} of ${total}` }, n ? String(n) : "·");
      const strength = total ? Math.sqrt(n / total) : 0;
      cell.style.background = `color-mix(in srgb, var(--${i === j ? "a" : "b"}) ${Math.round(60 * strength)}%, transparent)`;
      return cell;
    }));
  });
  find("#matrix").replaceChildren(
    html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "label \\ answer"), ...classes.map((c) => html("th", { scope: "col" }, name(c))))),
    html("tbody", {}, ...rows));
}

// -- A and B in figures

function difference(metric) {
  const table = DATA.differences[metric] || {}, i = Math.min(state.a, state.b), j = Math.max(state.a, state.b);
  const range = table[i] && table[i][j];
  return !range ? null : state.a < state.b ? range : [-range[1], -range[0]];
}

function comparePart() {
  const a = RESULTS[state.a], b = RESULTS[state.b];
  const ranged = (r, name, text) => (!r || r[name] === null ? "–" : text(r[name]) +
    (r[`${name}Range`] ? ` (${text(r[`${name}Range`][0])} to ${text(r[`${name}Range`][1])})` : ""));
  const sign = (x, text) => `${x < 0 ? "−" : "+"}${text(Math.abs(x))}`;
  const points = (x) => `${(100 * x).toFixed(1)} points`, sizes = (x) => kilo(x);
  const rows = [
    ["file", "bytes", sizes, sizes], ["stored bits a weight", "stored", (x) => x.toFixed(3), (x) => x.toFixed(3)],
    ["1 − ρ² of the mean ρ", "noise", (x) => x.toExponential(2), (x) => x.toExponential(2)],
    ["agreement with float", "agreement", percent, points], ["KL from float, nats", "kl", number, number],
    ["top-1", "top1", percent, points], ["top-5", "top5", percent, points],
  ].filter(([, name]) => a[name] !== null || (b && b[name] !== null));
  const body = rows.map(([text, name, one, less]) => {
    const range = b ? difference(name) : null, both = b && a[name] !== null && b[name] !== null;
    const gap = both ? sign(a[name] - b[name], less) + (range ? ` (${sign(range[0], less)} to ${sign(range[1], less)})` : "") : "–";
    return html("tr", { "data-figure": name }, html("th", { scope: "row" }, text), html("td", {}, ranged(a, name, one)),
      html("td", {}, ranged(b, name, one)), html("td", {}, gap));
  });
  find("#compare-table").replaceChildren(
    html("thead", {}, html("tr", {}, ...["figure", "A", "B", "A less B"].map((text) => html("th", { scope: "col" }, text)))),
    html("tbody", {}, ...body));
  find("#compare-claim").textContent = compareClaim(a, b);
  const same = b && runOf(a).network === runOf(b).network;
  find("#compare-note").textContent = (b && !same ? "A and B are of different networks. " : "") +
    "In brackets: 95 % intervals; of differences where both were measured on the same pictures, which are drawn in pairs.";
}

function compareClaim(a, b) {
  if (!b) return "Choose a B above, and it stands beside A here";
  const size = a.bytes === b.bytes ? "as large as B" : a.bytes < b.bytes
    ? `${percent(1 - a.bytes / b.bytes, 0)} smaller than B` : `${percent(a.bytes / b.bytes - 1, 0)} larger than B`;
  const range = difference("agreement");
  if (!range || a.agreement === null || b.agreement === null) return `A is ${size}`;
  const gap = 100 * (a.agreement - b.agreement);
  const clear = range[0] > 0 || range[1] < 0;
  if (gap === 0 && !clear) return `A is ${size} and keeps as many answers`;
  return `A is ${size} and keeps ${Math.abs(gap).toFixed(1)} points ${gap < 0 ? "fewer" : "more"} of the answers` +
    (clear ? ", more than chance among pictures explains" : ", which chance among pictures could explain");
}

// -- Together

function firstChoice() {
  const own = RESULTS.map((r, i) => [r, i]).filter(([r]) => !r.peer);
  const good = own.filter(([r]) => r.agreement !== null && r.agreement >= 0.95).sort(([p], [q]) => p.bytes - q.bytes || q.agreement - p.agreement);
  const some = good[0] || own.sort(([p], [q]) => Math.abs(p.bits - 4) - Math.abs(q.bits - 4) || p.noise - q.noise)[0] || [RESULTS[0], 0];
  state.a = some[1];
  const twin = RESULTS.findIndex((r) => r.run !== some[0].run && r.method === some[0].method && r.bits === some[0].bits);
  const plain = RESULTS.findIndex((r, i) => i !== state.a && r.bits === some[0].bits && !r.peer && r.run === some[0].run);
  state.b = twin >= 0 ? twin : plain;
}

function fillSelects() {
  for (const [id, empty] of [["a", false], ["b", true]]) {
    const groups = RUNS.map((run, i) => {
      const options = RESULTS.map((r, n) => (r.run === i ? html("option", { value: n }, `${r.method} @ ${r.bits}${r.peer ? " (peer)" : ""}`) : null)).filter(Boolean);
      return many ? [html("optgroup", { label: run.name }, ...options)] : options;
    }).flat();
    find(`#${id}`).replaceChildren(...(empty ? [html("option", { value: -1 }, "nothing")] : []), ...groups);
    find(`#${id}`).addEventListener("change", (event) => { state[id] = Number(event.target.value); update(); });
  }
  const layer = find("#layer");
  if (layer) layer.addEventListener("change", () => pickLayer(layer.value));
}

function fillLayers() {
  const layers = RESULTS[state.a].layers;
  if (!layers.some((layer) => layer.path === state.layer)) {
    const worst = [...layers].sort((p, q) => q.size - p.size)[0];
    state.layer = worst ? worst.path : null;
  }
  find("#layer").replaceChildren(...layers.map((layer, i) => html("option", { value: layer.path }, `${i + 1}  ${layer.path}`)));
  find("#layer").value = state.layer;
}

function choose(number) {
  state.a = number;
  update();
}

function pickLayer(path) {
  state.layer = path;
  drawLayers();
}

function drawLayers() {
  if (!find("#layer")) return;
  fillLayers();
  noiseChart(state, pickLayer);
  bitsChart(state, pickLayer);
  densityChart("density-a", "A", RESULTS[state.a], state.layer);
  densityChart("density-b", "B", RESULTS[state.b], state.layer);
}

function drawLoss() {
  if (!state.metric) { find("#loss-chart").hidden = true; return; }
  choices(find("#loss-chart .choices"), metricsAtHand().map((m) => [m, METRICS[m].short]), state.metric,
    (value) => { state.metric = value; drawLoss(); });
  const series = lossChart(state, (number) => {
    choose(number);
    const point = find(`#loss-chart [data-result="${number}"]`);
    if (point) point.focus();
  });
  lossLegend(state, series, (name) => {
    drawLoss();
    [...document.querySelectorAll("#loss-chart [data-series]")].find((button) => button.dataset.series === name).focus();
  });
}

function update() {
  find("#a").value = state.a;
  find("#b").value = state.b;
  markRows();
  drawLoss();
  drawLayers();
  if (find("#layer")) { layersTable(pickLayer); bytesChart(state); }
  if (find("#pictures-grid")) picturesPart(() => picturesPart(update));
  comparePart();
}

function themes() {
  const names = ["auto", "light", "dark"], button = find("#theme");
  button.addEventListener("click", () => {
    const next = names[(names.indexOf(find("#theme-name").textContent) + 1) % 3];
    find("#theme-name").textContent = next;
    button.setAttribute("aria-label", `Colours: ${next === "auto" ? "as the system has them" : next}`);
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
  });
}

firstChoice();
fillSelects();
resultsTable(choose);
themes();
update();
let wide = document.documentElement.clientWidth;
addEventListener("resize", () => {
  if (wide !== document.documentElement.clientWidth) { wide = document.documentElement.clientWidth; update(); }
});
