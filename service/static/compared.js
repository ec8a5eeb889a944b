// This patient's weights and contributions against those of held-out patients.

import { quantileRange, violin } from "./charts.js";
import { el } from "./dom.js";
import { expertTitle, number, signed } from "./words.js";

/** The children of the section; null where the bundle does not say, or has one expert. */
export function comparedNodes(prediction, { explanation, reference }, model) {
  const told = prediction.explanation?.experts ?? [];
  if (explanation === null || told.length < 2) return null;
  const modalities = model.features.modalities.map(({ name }) => name);
  const spreads = explanation.experts.map(({ contribution }) => contribution);
  const limits = range(spreads, told);
  return [
    el("h2", { id: "compared-title" }, "Against held-out patients"),
    el("p", { class: "notice-inline" }, "Research use. Not for clinical decisions."),
    el("p", { class: "hint" }, `${explanation.num_rows} patients of the ${explanation.split} data, contributions towards each one's predicted label. The diamond is this patient. Box: the middle half; line: 5 to 95 %.`),
    el("ul", { class: "compared" }, told.map((expert, e) => item(expert, explanation.experts[e], { limits, reference, modalities }))),
  ];
}

function range(spreads, told) {
  const values = [...spreads.flatMap(({ q05, q95 }) => [q05, q95]), ...told.map(({ contribution }) => contribution)];
  return [Math.min(...values), Math.max(...values)];
}

function item(expert, summary, { limits, reference, modalities }) {
  const { weight, contribution } = summary;
  const histogram = reference?.expert_weights?.[expert.name];
  const picture = histogram ? violin(occupied(histogram, expert.weight), expert.weight) : quantileRange(weight, expert.weight, [0, 1]);
  return el(
    "li",
    {},
    el("h3", {}, expertTitle(expert, modalities)),
    el("p", {}, `Contribution ${signed(expert.contribution)}; half of them ${signed(contribution.q25)} to ${signed(contribution.q75)}`),
    quantileRange(contribution, expert.contribution, limits),
    el("p", {}, `Weight ${number(expert.weight)}; half of them ${number(weight.q25)} to ${number(weight.q75)}`),
    picture,
  );
}

/** A histogram without its empty ends, one bin of them kept, and with the place of `value`. */
function occupied({ edges, counts }, value) {
  const holds = counts.map((count, i) => count > 0 || (value >= edges[i] && value <= edges[i + 1]));
  const first = Math.max(holds.indexOf(true) - 1, 0);
  const last = Math.min(holds.lastIndexOf(true) + 1, counts.length - 1);
  return { edges: edges.slice(first, last + 2), counts: counts.slice(first, last + 1) };
}
