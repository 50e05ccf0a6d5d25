// Draws the charts of the page from the data that lies in it, with uPlot. Without this script the page keeps
// its text and tables.
"use strict";

const GLYPHS = {
  circle: "●○", square: "■□", triangle: "▲△", diamond: "◆◇", down: "▼▽", cross: "✖✕", none: "――",
};
const INK = "#222";
const GRID = "#e4e4e4";

// One horizontal axis for all series of a group: uPlot wants the values of each at the same places.
function aligned(series) {
  const places = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  return series.map((one) => {
    const rows = new Map(one.x.map((x, n) => [x, n]));
    const at = (values) => places.map((x) => (rows.has(x) ? values[rows.get(x)] : null));
    return { x: places, y: at(one.y), low: one.low && at(one.low), high: one.high && at(one.high) };
  });
}

function shape(ctx, name, x, y, r) {
  ctx.beginPath();
  if (name === "circle") ctx.arc(x, y, r, 0, 2 * Math.PI);
  if (name === "square") ctx.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
  const corners = {
    triangle: [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]],
    down: [[0, 1.2], [1.1, -0.9], [-1.1, -0.9]],
    diamond: [[0, -1.3], [1.2, 0], [0, 1.3], [-1.2, 0]],
    cross: [[-1, -0.4], [-0.4, -1], [0, -0.5], [0.4, -1], [1, -0.4], [0.5, 0], [1, 0.4], [0.4, 1], [0, 0.5],
      [-0.4, 1], [-1, 0.4], [-0.5, 0]],
  }[name] || [];
  corners.forEach(([dx, dy], n) => ctx[n ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
  ctx.closePath();
}

function decorate(u, number, style, data, many) {
  const { ctx } = u;
  const scale = uPlot.pxRatio;
  const place = (value, axis) => u.valToPos(value, axis, true);
  const shown = data.x.map((_, n) => n).filter((n) => data.y[n] != null);
  ctx.save();
  ctx.beginPath();
  ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
  ctx.clip();
  ctx.strokeStyle = ctx.fillStyle = style.color;
  ctx.lineWidth = 1.2 * scale;
  if (data.low && style.spread === "band") {
    ctx.globalAlpha = 0.15;
    ctx.beginPath();
    shown.forEach((n, k) => ctx[k ? "lineTo" : "moveTo"](place(data.x[n], "x"), place(data.low[n], "y")));
    [...shown].reverse().forEach((n) => ctx.lineTo(place(data.x[n], "x"), place(data.high[n], "y")));
    ctx.fill();
    ctx.globalAlpha = 1;
  }
  const step = many ? Math.max(1, Math.round(shown.length / 6)) : 1;
  for (const n of shown) {
    const x = place(data.x[n], "x");
    if (data.low && style.spread === "bars") {
      ctx.beginPath();
      ctx.moveTo(x, place(data.low[n], "y"));
      ctx.lineTo(x, place(data.high[n], "y"));
      ctx.stroke();
    }
    if (style.marker === "none" || shown.indexOf(n) % step !== number % step) continue;
    shape(ctx, style.marker, x, place(data.y[n], "y"), (style.small ? 2.6 : 4.2) * scale);
    ctx.fillStyle = style.hollow ? "#fff" : style.color;
    ctx.fill();
    ctx.stroke();
  }
  ctx.restore();
}

function backdrop(u, chart) {
  const { ctx, bbox } = u;
  if (chart.zero == null) return;
  const at = (value) => Math.min(Math.max(u.valToPos(value, "y", true), bbox.top), bbox.top + bbox.height);
  ctx.save();
  if (chart.band) {
    ctx.fillStyle = GRID;
    ctx.fillRect(bbox.left, at(chart.band[1]), bbox.width, at(chart.band[0]) - at(chart.band[1]));
  }
  ctx.strokeStyle = "#000";
  ctx.lineWidth = uPlot.pxRatio;
  ctx.beginPath();
  ctx.moveTo(bbox.left, at(chart.zero));
  ctx.lineTo(bbox.left + bbox.width, at(chart.zero));
  ctx.stroke();
  ctx.restore();
}

// 1, 2 and 5 times powers of ten, on a scale that is logarithmic.
function marks(low, high) {
  const found = [];
  for (let power = -9; power < 9; power++)
    for (const base of [1, 2, 5]) found.push(Number((base * 10 ** power).toPrecision(1)));
  return found.filter((mark) => mark >= low && mark <= high);
}

// Evenly spaced round numbers, for a logarithmic axis of less than a doubling.
function even(low, high) {
  const size = 10 ** Math.floor(Math.log10((high - low) / 4));
  const step = size * [5, 2, 1].find((times) => size * times <= (high - low) / 4);
  const first = Math.ceil(low / step);
  return [...Array(Math.floor(high / step) - first + 1)].map((_, n) => Number(((first + n) * step).toPrecision(6)));
}

function short(value) {
  return Math.abs(value) >= 1000 ? value.toLocaleString("en-US") : String(Number(value.toPrecision(5)));
}

// Labels of the horizontal axis that do not run into each other.
function apart(u, found) {
  let last = -Infinity;
  return found.map((value) => {
    const at = u.valToPos(value, "x");
    const room = 4 * (short(value).length + 1) + 4;
    if (at - room < last) return null;
    last = at + room;
    return value;
  });
}

function range(log, low, high, linear) {
  if (low == null) return [log === "log" ? 1 : 0, 2];
  if (log === "log") {
    const room = Math.max((high / low) ** 0.06, 1.01);
    return [low / room, high * room];
  }
  if (log === "asinh") return [low - linear / 2, high + 0.15 * (high - low) + linear / 2];
  const room = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - room, high + room];
}

