function renderOverview(section) {
  const { summary, about } = R;
  const { calibration } = about.provenance;
  const blocking = R.impact.find((mode) => mode.mode === "blocking, grade B");
  const share = (n) => `${Math.round((100 * n) / R.nLenses)} %`;
  const tiles = [
    [R.nLenses.toLocaleString("en"), "lenses", "#table"],
    ...GRADES.map((grade) => [countOf(summary, grade), `${gradeName(grade)} · ${share(countOf(summary, grade))}`,
        `#table?grade=${grade}`, grade]),
    [summary.capped, `grade capped · ${share(summary.capped)}`, "#table?show=capped"],
    [summary.graduated, `graduated · ${share(summary.graduated)}`, "#table?show=graduated"],
    [summary.hungry, "asked for more samples", "#table?show=hungry"],
    [fixed(summary.mean_score), summary.mean_score_named === null ? "mean score"
      : `mean score · ${fixed(summary.mean_score_named)} on texts that name the concept`],
    [fixed(summary.mean_test_f1), summary.mean_test_f1_unnamed === null ? "mean test F1"
      : `mean test F1 · ${fixed(summary.mean_test_f1_unnamed)} unnamed, ${fixed(summary.mean_test_f1_named)} named`],
    "mean_natural_score" in summary && [fixed(summary.mean_natural_score), "natural score · fires on "
      + `${fixed(100 * summary.mean_natural_false_positive_rate, 1)} % of texts of no concept`],
    calibration && [fixed(calibration.expected_calibration_error, 3),
        `calibration error of probabilities · Brier score ${fixed(calibration.brier, 3)}`],
    [fixed(summary.mean_samples, 1), "training samples on average"],
    [duration(about.elapsed_s), "to fit the pack"],
    blocking && [`+${blocking.extra_iterations.toLocaleString("en")}`, "iterations, had grade B been asked for"],
  ].filter(Boolean);
  section.append(el("div", { className: "tiles" }, tiles.map(([value, text, href, grade]) => {
    const box = el(href ? "a" : "div", { className: "tile" }, el("b", {}, String(value)), el("span", {}, text));
    if (href) Object.assign(box, { href }).style.textDecoration = "none";
    if (grade) box.style.borderLeft = `6px solid var(--${grade})`;
    return box;
  })));
  if (about.provisional)
    section.append(el("p", { className: "warning" },
        `Provisional: extraction was still running, these lenses saw part of the store${partOf(about.provenance)}.`));
  for (const { which, n, text } of R.warnings)
    section.append(el("p", { className: "warning" },
      el("a", { href: `#table?show=${which}` }, `${n.toLocaleString("en")} of ${R.nLenses.toLocaleString("en")}`),
          say(` ${text}`)));
  const pair = el("div", { className: "pair" });
  section.append(pair);
  gradesByLevel(pair);
  scoreHistogram(pair);
  readBy(pair);
  perIteration(pair);
  impactTable(section);
  section.append(origin(about.provenance));
}

function partOf({ extracted: part }) {
  return part ? `: ${part.blocks} of ${part.of_blocks} blocks, ${part.concepts} of ${part.of_concepts} concepts` : "";
}

function gradesByLevel(parent) {
  const levels = [...new Set(concepts().map((i) => C.level[i]))].sort((a, b) => a - b);
  const count = (grade, level) => concepts().filter((i) => C.grade[i] === grade && C.level[i] === level).length;
  const all = levels.map((level) => concepts().filter((i) => C.level[i] === level).length);
  const traces = gradesThere().map((grade) => {
    const n = levels.map((level) => count(grade, level));
    return {
      type: "bar", name: gradeName(grade), x: levels.map(String), y: n.map((k, place) => (100 * k) / all[place]),
          text: n.map((k) => (k ? `${gradeWord(grade)} ${k}` : "")),
      textposition: "inside", insidetextanchor: "middle", textangle: 0, marker: { color: colour(grade) },
      insidetextfont: { color: colour(`${grade}-ink`) || "#000" }, hoverinfo: "none",
    };
  });
  const ticks = { type: "category", tickvals: levels.map(String),
      ticktext: levels.map((level, place) => `${level}<br>${plural(all[place], "lens", "lenses")}`) };
  chart(parent, "Grades by level of abstraction: how many lenses can be trusted, from general concepts to special ones",
    traces, { barmode: "stack", uniformtext: { minsize: 9, mode: "hide" },
        xaxis: axis("level of abstraction (0 is the most general)", ticks),
      yaxis: axis("share of the level's lenses (%)", { range: [0, 100] }) });
}

