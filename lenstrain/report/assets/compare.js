const compareState = { a: 0, b: 1, metric: "score" };

function renderCompare(section) {
  const packs = [{ label: R.label, about: R.about, summary: R.summary, grade: C.grade, score: C.score,
      test_f1: C.test_f1, n_samples: C.n_samples }, ...R.beside];
  section.append(el("h2", {}, "Packs beside each other"), packTable(packs));
  if (packs.length < 2) {
    section.append(el("p", {},
        say("There is no other pack in this report. `lenstrain report PACK --beside OTHER` adds one, for instance another threshold of a sweep or another family; repeat it for more.")));
    return;
  }
  const stores = new Set(packs.map((pack) => pack.about.provenance.store?.digest));
  if (stores.size > 1)
    section.append(el("p", { className: "warning" },
        "These packs were not all fitted on the same store: their held-out samples differ, and a difference may be one of samples."));
  if (new Set(packs.map((pack) => pack.summary.grading_rule)).size > 1)
    section.append(el("p", { className: "warning" },
        "These packs were graded by different rules: by that of versions before 0.3 scores are over all held-out samples, by today's over those that do not name the concept."));
  const names = packs.map((pack, k) => [String(k), shown(pack.label, 40)]);
  const choose = (key) => (value) => {
    compareState[key] = key === "metric" ? value : Number(value);
    redraw();
  };
  section.append(el("div", { className: "filters" }, select("First pack", names, String(compareState.a), choose("a")),
      select("Second pack", names, String(compareState.b), choose("b")),
    select("Metric", [["score", "score"], ["test_f1", "test F1"]], compareState.metric, choose("metric"))));
  const [a, b, metric] = [packs[compareState.a], packs[compareState.b], compareState.metric];
  const both = concepts().filter((i) => a[metric][i] !== null && b[metric][i] !== null);
  if (!both.length) {
    section.append(el("p", { className: "warning" }, "There is no concept that both packs have such a figure for."));
    return;
  }
  const pair = el("div", { className: "pair" });
  section.append(pair);
  scatterOf(pair, a, b, metric, both);
  const gain = (i) => b[metric][i] - a[metric][i];
  const right = el("div", {});
  pair.append(right);
  const better = both.filter((i) => gain(i) > 0).length;
  const worse = both.filter((i) => gain(i) < 0).length;
  right.append(el("h3", {}, "In short"), el("p", {},
      `Second minus first: ${signed(mean(both.map(gain)), 3)} on average over ${plural(both.length, "concept")}; the second pack is higher on ${better}, lower on ${worse}.`),
    el("p", { className: "quiet" },
        say("`lenstrain compare FIRST SECOND --store STORE` measures both on the very same samples, with an interval.")),
        el("h3", {}, "Grades: rows of the first pack, columns of the second"), gradeTable(a, b));
  const changed = [...both].filter((i) => gain(i) !== 0).sort((x, y) => gain(y) - gain(x));
  for (const [title, numbers] of [["The second pack is better on", changed.filter((i) => gain(i) > 0).slice(0, 8)],
      ["The second pack is worse on", changed.filter((i) => gain(i) < 0).reverse().slice(0, 8)]])
    if (numbers.length) right.append(el("h3", {}, title),
        el("ul", { className: "plain" }, numbers.map((i) => el("li", {}, link(i, 40),
        ` ${signed(gain(i))} (${fixed(a[metric][i])} to ${fixed(b[metric][i])})`))));
}

function packTable(packs) {
  const head = ["pack", "family", "target F1", "lenses", ...GRADES.map(gradeWord), "capped", "graduated", "mean F1", "unnamed",
      "mean score", "names", "samples", "iterations", "fitted in"];
  const rows = packs.map(({ label, about, summary, n_only_there }) => [
    el("bdi", {}, shown(label, 60)), about.family, String(about.provenance.settings?.target_f1 ?? "–"),
        summary.n_lenses.toLocaleString("en") + (n_only_there ? ` (${n_only_there} not in the first)` : ""),
    ...GRADES.map((grade) => String(countOf(summary, grade))), String(summary.capped), String(summary.graduated),
        fixed(summary.mean_test_f1), fixed(summary.mean_test_f1_unnamed), fixed(summary.mean_score),
        fixed(summary.mean_score_named),
    fixed(summary.mean_samples, 1), fixed(summary.mean_iterations, 1), duration(about.elapsed_s),
  ]);
  return el("div", { className: "wide" }, el("table", {},
      el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell)))))));
}

function scatterOf(parent, a, b, metric, both) {
  const title = metric === "score" ? "score" : "test F1";
  const symbols = { A: "circle", B: "square", C: "triangle-up", U: "x" };
  const traces = GRADES.map((grade) => {
    const numbers = both.filter((i) => b.grade[i] === grade);
    return { type: "scatter", mode: "markers", name: `${gradeName(grade)} in the second`, x: numbers.map((i) => a[metric][i]),
        y: numbers.map((i) => b[metric][i]), customdata: numbers,
      marker: { color: colour(grade), symbol: symbols[grade], size: both.length > 1000 ? 5 : 8, opacity: 0.75,
          line: { width: 0 } },
      hovertext: numbers.map((i) => `${plotText(C.name[i], 50)}<br>first ${fixed(a[metric][i])}, second ${fixed(b[metric][i])}`),
          hoverinfo: "text" };
  });
  chart(parent, `Every concept in both packs: above the dashed line the second has the better ${title}. Click one to open it`,
      traces,
    { xaxis: axis(`${title} of the first: ${plotText(a.label, 26)} (0 to 1)`, { range: [-0.02, 1.04] }),
        yaxis: axis(`${title} of the second: ${plotText(b.label, 26)} (0 to 1)`, { range: [-0.02, 1.04] }),
      shapes: [{ type: "line", x0: 0, y0: 0, x1: 1, y1: 1,
          line: { color: colour("quiet"), dash: "dash", width: 1 } }] },
    { height: 460, on: { plotly_click: (event) => open(event.points[0].customdata) } });
}

function gradeTable(a, b) {
  const count = (x, y) => concepts().filter((i) => a.grade[i] === x && b.grade[i] === y).length;
  return el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, ""),
      GRADES.map((grade) => el("th", { scope: "col" }, badge(grade))))),
    el("tbody", {}, GRADES.map((x) => el("tr", {}, el("td", {}, badge(x)),
        GRADES.map((y) => el("td", {}, String(count(x, y))))))));
}
