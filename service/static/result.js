// One prediction as a person reads it: the risk, how sure, why, and what was missing.

import { contributionBar, riskScale, shareBar } from "./charts.js";
import { el } from "./dom.js";
import { change, direction, expertTitle, list, number, percent, share, signed, statement } from "./words.js";

/** The children of the result's section. `baseline` is null before anything was changed. */
export function resultNodes({ prediction, requestId, baseline, model }) {
  const { task } = model;
  return [
    el("h2", { id: "result-title" }, "Result", prediction.id === null ? null : ` for ${prediction.id}`),
    el("p", { class: "notice-inline" }, "Research use. Not for clinical decisions."),
    headline(prediction, task),
    baseline && el("p", { class: "change" }, change(prediction, baseline, task)),
    task.kind === "binary" && scale(prediction, baseline, task),
    prediction.explanation && el("p", { class: "summary" }, prediction.explanation.summary),
    flags(prediction.uncertainty),
    sureness(prediction.uncertainty, model),
    task.labels.length > 2 || task.kind === "multilabel" ? labels(prediction, task) : null,
    prediction.explanation && experts(prediction, baseline, model),
    remarks("Values to look at", prediction.warnings),
    remarks("Not known", prediction.missing),
    el("p", { class: "hint" }, `${model.model.name} ${model.model.version}, request ${requestId}`),
  ];
}

function headline(prediction, task) {
  const isNumber = task.kind === "regression";
  const big = isNumber ? number(prediction.probability) : percent(prediction.probability);
  const what = { binary: `risk of ${task.outcome}`, regression: task.outcome }[task.kind] ?? `${task.outcome}: ${prediction.label}`;
  return el(
    "p",
    { class: "score" },
    el("strong", {}, big),
    ` ${what}`,
    prediction.risk_band === null ? null : el("span", { class: "band" }, prediction.risk_band),
  );
}

function scale(prediction, baseline, task) {
  const bands = task.risk_bands;
  let start = 0;
  const told = bands.map(({ name, below }) => {
    const range = `${name} ${Math.round(100 * start)} to ${Math.round(100 * below)} %`;
    start = below;
    return range;
  });
  return [
    riskScale(prediction.probability, bands, baseline === null ? null : baseline.probability),
    bands.length > 0 && el("p", { class: "hint" }, `Bands: ${told.join(", ")}.`),
  ];
}

function flags(uncertainty) {
  const raised = [
    uncertainty?.abstain && "The model does not commit itself: other answers cannot be ruled out.",
    uncertainty?.experts_disagree && "The experts disagree: much of their evidence cancels.",
  ].filter(Boolean);
  return raised.length > 0 && el("ul", { class: "flags" }, raised.map((text) => el("li", {}, el("strong", {}, "Caution. "), text)));
}

function sureness(uncertainty, model) {
  if (!uncertainty) return el("p", { class: "hint" }, "This bundle does not say how sure its predictions are.");
  const { guarantee } = model.uncertainty;
  const often = `${share(uncertainty.coverage)} coverage, ${guarantee === "exact" ? "guaranteed for patients like those of training" : "approximate"}`;
  return [
    uncertainty.interval && el("p", {}, `Interval: ${interval(uncertainty.interval)} (${often}).`),
    uncertainty.set && el("p", {}, `Cannot be ruled out: ${list(uncertainty.set) || "none"} (${often}).`),
    uncertainty.sure && el("p", {}, `Surely present: ${list(uncertainty.sure) || "none"}.`),
  ];
}

function interval([low, high]) {
  return low === null || high === null ? "not bounded" : `${number(low)} to ${number(high)}`;
}

function labels(prediction, task) {
  const rows = Object.entries(prediction.probabilities).map(([label, probability]) =>
    el("li", {}, el("span", {}, label), el("span", { class: "figure" }, percent(probability)), shareBar(probability)),
  );
  const title = task.kind === "multilabel" ? "Probability of each label" : "Probabilities";
  return [el("h3", {}, title), el("ul", { class: "labels" }, rows)];
}