function scoreHistogram(parent) {
  const width = 0.05;
  const bins = Array.from({ length: 20 }, (_, k) => (k + 0.5) * width);
  const place = (score) => Math.min(19, Math.floor(score / width + 1e-9));
  const traces = gradesThere().map((grade) => {
    const n = new Array(20).fill(0);
    concepts().forEach((i) => C.grade[i] === grade && C.score[i] !== null && (n[place(C.score[i])] += 1));
    return { type: "bar", name: gradeName(grade), x: bins, y: n, width: width * 0.94, marker: { color: colour(grade) },
      hovertext: n.map((k, b) => `${plural(k, "lens", "lenses")} from ${(b * width).toFixed(2)} to ${((b + 1) * width).toFixed(2)}`),
      hoverinfo: "text" };
  });
  const without = concepts().filter((i) => C.score[i] === null).length;
  const note = without ? `${plural(without, "lens", "lenses")} without a score ${without === 1 ? "is" : "are"} left out.` : null;
  chart(parent, "Scores of all lenses: further right is better, dotted lines part the grades", traces,
    { barmode: "stack", xaxis: axis("score (average precision at 1 % prevalence)", { range: [0, 1] }),
      yaxis: axis("lenses (count)"), shapes: boundaries("x") }, { note });
}

function perIteration(parent) {
  if (!R.iterations.length) return;
  const x = R.iterations.map((step) => step.iteration);
  chart(parent, "Lenses still in training at each iteration, and what it cost: a long tail is work that few lenses ask for",
    [
      { type: "bar", name: "lenses fitted (left)", x, y: R.iterations.map((step) => step.fits),
          marker: { color: colour("one") } },
      { type: "scatter", mode: "lines+markers", name: "seconds (right)", x, y: R.iterations.map((step) => step.seconds),
        yaxis: "y2", line: { color: colour("two"), dash: "dot" }, marker: { symbol: "diamond", size: 7 } },
    ],
    { xaxis: axis("iteration (those after graduation included)",
        { tickformat: "d", ...(x.length <= 12 ? { dtick: 1 } : {}) }),
        yaxis: axis("lenses fitted (count)", { rangemode: "tozero" }),
      yaxis2: axis("time of one core (s)", { overlaying: "y", side: "right", showgrid: false, rangemode: "tozero",
          tickmode: "auto", nticks: 6 }),
      margin: { l: 50, r: 60, t: 10, b: 44 } });
}

function impactTable(parent) {
  const box = el("div", {}, el("h3", {}, "What each validation mode would have cost on the same data"));
  parent.append(box);
  if (!R.impact.length) {
    box.append(el("p", { className: "quiet" },
        "This pack has no record beyond graduation: fit it again without --no-beyond."));
    return;
  }
  const rows = R.impact.map((mode) => el("tr", {},
    [mode.mode, mode.graduated, mode.forced_on, mode.never_graduated, `+${mode.extra_iterations}`,
        fixed(mode.mean_extra_iterations, 1),
      `+${mode.extra_samples}`, duration(mode.extra_seconds),
          fixed(mode.mean_score_gain, 3)].map((cell) => el("td", {}, String(cell)))));
  const head = ["validation", "graduated", "forced on", "in vain", "extra iterations", "mean", "extra samples",
      "extra time", "score gained"];
  box.append(
    el("div", { className: "wide" }, el("table", {},
        el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows))),
    el("p", { className: "quiet" },
        "Forced on: lenses at the target F1 that would have had to train on for their grade; in vain: those that never " +
      "got it. Mean and score gained: over the lenses forced on. Time of one core, fitting and judging; none for more samples from the model."));
}

function origin(provenance) {
  const rows = [];
  const walk = (value, path) => {
    if (value !== null && typeof value === "object" && !Array.isArray(value))
      for (const [key, entry] of Object.entries(value)) walk(entry, [...path, key]);
    else rows.push([path.join(" "), Array.isArray(value) ? value.join(", ") : value === null ? "–" : String(value)]);
  };
  walk(provenance, []);
  return el("details", {}, el("summary", {}, "Model, store, settings and versions"),
    el("dl", {}, rows.map(([key, value]) => el("div", {}, el("dt", {}, shown(key, 80)),
        el("dd", {}, el("bdi", {}, shown(value, 200)))))));
}
