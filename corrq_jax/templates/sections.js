// The parts of the page: each draws itself from the state, and says in words what is seen.
const RESULTS = DATA.results, RUNS = DATA.runs;
const METRICS = {
  agreement: { name: "same best class as the float network (higher is better)", kind: "linear",
    short: "agreement", text: percent, tick: (x) => `${Math.round(100 * x)} %`, better: 1 },
  kl: { name: "KL divergence from the float network, nats (lower is better)", kind: "log",
    short: "KL", text: (x) => number(x), better: -1 },
  noise: { name: "1 − ρ², share of variance lost (lower is better)", kind: "log", short: "1 − ρ²",
    text: share, tick: share, better: -1 },
  top1: { name: "top-1, the label is the best class (higher is better)", kind: "linear", short: "top-1",
    text: percent, tick: (x) => `${Math.round(100 * x)} %`, better: 1 },
};
const many = RUNS.length > 1;
const runOf = (result) => RUNS[result.run];
const title = (result) => `${result.method} @ ${result.bits}` + (many ? ` (${runOf(result).name})` : "");
const seriesOf = (result) => result.method + (many ? ` (${runOf(result).name})` : "");
const has = (result, metric) => result[metric] !== null && (METRICS[metric].kind !== "log" || result[metric] > 0);
const metricsAtHand = () => Object.keys(METRICS).filter((m) => RESULTS.some((r) => has(r, m)));

function say(id, claim, note) {
  find(`#${id} .claim`).textContent = claim;
  if (note !== undefined) find(`#${id} .note:last-child`).textContent = note;
}

// -- What is lost against the bits that are stored

function lossChart(state, choose) {
  const metric = METRICS[state.metric];
  const all = RESULTS.map((result, index) => ({ result, index })).filter(({ result }) => has(result, state.metric));
  const seen = all.filter(({ result }) => !state.hidden.has(seriesOf(result)));
  const drawn = seen.length ? seen : all;
  const stored = drawn.map(({ result }) => result.stored), values = drawn.map(({ result }) => result[state.metric]);
  const low = Math.min(...values), high = Math.max(...values);
  const y = metric.kind === "log"
    ? { kind: "log", low: low / 1.4, high: high * 1.4 }
    : { kind: "linear", low: 0, high: 1, ticks: [0, 0.2, 0.4, 0.6, 0.8, 1] };
  const bits = [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 12, 16];
  const x = { kind: "log", low: Math.min(...stored) / 1.08, high: Math.max(...stored) * 1.08,
    name: "stored bits a quantized weight, everything counted" };
  x.ticks = bits.filter((b) => b >= x.low && b <= x.high && (b < 6 || b === 8 || b > 9));
  const label = `${metric.short} against stored bits; each point is a result, which Enter chooses as A`;
  const area = chart(find("#loss-chart .plot"), { height: 380, label, x, y: { ...y, name: metric.name, text: metric.tick } });
  const readout = find("#loss-chart .readout");
  const words = (r) => {
    const range = r[`${state.metric}Range`];
    return `${title(r)}: ${metric.short} ${metric.text(r[state.metric])}` +
      (range ? ` (${metric.text(range[0])} to ${metric.text(range[1])})` : "") +
      `, ${r.stored.toFixed(2)} stored bits, ${kilo(r.bytes)}`;
  };
  const lines = new Map();
  for (const one of drawn) {
    const series = seriesOf(one.result);
    if (!lines.has(series)) lines.set(series, []);
    lines.get(series).push(one);
  }
  for (const members of lines.values()) {
    const { style, peer } = members[0].result;
    if (peer) continue;
    members.sort((p, q) => p.result.stored - q.result.stored);
    const d = members.map(({ result: r }) => `${area.sx(r.stored)} ${area.sy(r[state.metric])}`).join("L");
    const line = svg("path", { d: `M${d}`, fill: "none", "stroke-width": 1.5, "stroke-dasharray": style.dashed ? "5 4" : null });
    line.style.stroke = colour(style.color);
    area.root.append(line);
  }
  for (const { result: r, index } of drawn) {
    const px = area.sx(r.stored), py = area.sy(r[state.metric]), range = r[`${state.metric}Range`];
    const mark = svg("path", { d: marker(r.style.marker, px, py, 5), "stroke-width": 1.2 });
    mark.style.stroke = colour(r.style.color);
    mark.style.fill = r.style.dashed ? "var(--card)" : colour(r.style.color);
    const point = svg("g", {
      class: index === state.a || index === state.b ? "point chosen" : "point", tabindex: 0, role: "button",
      "aria-label": words(r), "data-result": index, onclick: () => choose(index),
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(index); } },
      onfocus: () => { readout.textContent = words(r); }, onmouseenter: () => { readout.textContent = words(r); },
    }, svg("circle", { class: "halo", cx: px, cy: py, r: 10 }));
    if (range && (index === state.a || index === state.b)) {
      const within = (v) => area.sy(Math.min(Math.max(v, area.sy.low), area.sy.high));
      const bar = svg("line", { x1: px, x2: px, y1: within(range[0]), y2: within(range[1]), "stroke-width": 2, opacity: 0.6 });
      bar.style.stroke = colour(r.style.color);
      point.append(bar);
    }
    point.append(mark);
    if (index === state.a || index === state.b)
      point.append(svg("text", { class: "name", y: py - 9, ...(index === state.a ? { x: px - 10, "text-anchor": "end" } : { x: px + 10 }) }, index === state.a ? "A" : "B"));
    area.root.append(point);
  }
  readout.textContent = state.a in RESULTS && has(RESULTS[state.a], state.metric)
    ? `A: ${words(RESULTS[state.a])}` : "A point tells its figures when it is pointed at.";
  say("loss-chart", lossClaim(state.metric, all.map(({ result }) => result)),
    "A point that is chosen becomes A below; A and B have their 95 % ranges. Grey: other libraries' quantizers. " +
    "Dashed, open: grids over the plain range of the weights.");
  return [...new Map(all.map(({ result }) => [seriesOf(result), result.style]))];
}

