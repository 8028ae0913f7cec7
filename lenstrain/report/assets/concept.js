const FIGURES = {
  score_by_phase: "score",
  train_f1: "train F1", test_accuracy: "test accuracy", precision: "precision on test samples", recall: "recall on test samples",
  false_positive_rate: "share of unrelated samples it fires on",
      average_precision: "average precision, as in the store",
  auroc: "AUROC", score_all: "score on all test samples, named or not", score_unnamed: "score on unnamed samples", brier: "Brier score (0 is best)",
      brier_before: "Brier score, uncalibrated",
  expected_calibration_error: "calibration error", expected_calibration_error_before: "calibration error, uncalibrated",
  n_judged: "rows it was judged on", test_looks: "looks at the test split",
      C: "inverse L2 strength",
  converged: "solver converged", median_rank: "median rank in its level", n_rivals: "other lenses of its level",
  above_siblings: "above all siblings (share of samples)", above_ancestors: "above all ancestors (share)",
  ancestors_fire: "all ancestors fire (share)", firing_rate: "fires on other samples (share)",
      threshold: "threshold (logit)",
};

const FIRST_FIGURES = 10; // that are shown without being asked for

let restPromise;
const rest = () => (restPromise ??= unpack("rest").then((found) => found.json()));

async function renderConcept(section, query) {
  const i = C.id.indexOf(query.get("concept"));
  if (i < 0) {
    section.append(el("p", { className: "warning" }, "There is no such concept in this report: ",
        el("a", { href: "#table" }, "see the table"), "."));
    return;
  }
  heading(section, i);
  if (i >= R.nLenses) {
    const why = R.tree.skipped[i];
    section.append(el("p", { className: "warning" },
        why ? `No lens was fitted: ${shown(why, 500)}` : "The pack has no lens for this concept."));
    return;
  }
  const waiting = el("p", { className: "quiet" }, "Reading …");
  section.append(waiting);
  const { details, texts } = await rest();
  if (!waiting.isConnected) return; // somebody went elsewhere meanwhile
  waiting.remove();
  const detail = details[i];
  figures(section, i, detail);
  const pair = el("div", { className: "pair" });
  section.append(pair);
  learningCurve(pair, i, detail);
  modelLayerCurve(pair, i);
  reliabilityChart(pair, detail);
  controlBars(pair, i, detail);
  samples(section, i, detail, texts);
}

function heading(section, i) {
  const children = C.id.map((_, k) => k).filter((k) => R.tree.parents[k].includes(i));
  const neighbours = el("p", { className: "quiet" }, el("a", { href: "#table" }, "All lenses"));
  if (i > 0 && i < R.nLenses) neighbours.append(" · previous: ", link(i - 1, 40));
  if (i + 1 < R.nLenses) neighbours.append(" · next: ", link(i + 1, 40));
  section.append(neighbours, el("h2", { id: "concept-name" }, el("bdi", {}, nameOf(i, 120)), " ",
      badgeOf(i, C.uncertain[i])));
  if (C.name[i].length > 120 || C.id[i].length > 120)
    section.append(el("details", {}, el("summary", {}, "The whole name"),
        el("p", { className: "full" }, el("bdi", {}, shown(C.name[i]))),
        el("p", { className: "full" }, el("bdi", {}, shown(C.id[i])))));
  const line = [`level of abstraction ${C.level[i]}`];
  if (i < R.nLenses) line.push(C.model_layers[i].length ? `reads model layer ${C.model_layers[i].join(" + ")}` : "reads what the model writes");
  section.append(el("p", { className: "quiet" }, el("bdi", {}, shown(C.id[i], 120)), ` · ${line.join(" · ")}`));
  const relatives = [["Above", R.tree.parents[i]], ["Below", children]].filter(([, numbers]) => numbers.length);
  for (const [title, numbers] of relatives) section.append(el("div", {}, el("b", {}, `${title}: `),
      list(numbers.slice(0, 60)), numbers.length > 60 ? `and ${numbers.length - 60} more` : ""));
  if (R.tree.is_flat && !R.hasStore)
    section.append(el("p", { className: "quiet" },
        ...say("Parents, children and samples are in the store: `lenstrain report PACK --store STORE` shows them.")));
}

function inWords(value) {
  if (value === null || value === "") return "–";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : value.toPrecision(3);
  return typeof value === "boolean" ? (value ? "yes" : "no") : shown(String(value), 200);
}

// The control with the best score; null without any.
const bestControl = (controls) => controls.filter(([, score]) => score !== null).sort((a, b) => b[1] - a[1])[0] ?? null;