function scale(log, linear, time, spread) {
  const kind = log === "log" ? { distr: 3 } : log === "asinh" ? { distr: 4, asinh: linear } : { distr: 1 };
  return { time, ...kind, range: (_, low, high) => range(log, ...spread(low, high), linear) };
}

function axis(label, log, at, linear) {
  const own = { label, stroke: INK, grid: { stroke: GRID, width: 1 }, ticks: { stroke: GRID, width: 1 },
    font: "13px sans-serif", labelFont: "13px sans-serif", values: (_, found) => found.map((v) => (v == null ? "" : short(v))),
    filter: (u, found, side) => (side === 0 ? apart(u, found) : found) };
  if (at) own.splits = () => at;
  else if (log === "log") {
    own.splits = (u, side, low, high) => {
      const found = marks(low, high);
      return found.length > 2 ? found : even(low, high);
    };
  } else if (log === "asinh") {
    own.splits = (u, side, low, high) => {
      const found = [1, 2, 4, 10, 20, 40, 100, 200, 400].map((times) => (linear / 2) * times);
      return [...found.map((mark) => -mark).reverse(), 0, ...found].filter((m) => m >= low && m <= high);
    };
  }
  return own;
}

function settled(chart, box) {
  const log = { x: chart.log.x, y: chart.log.y };
  for (const input of box.querySelectorAll("input[data-axis]"))
    if (!input.checked) log[input.dataset.axis] = null;
  return log;
}

function draw(chart, box, group) {
  const target = box.querySelector(".plot");
  target.replaceChildren();
  const log = settled(chart, box);
  const data = aligned(group.series);
  const ends = data.flatMap((one) => [...(one.low || one.y), ...(one.high || one.y)])
    .filter((value) => value != null);
  const spread = () => (chart.fit ? chart.fit : [Math.min(...ends, ...(chart.zero == null ? [] : [chart.zero])),
    Math.max(...ends, ...(chart.zero == null ? [] : [chart.zero]))]);
  const width = target.clientWidth || 600;
  const u = new uPlot({
    width,
    height: Math.round(Math.min(420, Math.max(300, 0.62 * width))),
    scales: {
      x: scale(log.x, 1, false, (low, high) => [low, high]),
      y: scale(log.y, chart.linear, false, spread),
    },
    axes: [
      axis(chart.labels.x, log.x, log.x ? chart.ticks : null, 1),
      { ...axis(group.label || chart.labels.y, log.y, null, chart.linear), size: 58 },
    ],
    series: [
      { label: chart.labels.x, value: (_, value) => (value == null ? "" : short(value)) },
      ...group.series.map((style, n) => ({
        label: style.name,
        stroke: style.color,
        width: style.line ? style.width : 0,
        dash: style.dash,
        spanGaps: true,
        points: { show: false },
        value: (_, value, __, at) => {
          if (value == null || at == null) return "";
          const text = Number(value.toPrecision(5)).toString();
          return data[n].low ? `${text} (${short(data[n].low[at])} to ${short(data[n].high[at])})` : text;
        },
      })),
    ],
    cursor: {
      drag: { x: false, y: false },
      points: { show: false },
      dataIdx: (self, number, at) => {
        if (number === 0 || at == null) return at;
        const values = self.data[number];
        for (let away = 0; away < values.length; away++) {
          if (values[at - away] != null) return at - away;
          if (values[at + away] != null) return at + away;
        }
        return at;
      },
    },
    hooks: {
      drawAxes: [(self) => backdrop(self, chart)],
      drawSeries: [(self, n) => decorate(self, n, group.series[n - 1], data[n - 1], group.series[n - 1].line)],
    },
  }, [data.length ? data[0].x : [], ...data.map((one) => one.y)], target);
  reachable(u, chart, group);
  return u;
}

// Legend rows hide and show their line, arrow keys move the hover line; both without a mouse.
function reachable(u, chart, group) {
  u.root.querySelectorAll(".u-series").forEach((row, n) => {
    if (n === 0) return;
    const style = group.series[n - 1];
    const glyph = document.createElement("span");
    glyph.textContent = GLYPHS[style.marker][style.hollow ? 1 : 0];
    glyph.className = "glyph";
    glyph.style.color = style.color;
    const head = row.querySelector("th");
    row.querySelector(".u-label").prepend(glyph);
    head.tabIndex = 0;
    head.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      head.click();
    });
  });
  u.over.tabIndex = 0;
  u.over.setAttribute("role", "img");
  u.over.setAttribute("aria-label", `${chart.title}; arrow keys move along it, values are in the legend`);
  u.over.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const last = u.data[0].length - 1;
    const at = u.cursor.idx == null || u.cursor.left < 0 ? (move > 0 ? 0 : last) : u.cursor.idx + move;
    const x = u.data[0][Math.min(Math.max(at, 0), last)];
    u.setCursor({ left: u.valToPos(x, "x"), top: 10 });
  });
}

function build(chart) {
  const box = document.getElementById(chart.id);
  const select = box.querySelector("select");
  let plot = null;
  const again = () => {
    if (plot) plot.destroy();
    plot = draw(chart, box, chart.groups[select ? select.selectedIndex : 0]);
  };
  box.addEventListener("change", again);
  const outer = box.closest("details");
  if (outer && !outer.open) outer.addEventListener("toggle", again, { once: true });
  else again();
  let before = box.clientWidth;
  addEventListener("resize", () => {
    if (box.clientWidth !== before && box.clientWidth) again();
    before = box.clientWidth;
  });
}

for (const chart of JSON.parse(document.getElementById("charts").textContent)) build(chart);
