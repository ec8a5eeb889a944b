// Pictures as SVG. Colour never speaks alone: direction is also side and hatching, a patient's value is a diamond.

import { picture, svg } from "./dom.js";

const WIDTH = 400;

/** A contribution left or right of 0, as a part of `limit`; a thin line where it was before. */
export function contributionBar(value, limit, before = null) {
  const [middle, unit] = [WIDTH / 2, WIDTH / 2 / (limit || 1)];
  const length = Math.abs(value) * unit;
  const fill = value < 0 ? { fill: "url(#hatch)" } : {};
  const bar = { class: value < 0 ? "against" : "for", x: value < 0 ? middle - length : middle, y: 3, width: length, height: 14, ...fill };
  const earlier = before === null ? [] : line(middle + before * unit, 0, 20, "before");
  return picture(WIDTH, 20, "bar", line(middle, 0, 20, "axis"), svg("rect", bar), earlier);
}

/** A part of a whole, 0 to 1. */
export function shareBar(value) {
  const whole = svg("rect", { class: "whole", x: 0, y: 3, width: WIDTH, height: 8 });
  return picture(WIDTH, 14, "share", whole, svg("rect", { class: "part", x: 0, y: 3, width: WIDTH * value, height: 8 }));
}

/** A risk from 0 to 1 among its bands; a hollow diamond where it was before. */
export function riskScale(risk, bands, before = null) {
  const limits = bands.slice(0, -1).map(({ below }) => line(WIDTH * below, 6, 22, "limit"));
  const ground = svg("rect", { class: "whole", x: 0, y: 10, width: WIDTH, height: 8 });
  const part = svg("rect", { class: "part", x: 0, y: 10, width: WIDTH * risk, height: 8 });
  const earlier = before === null ? [] : diamond(WIDTH * before, 14, "before");
  return picture(WIDTH, 28, "risk", ground, part, limits, earlier, diamond(WIDTH * risk, 14, "now"));
}

/** How often values lay where, from a histogram, with one value marked. */
export function violin({ edges, counts }, value) {
  const most = Math.max(...counts, 1);
  const half = (count) => (18 * count) / most;
  const centres = counts.map((_, i) => (WIDTH * ((edges[i] + edges[i + 1]) / 2 - edges[0])) / (edges.at(-1) - edges[0]));
  const side = (sign) => centres.map((x, i) => `${round(x)},${round(20 + sign * half(counts[i]))}`);
  const points = [...side(-1), ...side(1).reverse()].join(" ");
  const place = WIDTH * Math.min(Math.max((value - edges[0]) / (edges.at(-1) - edges[0]), 0), 1);
  return picture(WIDTH, 40, "violin", line(0, 20, 20, "axis", WIDTH), svg("polygon", { points, class: "shape" }), diamond(place, 20, "now"));
}

/** Quantiles as whiskers (5 to 95 %), box (25 to 75 %) and median, with one value marked, between `low` and `high`. */
export function quantileRange(spread, value, [low, high]) {
  const at = (x) => round((WIDTH * (x - low)) / (high - low || 1));
  const whiskers = line(at(spread.q05), 20, 20, "whisker", at(spread.q95));
  const box = svg("rect", { class: "shape", x: at(spread.q25), y: 10, width: at(spread.q75) - at(spread.q25), height: 20 });
  const marks = [line(at(spread.q50), 10, 30, "median"), diamond(at(value), 20, "now")];
  const zero = low < 0 && high > 0 ? line(at(0), 2, 38, "axis") : [];
  return picture(WIDTH, 40, "range", zero, whiskers, box, marks);
}

const round = (x) => Math.round(10 * x) / 10;

function line(x, top, bottom, className, to = x) {
  return svg("line", { class: className, x1: x, y1: top, x2: to, y2: bottom });
}

function diamond(x, y, className) {
  return svg("path", { class: `diamond ${className}`, d: `M${round(x)} ${y - 8}l6 8l-6 8l-6 -8z` });
}