function figures(section, i, detail) {
  const reason = shown(C.reason[i], 300);
  const unbeaten = (detail.figures.unbeaten_controls || []).map((name) => shown(name, 40)).join(", ");
  const remarks = [
    [C.grade[i] === UNGRADED, `It is ungraded: ${reason || "there was nothing to grade it by"}.`],
    [C.capped[i], `Its grade is capped: ${reason}.`],
    [C.unbeaten[i], `It does no better than a control (${unbeaten}).`],
    [C.everywhere[i], `It fires everywhere: on ${percent(R.grading.firesEverywhere)} of unrelated samples or more.`],
    [C.uncertain[i], "Its grade is uncertain: the interval of its score crosses a boundary."],
    [C.hungry[i], "It used every cached sample and did not graduate: a top-up would give it more."],
    [detail.figures.converged === false, "Its solver did not converge."],
  ];
  for (const [holds, text] of remarks) if (holds) section.append(el("p", { className: "warning" }, text));
  const best = bestControl(detail.controls);
  const rows = [
    ["grade", C.grade[i] === UNGRADED || isOldRule() ? gradeWord(C.grade[i]) : `${C.grade[i]}, ${C.status[i]}`],
    ["score, with its 95 % interval", C.low[i] === null ? fixed(C.score[i])
      : `${fixed(C.score[i])} (${fixed(C.low[i])} to ${fixed(C.high[i])})`],
    ["name detection: score on named texts", fixed(C.score_named[i])],
    ["test texts (of them without the name)", testTexts(i)],
    ["lead over the best control, at least", signed(C.lead[i])],
    ["best control", best ? `${shown(best[0], 40)}: ${fixed(best[1])}` : "–"],
    ["test F1", fixed(C.test_f1[i])],
    ["test F1, unnamed and named samples", `${fixed(C.f1_unnamed[i])} and ${fixed(C.f1_named[i])}`],
    ["graduated", C.graduated[i] ? `at iteration ${C.iterations[i] ?? "–"}`
      : `no${C.iterations[i] === null ? "" : `, after ${plural(C.iterations[i], "iteration")}`}`],
    ["positive training samples", String(C.n_samples[i] ?? "–")],
    ["leads the lenses of its level on", C.first[i] === null ? "–" : `${percent(C.first[i])} of its samples`],
  ];
  const add = (label, value) => {
    if (value !== null && typeof value === "object") {
      for (const [key, entry] of Object.entries(value))
        if (entry === null || typeof entry !== "object") add(`${label}, ${shown(key, 40)}`, entry);
    } else rows.push([label, inWords(value)]);
  };
  const label = (key) => Object.hasOwn(FIGURES, key) ? FIGURES[key] : shown(key, 60).replaceAll("_", " ");
  for (const [key, value] of Object.entries(detail.figures)) if (!Array.isArray(value)) add(label(key), value);
  const pairs = rows.map(([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, value)));
  section.append(el("dl", {}, pairs.slice(0, FIRST_FIGURES)),
      el("details", {}, el("summary", {}, "All figures"), el("dl", {}, pairs.slice(FIRST_FIGURES))));
}

function learningCurve(parent, i, { steps, n_steps }) {
  if (!steps.length) return;
  const kinds = [["test F1", 2, "one", "circle", "solid"], ["train F1", 1, "three", "square", "dot"],
      ["score", 3, "two", "diamond", "solid"]];
  const traces = kinds.map(([name, k, shade, symbol, dash]) => ({
    type: "scatter", mode: "lines+markers", name, x: steps.map((step) => step[0]), y: steps.map((step) => step[k]),
        line: { color: colour(shade), dash },
    marker: { size: 8, symbol: steps.map((_, s) => (s < n_steps ? symbol : `${symbol}-open`)) },
  }));
  const target = R.about.provenance.settings?.target_f1;
  const shapes = target ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: target, y1: target,
      line: { color: colour("quiet"), width: 1, dash: "dash" } }] : [];
  const annotations = target ? [{ xref: "paper", x: 0, y: target, text: `target F1 ${target}`, showarrow: false,
      xanchor: "left", yanchor: "top", font: { color: colour("quiet") } }] : [];
  const end = C.graduated[i] ? "It graduated at the last filled mark." : "It did not graduate.";
  chart(parent, "Learning curve: where it still climbs, more samples would help; a wide gap between train and test is overfitting", traces,
    { xaxis: axis("positive training samples (count)", { rangemode: "tozero", tickformat: "d" }),
        yaxis: axis("F1 and score (0 to 1)", { range: [0, 1.04] }), shapes, annotations },
    { note: `${end}${steps.length > n_steps ? " Open marks came after, for the record." : ""}` });
}

function modelLayerCurve(parent, i) {
  const y = R.byModelLayer[i].length ? scoresOf(i) : [];
  if (!y.length) {
    parent.append(el("figure", {}, el("figcaption", {}, "Model layer curve"),
        el("p", { className: "quiet" },
        say("Its score at other model layers is not in this pack: `lenstrain fit` over several model layers records it."))));
    return;
  }
  const read = C.model_layers[i].map((k) => R.modelLayers.indexOf(k)).filter((k) => k >= 0);
  chart(parent, "Model layer curve: how well the concept can be read at each model layer; a ring is what its lens reads",
    [
      { type: "scatter", mode: "lines+markers", name: "score", x: R.modelLayers, y, line: { color: colour("one") },
          marker: { size: 5 } },
      { type: "scatter", mode: "markers", name: "read by the lens", x: read.map((k) => R.modelLayers[k]),
          y: read.map((k) => y[k]),
        marker: { symbol: "circle-open", size: 15, color: colour("two"), line: { width: 3 } }, hoverinfo: "skip" },
    ],
    { xaxis: axis("model layer (transformer block, 0-based)", { tickformat: "d" }),
        yaxis: axis("calibration score (0 to 1)", { range: [0, 1.04] }), shapes: boundaries("y") },
    { note: "A linear lens on each model layer alone, with all samples. The choice leans on the mean over concepts, so a lucky peak may be passed over." });
}