function lossClaim(name, results) {
  const metric = METRICS[name], own = results.filter((r) => !r.peer);
  const spread = (group) => {
    const sorted = [...group].sort((p, q) => metric.better * (q[name] - p[name]));
    return [sorted[0], sorted[sorted.length - 1]];
  };
  let best = null;
  for (const bits of new Set(own.map((r) => r.bits))) {
    const group = own.filter((r) => r.bits === bits);
    if (group.length < 2) continue;
    const [first, last] = spread(group);
    const gap = metric.kind === "log" ? Math.abs(Math.log(first[name] / last[name])) : Math.abs(first[name] - last[name]);
    if (!best || gap > best.gap) best = { gap, bits, first, last };
  }
  if (!best) return `${title(results[0])}: ${metric.short} ${metric.text(results[0][name])}`;
  const { bits, first, last } = best;
  return `Methods differ most at ${bitsText(bits)}: ${seriesOf(first)} has ${metric.short} ` +
    `${metric.text(first[name])}, ${seriesOf(last)} ${metric.text(last[name])}`;
}

function lossLegend(state, series, redraw) {
  find("#loss-chart .legend").replaceChildren(...series.map(([name, style]) =>
    html("button", {
      type: "button", "aria-pressed": String(!state.hidden.has(name)), "data-series": name,
      onclick: () => { if (!state.hidden.delete(name)) state.hidden.add(name); redraw(name); },
    }, swatch(style), name)));
}

// -- Layers

function columns(plot, area, layers, words, readout, pick, picked) {
  const step = (area.width - area.left - area.right) / layers.length;
  layers.forEach((layer, i) => {
    const tell = () => { readout.textContent = words(layer, i); };
    area.root.append(svg("rect", {
      class: layer.path === picked ? "column picked" : "column", x: area.left + i * step, y: area.top, width: step,
      height: area.height - area.bottom - area.top, fill: "transparent", "data-layer": layer.path,
      onmouseenter: tell, onclick: () => pick(layer.path),
    }));
  });
  const at = layers.findIndex((layer) => layer.path === picked);
  if (at >= 0) readout.textContent = words(layers[at], at);
  area.root.setAttribute("tabindex", 0);
  area.root.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    pick(layers[Math.min(Math.max(at + move, 0), layers.length - 1)].path);
    plot.querySelector("svg").focus();
  });
}