function experts(prediction, baseline, model) {
  const { experts: told } = prediction.explanation;
  const title = el("h3", {}, "Evidence by expert");
  if (told.length === 1) {
    const note = el("p", { class: "hint" }, "One network for all modalities: there are no experts to compare.");
    return [told[0].features ? title : null, note, features(told[0], prediction, model)];
  }
  const before = baseline?.explanation && baseline.label === prediction.label ? baseline.explanation.experts : null;
  const limit = Math.max(...[...told, ...(before ?? [])].map(({ contribution }) => Math.abs(contribution)));
  return [
    title,
    el("p", { class: "hint" }, "Bars to the right, plain, speak for ", el("b", {}, said(prediction, model.task)), "; to the left, hatched, against it.", before && " A thick line says where a bar ended before."),
    el("p", { class: "hint" }, "A weight is not an importance: it says how much of an expert enters the mixture, the contribution which way and how far it pushed."),
    el(
      "ul",
      { class: "experts" },
      told.map((expert, e) => expertItem(expert, { before: before?.[e].contribution ?? null, limit, prediction, model })),
    ),
  ];
}

const said = (prediction, task) => (task.kind === "regression" ? "a higher value" : prediction.label);

function expertItem(expert, { before, limit, prediction, model }) {
  const { task } = model;
  const modalities = model.features.modalities.map(({ name }) => name);
  const isDominant = expert.name === prediction.explanation.dominant;
  const probability = `${task.kind === "binary" ? "a risk of " : ""}${percent(expert.probability)}`;
  const alone = task.kind === "regression" ? number(expert.probability) : probability;
  return el(
    "li",
    {},
    el("h4", {}, expertTitle(expert, modalities), isDominant && [" ", el("span", { class: "band" }, "strongest")], " ", el("code", {}, expert.name)),
    contributionBar(expert.contribution, limit, before),
    el(
      "p",
      {},
      el("b", {}, signed(expert.contribution)),
      ` ${direction(expert.contribution, prediction.label, task)}, ${share(expert.contribution_share)} of all evidence`,
      before === null ? null : ` (${signed(before)} before)`,
    ),
    el("p", { class: "hint" }, `weight ${number(expert.weight)}; alone it would say ${alone}`),
    shareBar(expert.weight),
    features(expert, prediction, model, isDominant),
  );
}

function features(expert, prediction, { task }, open = true) {
  if (!expert.features) return null;
  const limit = Math.max(...expert.features.map(({ attribution }) => Math.abs(attribution)));
  const rows = expert.features.map(({ name, attribution }) =>
    el(
      "li",
      {},
      el("span", {}, name),
      el("span", { class: "figure" }, `${signed(attribution)} ${direction(attribution, prediction.label, task)}`),
      contributionBar(attribution, limit),
    ),
  );
  const sum = `all others ${signed(expert.rest)}; with nothing known ${signed(expert.base)}; untold ${signed(expert.gap)}`;
  return el(
    "details",
    { open },
    el("summary", {}, "Values behind it"),
    rows.length > 0 ? el("ul", { class: "labels" }, rows) : null,
    el("p", { class: "hint" }, sum),
  );
}

function remarks(title, texts) {
  return texts.length > 0 && [el("h3", {}, title), el("ul", { class: "remarks" }, texts.map((text) => el("li", {}, text)))];
}

/** What is said aloud when a result comes. */
export function spoken(prediction, baseline, task) {
  const band = prediction.risk_band === null ? "" : `, ${prediction.risk_band}`;
  const changed = baseline === null ? "" : `, ${change(prediction, baseline, task)}`;
  const caution = prediction.uncertainty?.abstain ? ". Caution: the model does not commit itself" : "";
  return `${statement(prediction, task)}${band}${changed}${caution}. Research use. Not for clinical decisions.`;
}
