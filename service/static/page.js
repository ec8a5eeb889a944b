// The page: what was asked of the service, what it answered, and where both are shown.

import { comparedNodes } from "./compared.js";
import { byId, el, show } from "./dom.js";
import { RecordForm } from "./form.js";
import { changes, examples, readText, withValue } from "./record.js";
import { resultNodes, spoken } from "./result.js";
import { ServiceError, get, predict, useKey } from "./service.js";
import { statement } from "./words.js";

const WAIT_MS = 300; // after the last change of a value
const RETRY_S = 5;

class Page {
  constructor(model, explanations) {
    Object.assign(this, { model, explanations, schema: model.features, record: {}, baseline: null, asked: 0, timer: 0, asking: null });
    this.sources = examples(model.example.record, this.schema);
    this.withFeatures = Boolean(model.attribution);
    this.form = new RecordForm(byId("values"), this.schema, {
      onEdit: (modality, feature, value) => this.edit(withValue(this.record, modality, feature, value)),
      onUnreadable: () => this.later(),
    });
  }

  /** Names the model, listens, and shows the example. */
  start() {
    const { model, task } = { model: this.model.model, task: this.model.task };
    document.title = `${task.outcome}: ${model.name}`;
    byId("title").textContent = sentence(task.outcome);
    byId("about").textContent = `${model.name}, version ${model.version}. ${this.model.model_card.intended_use}`;
    byId("chooser").append(this.featureSwitch());
    this.listSources();
    listen("chooser", () => this.load(Number(byId("source").value)));
    listen("paster", () => this.paste(byId("pasted").value));
    listen("values", () => this.now());
    for (const id of ["choose", "record"]) byId(id).hidden = false;
    this.load(0);
  }

  featureSwitch() {
    if (!this.withFeatures) return "";
    const change = ({ target }) => {
      this.withFeatures = target.checked;
      this.now();
    };
    const box = el("input", { type: "checkbox", id: "features", checked: true, on: { change } });
    return el("p", {}, box, " ", el("label", { for: "features" }, "Name the values behind each expert (slower)"));
  }

  listSources() {
    show(byId("source"), this.sources.map(({ title }, position) => el("option", { value: position }, title)));
  }

  paste(text) {
    try {
      const found = readText(text, this.schema);
      this.sources = [...examples(this.model.example.record, this.schema), ...found];
      this.listSources();
      byId("source").value = String(this.sources.length - found.length);
      this.load(this.sources.length - found.length);
    } catch (error) {
      this.giveUp();
      this.refuse(new ServiceError(error.message));
    }
  }

  /** Begins anew with a record: the first answer to it is the baseline of every what-if. */
  load(position) {
    this.record = this.sources[position].record;
    this.baseline = null;
    this.form.show(this.record);
    this.now();
  }

  edit(record) {
    this.record = record;
    this.later();
  }