const layerAxis = (layers) => ({ kind: "linear", low: 0.5, high: layers.length + 0.5, name: "number of the layer, in the network's order",
  ticks: ticks({ low: 1, high: layers.length }, 8).filter((n) => n >= 1 && n % 1 === 0), text: String });

function noLayers(id, what) {
  find(`#${id} .plot`).replaceChildren();
  say(id, what, "");
  const readout = find(`#${id} .readout`);
  if (readout) readout.textContent = "";
}

function noiseChart(state, pick) {
  const a = RESULTS[state.a], b = RESULTS[state.b], layers = a.layers;
  const lost = (layer) => (layer && layer.lost > 0 ? layer.lost : null);
  const other = new Map(b ? b.layers.map((layer) => [layer.path, layer]) : []);
  const values = layers.flatMap((layer) => [lost(layer), lost(other.get(layer.path))]).filter((x) => x !== null);
  if (!layers.length || !values.length) return noLayers("noise-chart", "Nothing is known of the layers of A");
  const area = chart(find("#noise-chart .plot"), {
    height: 280, label: "Share of variance lost by each layer; left and right arrows choose a layer", x: layerAxis(layers),
    y: { kind: "log", low: Math.min(...values) / 1.5, high: Math.max(...values) * 1.5, text: share, name: "1 − ρ², noise-to-signal: variance lost (lower is better)" },
  });
  layers.forEach((layer, i) => {
    const x = area.sx(i + 1), y = lost(layer), z = lost(other.get(layer.path));
    if (y !== null && z !== null)
      area.root.append(svg("line", { class: "grid", x1: x, x2: x, y1: area.sy(y), y2: area.sy(z) }));
    if (z !== null) {
      const mark = svg("circle", { cx: x, cy: area.sy(z), r: 3.2, fill: "none", "stroke-width": 1.5 });
      mark.style.stroke = "var(--b)";
      area.root.append(mark);
    }
    if (y !== null) {
      const mark = svg("circle", { cx: x, cy: area.sy(y), r: 3.4 });
      mark.style.fill = "var(--a)";
      area.root.append(mark);
    }
  });
  columns(find("#noise-chart .plot"), area, layers, (layer, i) => {
    const z = other.get(layer.path);
    return `Layer ${i + 1}, ${layer.path}: A loses ${share(layer.lost)} (ρ = ${layer.rho === null ? "–" : layer.rho.toFixed(5)})` +
      (z ? `, B ${share(z.lost)}` : "");
  }, find("#noise-chart .readout"), pick, state.layer);
  const worst = layers.filter((l) => l.lost !== null).sort((p, q) => q.lost - p.lost)[0];
  const above = layers.filter((l) => l.lost > 0.01).length;
  say("noise-chart", `A loses more than 1 % of the variance in ${above} of ${layers.length} layers, most in ` +
    `${worst.path}: ${share(worst.lost)}`, "Full points: A; open circles: B. A layer that is chosen is looked at below.");
}