function reliabilityChart(parent, { reliability }) {
  if (!reliability.length) return;
  const size = reliability.map(([, , , weight]) => 8 + 34 * Math.sqrt(weight));
  chart(parent, "Reliability: below the dashed line it is too sure of itself, above it not sure enough",
    [{ type: "scatter", mode: "markers", x: reliability.map((bin) => bin[0]), y: reliability.map((bin) => bin[1]),
        marker: { size, color: colour("one"), opacity: 0.75, line: { width: 0 } },
      hovertext: reliability.map(([p, o, rows]) => `said ${fixed(p)}, was ${fixed(o)}<br>${plural(rows, "row")}`),
          hoverinfo: "text" }],
    { xaxis: axis("predicted probability (mean of a bin)", { range: [-0.04, 1.04] }),
        yaxis: axis("observed share of positives", { range: [-0.06, 1.06] }),
      shapes: [{ type: "line", x0: 0, y0: 0, x1: 1, y1: 1,
          line: { color: colour("quiet"), dash: "dash", width: 1 } }] },
    { note: "Test samples, both classes weighing alike. The area of a mark is the weight of its bin." });
}

function controlBars(parent, i, { controls }) {
  if (!controls.length) return;
  if (C.score[i] === null && controls.every(([, score]) => score === null)) {
    parent.append(el("figure", {}, el("figcaption", {}, "Controls"),
        el("p", { className: "quiet" }, "There is nothing to compare on: no test text expresses the concept without naming it.")));
    return;
  }
  const rows = [...controls].reverse();
  const bars = (names, scores, more) => ({
    type: "bar", orientation: "h", y: names.map((name) => plotText(name, 30)), x: scores,
        text: scores.map((score) => fixed(score)),
    cliponaxis: false, hoverinfo: "none", showlegend: false, ...more,
  });
  const interval = C.low[i] === null || C.score[i] === null ? {} : {
    error_x: { type: "data", symmetric: false, color: colour("ink"), array: [C.high[i] - C.score[i]],
        arrayminus: [C.score[i] - C.low[i]] },
  };
  chart(parent, "Controls: a lens worth having is clearly longer than what knows nothing of the concept",
    [
      bars(rows.map(([name]) => name), rows.map(([, score]) => score),
          { marker: { color: colour("none") }, textposition: "outside" }),
      bars([`this lens: ${fixed(C.score[i])}`], [C.score[i]],
          { marker: { color: colour(C.grade[i]) }, textposition: "none", ...interval }),
    ],
    { xaxis: axis("score (average precision at 1 % prevalence)", { range: [0, 1.12] }), yaxis: axis("what is scored"),
        shapes: boundaries("x") },
    { height: 134 + 44 * rows.length,
        note: "The line is the 95 % interval of the score; dotted, the boundaries of grades B and A." });
}

function samples(section, i, detail, texts) {
  if (detail.confusers.length) section.append(el("h3", {},
      "Confusers: whose lenses speak up more than its own on its samples, the worst first"), list(detail.confusers));
  if (detail.refined_against.length) section.append(el("h3", {}, "Refined against"), list(detail.refined_against));
  section.append(el("h3", {}, "Held-out samples"));
  if (!R.hasStore) {
    section.append(el("p", { className: "quiet" },
        say("Their texts are in the store: `lenstrain report PACK --store STORE` shows the best and the worst of them.")));
    return;
  }
  const groups = [
    ["Its own, ranked highest", detail.best, true], ["Its own, ranked lowest: what it misses", detail.worst, true],
    ["Unrelated, ranked highest: false alarms", detail.false_alarms, false],
  ];
  section.append(el("div", { className: "triple" },
      groups.filter(([, lines]) => lines.length).map(([title, lines, isOwn]) => el("div", {}, el("h3", {}, title),
      lines.map(([text, probability, fires, unnamed, of]) => {
    const [prompt, completion] = texts[text];
    return el("div", { className: fires === isOwn ? "sample" : "sample wrong" },
      el("span", { className: "quiet" },
          `probability ${fixed(probability)}, ${fires ? "fires" : "does not fire"}${isOwn ? (unnamed ? "" : ", names the concept") : ""}`),
      !isOwn && of.length ? el("span", { className: "quiet" }, " · a sample of ",
          of.map((k, place) => [place ? ", " : "", link(k, 30)]).flat()) : null,
      el("bdi", { className: "text" }, shown(prompt, Infinity, true),
          completion ? el("span", { className: "completion" }, ` ⟶ ${shown(completion, Infinity, true)}`) : null));
  })))));
}
