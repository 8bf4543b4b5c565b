// Drawing: elements, scales and axes. All texts go in as text, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = document.querySelector("svg").namespaceURI;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
const find = (selector) => document.querySelector(selector);

// A scale is a function from values to pixels that knows its limits.
function scale(kind, low, high, from, to) {
  const f = kind === "log" ? Math.log : kind === "sqrt" ? Math.sqrt : (x) => x;
  const at = (x) => from + ((f(x) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
  return Object.assign(at, { kind, low, high, from, to });
}

function ticks({ kind, low, high }, most) {
  if (kind === "log") {
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let n = Math.floor(Math.log10(low)); n <= Math.ceil(Math.log10(high)); n++)
        for (const step of steps) {
          const tick = step * 10 ** n;
          if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
        }
      if (found.length <= most) return found;
      if (steps.length === 1) return found.filter((_, i) => i % Math.ceil(found.length / most) === 0);
    }
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

const number = (x) => String(Number(x.toPrecision(3)));
const percent = (x, digits = 1) => (x === null ? "–" : `${(100 * x).toFixed(digits)}\u00a0%`);
const share = (x) => (x === null ? "–" : `${Number((100 * x).toPrecision(2))}\u00a0%`);
const kilo = (x) => (x >= 1e8 ? `${Math.round(x / 1e6)} MB` : x >= 1e5 ? `${(x / 1e6).toFixed(2)} MB` : `${(x / 1e3).toFixed(1)} kB`);
const bitsText = (bits) => (bits === 1 ? "1 bit" : `${bits} bits`);
const grouped = (x) => x.toLocaleString("en");

// An empty chart with axes in a .plot, as wide as it is; x and y: {kind, low, high, name, text}.
function chart(plot, { height, label, x, y, left = 50, bottom = 40, role = "group" }) {
  const width = Math.max(plot.clientWidth, 240), top = 10, right = 10;
  const sx = scale(x.kind, x.low, x.high, left, width - right);
  const sy = scale(y.kind, y.low, y.high, height - bottom, top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role, "aria-label": label });
  for (const tick of y.ticks || ticks(sy, Math.floor(height / 45)))
    root.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: sy(tick), y2: sy(tick) }),
      svg("text", { x: left - 6, y: sy(tick) + 4, "text-anchor": "end" }, (y.text || number)(tick)),
    );
  for (const tick of x.ticks || ticks(sx, Math.floor(width / 60)))
    root.append(
      svg("line", { class: "axis", x1: sx(tick), x2: sx(tick), y1: height - bottom, y2: height - bottom + 4 }),
      svg("text", { x: sx(tick), y: height - bottom + 17, "text-anchor": "middle" }, (x.text || number)(tick)),
    );
  root.append(
    svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    svg("text", { class: "name", x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, x.name),
  );
  plot.replaceChildren(html("div", { class: "note" }, y.name), root);
  return { root, sx, sy, width, height, left, right, bottom, top };
}

// Markers by matplotlib's letters; polygons for all that is not listed.
function marker(kind, x, y, r) {
  const polygon = (n, turn, inner) => {
    const points = [];
    for (let i = 0; i < n * (inner ? 2 : 1); i++) {
      const angle = turn + (i * Math.PI * (inner ? 1 : 2)) / n;
      const radius = inner && i % 2 ? r * inner : r;
      points.push(`${(x + radius * Math.cos(angle)).toFixed(1)} ${(y + radius * Math.sin(angle)).toFixed(1)}`);
    }
    return `M${points.join("L")}Z`;
  };
  const cross = (turn) => polygon(4, turn, 0.35);
  const up = -Math.PI / 2;
  switch (kind) {
    case "o": return polygon(24, 0);
    case "s": return polygon(4, Math.PI / 4);
    case "D": case "d": return polygon(4, 0);
    case "^": return polygon(3, up);
    case "v": return polygon(3, -up);
    case "<": return polygon(3, Math.PI);
    case ">": return polygon(3, 0);
    case "*": return polygon(5, up, 0.45);
    case "P": case "+": return cross(up);
    case "X": case "x": return cross(Math.PI / 4);
    case "p": return polygon(5, up);
    case "8": return polygon(8, 0);
    default: return polygon(6, up);
  }
}

// Lighter on a dark ground; the names of the palette are in the style sheet's colours otherwise.
const DARK = { "#0072B2": "#5db4ee", "#D55E00": "#f2813d", "#000000": "#e6e9ed", "#CC79A7": "#eda3cb",
  "#56B4E9": "#9bd8ff", "#009E73": "#2fc79a", "#E69F00": "#f0b73c", "#882255": "#d26a9b",
  "#808080": "#9aa3ad", "#777777": "#b3bac2" };
const colour = (hex) => `light-dark(${hex}, ${DARK[hex] || hex})`;

function swatch(style) {
  const mark = svg("path", { d: marker(style.marker, 11, 8, 5) });
  const line = svg("line", { x1: 0, x2: 22, y1: 8, y2: 8, "stroke-width": 1.5, "stroke-dasharray": style.dashed ? "4 3" : null });
  for (const node of [mark, line]) node.style.stroke = colour(style.color);
  mark.style.fill = style.dashed ? "var(--card)" : colour(style.color);
  return svg("svg", { viewBox: "0 0 22 16", width: 22, height: 16, "aria-hidden": "true" }, line, mark);
}

// Buttons of which one is chosen; arrows move, as among radio buttons.
function choices(host, options, chosen, choose) {
  const buttons = options.map(([value, text]) =>
    html("button", {
      type: "button", role: "radio", "data-value": value, "aria-checked": value === chosen,
      tabindex: value === chosen ? 0 : -1, onclick: () => choose(value),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const i = options.findIndex(([v]) => v === value);
        const next = options[(i + step + options.length) % options.length][0];
        choose(next);
        host.querySelector(`[data-value="${next}"]`).focus();
      },
    }, text));
  host.replaceChildren(...buttons);
}