function bitsChart(state, pick) {
  const a = RESULTS[state.a], b = RESULTS[state.b], layers = a.layers;
  if (!layers.length) return noLayers("bits-chart", "Nothing is known of the layers of A");
  const stored = (layer) => (8 * layer.bytes) / layer.size;
  const other = new Map(b ? b.layers.map((layer) => [layer.path, layer]) : []);
  // Tiny layers are nearly all header: what goes beyond is cut off, and said.
  const sorted = layers.map(stored).sort((p, q) => p - q);
  const high = Math.min(Math.max(8, ...layers.map((l) => l.bits)) + 1, Math.max(...sorted) * 1.1);
  const area = chart(find("#bits-chart .plot"), {
    height: 280, label: "Stored bits a weight of each layer; left and right arrows choose a layer", x: layerAxis(layers),
    y: { kind: "linear", low: 0, high, name: "stored bits a weight, codes, levels, scales and header" },
  });
  const step = (area.width - area.left - area.right) / layers.length;
  layers.forEach((layer, i) => {
    const top = area.sy(Math.min(stored(layer), high)), bar = svg("rect", {
      x: area.left + i * step + step * 0.1, width: Math.max(step * 0.8, 1), y: top, height: area.sy(0) - top });
    bar.style.fill = "var(--a)";
    area.root.append(bar);
    const z = other.get(layer.path);
    if (z) {
      const y = area.sy(Math.min(stored(z), high));
      const mark = svg("line", { x1: area.left + i * step, x2: area.left + (i + 1) * step, y1: y, y2: y, "stroke-width": 2.5 });
      mark.style.stroke = "var(--b)";
      area.root.append(mark);
    }
  });
  columns(find("#bits-chart .plot"), area, layers, (layer, i) => {
    const z = other.get(layer.path);
    return `Layer ${i + 1}, ${layer.path}: ${grouped(layer.size)} weights, ${layer.bits}-bit codes` +
      (layer.entropy === null ? "" : ` of entropy ${layer.entropy.toFixed(2)}`) + `, ${stored(layer).toFixed(2)} stored bits` +
      (z ? `; B stores ${stored(z).toFixed(2)}` : "");
  }, find("#bits-chart .readout"), pick, state.layer);
  const widths = [...new Set(layers.map((l) => l.bits))].sort((p, q) => p - q);
  const large = [...layers].sort((p, q) => q.size - p.size)[0];
  const cut = layers.filter((l) => stored(l) > high).length;
  say("bits-chart", widths.length > 1
    ? `Codes have ${widths[0]} to ${widths[widths.length - 1]} bits; the largest layer, ${large.path}, stores ${stored(large).toFixed(2)} a weight`
    : `All codes have ${bitsText(widths[0])}; small layers store more, for their levels and headers count`,
  `Bars: A; lines: B.${cut ? ` ${cut} small layers go beyond the chart.` : ""}`);
}

function densityChart(id, letter, result, path) {
  const layer = result && result.layers.find((one) => one.path === path);
  const shared = result && runOf(result).histograms[path];
  const box = find(`#${id}`);
  box.hidden = !layer;
  if (!layer) return;
  const table = layer.table, found = (table && table.own) || shared;
  if (!found) return noLayers(id, `${letter}: nothing is known of the weights of ${path}`);
  const levels = table ? table.levels : [], width = (found.high - found.low) / found.counts.length;
  const span = found.high - found.low;
  const low = Math.max(Math.min(found.low, ...levels), found.low - span), high = Math.min(Math.max(found.high, ...levels), found.high + span);
  const density = found.counts.map((count) => count / (found.size * width));
  const most = Math.max(...density), least = Math.min(...density.filter((d) => d > 0));
  const units = table && table.own ? "weight, in units of its scale" : "weight";
  const area = chart(find(`#${id} .plot`), {
    height: levels.length ? 280 : 256, bottom: levels.length ? 64 : 40, role: "img", label: `${letter}: density of the weights of ${path} with boundaries and levels`,
    x: { kind: "linear", low, high, name: units },
    y: { kind: "log", low: Math.max(least, most / 1e5) / 1.5, high: most * 1.5, name: "density per unit of weight (log scale)" },
  });
  const floor = area.height - area.bottom;
  found.counts.forEach((count, i) => {
    if (!count) return;
    const x = area.sx(found.low + i * width), top = area.sy(Math.max(density[i], area.sy.low));
    const bar = svg("rect", { x, width: Math.max(area.sx(found.low + (i + 1) * width) - x, 0.5), y: top, height: floor - top });
    bar.style.fill = "var(--weights)";
    area.root.append(bar);
  });
  const inside = (x) => x >= low && x <= high;
  for (const cut of (table ? table.boundaries : []).filter(inside))
    area.root.append(svg("line", { class: "axis", x1: area.sx(cut), x2: area.sx(cut), y1: area.top, y2: floor, "stroke-width": levels.length > 16 ? 0.5 : 1, "stroke-dasharray": "3 2" }));
  for (const level of levels.filter(inside)) {
    const mark = svg("line", { class: "level", x1: area.sx(level), x2: area.sx(level), y1: floor + 24, y2: floor + 38, "stroke-width": levels.length > 32 ? 1 : 2.5 });
    mark.style.stroke = letter === "A" ? "var(--a)" : "var(--b)";
    area.root.append(mark);
  }
  const beyond = found.size - found.counts.reduce((p, q) => p + q, 0);
  say(id, levels.length
    ? `${letter}, ${result.method}: ${levels.length} levels lose ${share(layer.lost)} of the variance (ρ = ${layer.rho.toFixed(5)})`
    : `${letter}, ${result.method}: ${layer.rho === null ? "all weights are alike" : `loses ${share(layer.lost)} of the variance (ρ = ${layer.rho.toFixed(5)})`}`,
  `${grouped(layer.size)} weights (${layer.shape.join("×")}) from ${number(found.least)} to ${number(found.most)}` +
    (beyond ? `, ${grouped(beyond)} of them beyond the bars` : "") + `; ${layer.bits}-bit codes` +
    (layer.entropy === null ? "" : ` of entropy ${layer.entropy.toFixed(2)}`) + `, ${grouped(layer.bytes)} bytes. ` +
    (levels.length ? "Dashed: boundaries of cells; strokes below the axis: levels." : "Its levels were not recorded, or are too many to be drawn."));
}