  later() {
    this.doubt();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.now(), WAIT_MS);
  }

  /** The shown result is not the shown record's any more. */
  doubt() {
    byId("result").setAttribute("aria-busy", "true");
    byId("compared").setAttribute("aria-busy", "true");
    byId("glance").textContent = "";
  }

  /** Asks for the record's prediction. Of several answers on their way only the last one counts. */
  async now() {
    this.doubt();
    this.giveUp();
    const number = this.asked;
    const { signal } = (this.asking = new AbortController());
    try {
      const unreadable = this.form.unreadable();
      if (unreadable) throw unreadableError(unreadable);
      const answer = await predict(this.record, this.withFeatures ? "features" : true, signal);
      if (number === this.asked) this.accept(answer);
    } catch (error) {
      if (number === this.asked) this.refuse(error);
    }
  }

  /** Whatever was asked before, its answer does not count any more. */
  giveUp() {
    clearTimeout(this.timer);
    this.asking?.abort();
    this.asked += 1;
  }

  accept({ prediction, requestId }) {
    const before = this.baseline;
    this.baseline ??= { record: this.record, prediction };
    const baseline = before === null ? null : before.prediction;
    byId("problem").replaceChildren();
    this.form.mark([]);
    show(byId("result"), resultNodes({ prediction, requestId, baseline, model: this.model }));
    this.compare(prediction);
    this.listChanges();
    for (const id of ["result", "compared"]) byId(id).removeAttribute("aria-busy");
    byId("glance").textContent = statement(prediction, this.model.task);
    byId("spoken").textContent = spoken(prediction, baseline, this.model.task);
  }

  compare(prediction) {
    const nodes = this.explanations && comparedNodes(prediction, this.explanations, this.model);
    if (nodes) show(byId("compared"), nodes);
    else byId("compared").hidden = true;
  }

  listChanges() {
    const found = changes(this.baseline.record, this.record, this.schema);
    if (found.length === 0) {
      byId("changes").replaceChildren();
      return;
    }
    const button = (text, click) => el("button", { type: "button", on: { click } }, text);
    show(
      byId("changes"),
      el("ul", {}, found.map(({ place, before, after }) => el("li", {}, `${place}: ${before} \u2192 ${after}`))),
      el("p", {}, button("Undo all", () => this.undo()), " ", button("Compare with this from now on", () => this.rebase())),
    );
  }

  undo() {
    this.record = this.baseline.record;
    this.form.show(this.record);
    byId("result").focus();
    this.now();
  }

  rebase() {
    this.baseline = null;
    byId("result").focus();
    this.now();
  }

  /** Says what is wrong. No result stays: it would be another record's. */
  refuse(error) {
    const known = error instanceof ServiceError ? error : new ServiceError("This page failed unexpectedly.");
    for (const id of ["result", "compared"]) byId(id).hidden = true;
    for (const id of ["glance", "spoken"]) byId(id).textContent = "";
    const places = known.detail.map(({ loc, msg }) => ({ path: pathOf(loc), msg }));
    this.form.mark(places);
    show(byId("problem"), problemNodes(known, places, (path) => this.form.at(path)));
    if (needsKey(known)) askForKey(() => this.now());
  }
}

/** The text of a field that is no value, as the service would tell it. */
function unreadableError({ modality, feature, problem }) {
  return new ServiceError(`${modality.name}.${feature.name} ${problem}`, { detail: [{ loc: [modality.name, feature.name], msg: problem }] });
}

/** `["instances", 0, "labs", "crea"]` as `labs.crea`. */
function pathOf(loc) {
  return (loc[0] === "instances" ? loc.slice(2) : loc).join(".");
}

function problemNodes(error, places, fieldAt) {
  const again = error.retryAfter === null ? null : ` Try again in ${error.retryAfter} s.`;
  return el(
    "div",
    { class: "problem" },
    el("p", {}, el("strong", {}, "No prediction. "), error.message, again),
    places.length > 0 && el("ul", {}, places.map(({ path, msg }) => el("li", {}, placeNode(path, fieldAt(path)), ` ${msg}`))),
    error.requestId && el("p", { class: "hint" }, `${error.code}, request ${error.requestId}`),
  );
}

function placeNode(path, field) {
  if (field === undefined) return path || "the record";
  return el("button", { type: "button", class: "link", on: { click: () => field.focus() } }, path);
}

function listen(id, submitted) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    submitted();
  });
}

const needsKey = ({ code }) => code === "UNAUTHORIZED" || code === "FORBIDDEN";

/** Shows the field for a key, and goes on with the one that is entered. */
function askForKey(goOn) {
  const form = byId("keyholder");
  form.hidden = false;
  form.onsubmit = (event) => {
    event.preventDefault();
    useKey(byId("key").value.trim());
    byId("key").value = "";
    form.hidden = true;
    goOn();
  };
  byId("key").focus();
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Starts the page once a model is ready, and says meanwhile why none is. */
async function open() {
  try {
    const model = await get("model");
    const explanations = await get("explanations").catch(() => null);
    byId("problem").replaceChildren();
    new Page(model, explanations).start();
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    show(byId("problem"), problemNodes(error, [], () => undefined));
    if (needsKey(error)) {
      byId("about").textContent = "This service answers only those who have a key or an access token.";
      askForKey(open);
      return;
    }
    byId("about").textContent = "There is no model to ask yet.";
    setTimeout(open, 1000 * (error.retryAfter ?? RETRY_S));
  }
}

open();