// -- Bytes

const PARTS = [["codes", "codes"], ["levels", "levels"], ["scales", "scales"], ["rest", "tensors left in float"], ["header", "header"]];

function bytesChart(state) {
  const a = RESULTS[state.a], b = RESULTS[state.b];
  const same = RESULTS.filter((r) => r.bits === a.bits && r.parts && r !== a && r !== b);
  const rows = [[`A: ${title(a)}`, a], ...(b ? [[`B: ${title(b)}`, b]] : []), ...same.map((r) => [title(r), r])];
  const most = Math.max(...rows.map(([, r]) => r.bytes));
  const plot = find("#bytes-chart .plot"), width = Math.max(plot.clientWidth, 240), tall = 42;
  const root = svg("svg", { viewBox: `0 0 ${width} ${rows.length * tall}`, height: rows.length * tall, role: "img",
    "aria-label": rows.map(([name, r]) => `${name}: ${kilo(r.bytes)}`).join("; ") });
  rows.forEach(([name, r], i) => {
    const end = ` ${kilo(r.bytes)}`, top = i * tall;
    root.append(svg("text", { class: "name", x: 0, y: top + 13 }, name), svg("text", { x: width, y: top + 13, "text-anchor": "end" }, end));
    let x = 0;
    const parts = r.parts ? PARTS.map(([part]) => [part, r.parts[part]]) : [["unknown", r.bytes]];
    for (const [part, bytes] of parts) {
      const wide = (bytes / most) * width;
      const bar = svg("rect", { x, y: top + 18, width: wide, height: 16 }, svg("title", {}, `${part}: ${grouped(bytes)} bytes`));
      bar.style.fill = part === "unknown" ? "var(--weights)" : `var(--${part})`;
      root.append(bar);
      x += wide;
    }
  });
  plot.replaceChildren(root);
  find("#bytes-chart .legend").replaceChildren(...PARTS.map(([part, name]) => {
    const box = html("span", { class: "swatch", "aria-hidden": "true" });
    box.style.background = `var(--${part})`;
    return html("span", {}, box, name);
  }));
  const times = (runOf(a).floatBytes / a.bytes).toFixed(1);
  say("bytes-chart", a.parts
    ? `${percent(a.parts.codes / a.bytes, 0)} of A's ${kilo(a.bytes)} are codes; the float file is ${times} times as large`
    : `A takes ${kilo(a.bytes)}; the float file is ${times} times as large`,
  `A, B${same.length ? ` and the others at ${bitsText(a.bits)}` : ""}, each bar a whole file; of other libraries' quantizers the parts are not known.`);
}
