// Where in the model concepts can be read: means of many concepts first, then a hundred rows at a time.

const ROWS = 100;
const MOST_BRANCHES = 40;
const modelLayerState = { group: "", page: 0 };

function branchOf(i) {
  let top = i;
  for (let steps = 0; R.tree.parents[top].length && steps < 100; steps++) top = R.tree.parents[top][0];
  return top;
}

const scoresOf = (i) => R.byModelLayer[i].map((value) => (value === null ? null : value / 1000));
const peakOf = (scores) => scores.reduce((best, value,
    k) => (value !== null && (scores[best] === null || value > scores[best]) ? k : best), 0);
const meanRow = (numbers) => R.modelLayers.map((_, k) => mean(numbers.map((i) => R.byModelLayer[i][k] / 1000)));

function renderModelLayers(section) {
  const measured = concepts().filter((i) => R.byModelLayer[i].length);
  readBy(section);
  if (R.modelLayers.length < 2 || !measured.length) {
    section.append(el("p", {},
        say("The scores of the other model layers are not in this pack: there was one model layer to choose from, " +
      "or it was fitted by an older version or another program. `lenstrain fit` over several model layers records them.")));
    return;
  }
  const groups = new Map();
  const levels = [...new Set(measured.map((i) => C.level[i]))].sort((a, b) => a - b);
  for (const level of levels) groups.set(`L${level}`,
      [isNarrow() ? `level ${level}` : `level of abstraction ${level}`, measured.filter((i) => C.level[i] === level)]);
  if (!R.tree.is_flat) {
    const branches = new Map();
    for (const i of measured) {
      const top = branchOf(i);
      branches.set(top, [...(branches.get(top) || []), i]);
    }
    const largest = [...branches].sort((a, b) => b[1].length - a[1].length).slice(0, MOST_BRANCHES);
    for (const [top, numbers] of largest) groups.set(`B${top}`, [nameOf(top, 30), numbers]);
  }
  const width = isNarrow() ? 12 : 30;
  const rows = [...groups].map(([key, [label, numbers]]) => ({ label: `${plotText(label, width)} (${numbers.length})`,
      scores: meanRow(numbers), key }));
  const isBranch = (row) => row.key.startsWith("B");
  const sorted = [...rows.filter((row) => !isBranch(row)),
      ...rows.filter(isBranch).sort((a, b) => peakOf(a.scores) - peakOf(b.scores))];
  heatMap(section, "Where whole levels of abstraction and branches can be read: bright is good, branches in the order of their best model layer",
    sorted.map((row) => row.label), sorted.map((row) => row.scores), [], (row) => {
      Object.assign(modelLayerState, { group: sorted[row].key, page: 0 });
      redraw();
    }, "Mean score of the concepts on calibration samples, by a linear lens on each model layer alone. Click a row to see its concepts below.",
    "group (lenses in it)");
  conceptRows(section, groups, measured);
}

function conceptRows(section, groups, measured) {
  const options = measured.length <= ROWS ? [["all", "all concepts"]] : [];
  options.push(...[...groups].map(([key, [label, numbers]]) => [key, `${label} (${numbers.length})`]));
  if (!options.some(([key]) => key === modelLayerState.group)) Object.assign(modelLayerState, { group: options[0][0], page: 0 });
  const chosen = modelLayerState.group === "all" ? measured : groups.get(modelLayerState.group)[1];
  const peaks = new Map(chosen.map((i) => [i, peakOf(scoresOf(i))]));
  const order = [...chosen].sort((a,
      b) => C.level[a] - C.level[b] || peaks.get(a) - peaks.get(b) || C.score[b] - C.score[a]);
  const pages = Array.from({ length: Math.ceil(order.length / ROWS) },
      (_, k) => [String(k), `${k * ROWS + 1} to ${Math.min(order.length, (k + 1) * ROWS)}`]);
  section.append(el("div", { className: "filters" },
    select("Concepts of", options, modelLayerState.group, (group) => {
      Object.assign(modelLayerState, { group, page: 0 });
      redraw();
    }),
    pages.length > 1 && select("Rows", pages, String(modelLayerState.page), (page) => {
      modelLayerState.page = Number(page);
      redraw();
    })));
  const here = order.slice(modelLayerState.page * ROWS, (modelLayerState.page + 1) * ROWS);
  const dots = here.flatMap((i, row) => C.model_layers[i].map((k) => [R.modelLayers.indexOf(k),
      row])).filter(([x]) => x >= 0);
  heatMap(section, "Where each concept can be read: bright is good, a ring is the model layer that its lens reads",
    here.map((i) => `${plotText(nameOf(i), isNarrow() ? 12 : 28)} · ${C.level[i]} ${gradeWord(C.grade[i])}`), here.map(scoresOf),
        dots, (row) => open(here[row]),
    "By level of abstraction, then by the best model layer; behind a name are its level and its grade. Click a row to open the concept.",
    "concept", here.map((i, row) => (row && C.level[i] !== C.level[here[row - 1]] ? row : 0)).filter(Boolean));
}

function readBy(section) {
  const read = concepts().filter((i) => C.model_layers[i].length);
  // Where all lenses read the same model layers, bars of one height would say nothing.
  const sets = new Set(read.map((i) => C.model_layers[i].join()));
  if (!read.length || (sets.size === 1 && C.model_layers[read[0]].length > 1)) return;
  const x = R.modelLayers.length ? R.modelLayers : [...new Set(read.flatMap((i) => C.model_layers[i]))].sort((a,
      b) => a - b);
  const traces = gradesThere().map((grade) => ({
    type: "bar", name: gradeName(grade), x: x.map(String), marker: { color: colour(grade) },
    y: x.map((k) => read.filter((i) => C.grade[i] === grade && C.model_layers[i].includes(k)).length),
  }));
  chart(section, "Which model layers the lenses read: high bars are where most concepts are represented best", traces,
    { barmode: "stack", xaxis: axis("model layer (transformer block, 0-based)", { type: "category" }),
        yaxis: axis("lenses (count)") }, { height: 320 });
}

// `labels` are texts for plotly.
function heatMap(section, title, labels, z, dots, onRow, note, what, breaks = []) {
  const x = R.modelLayers.map(String);
  const y = labels.map((_, row) => row);
  const traces = [{
    type: "heatmap", x, y, z, zmin: 0, zmax: 1, colorscale: "Cividis", hoverongaps: false, xgap: 0,
        ygap: labels.length < 60 ? 1 : 0,
    hovertext: z.map((row, r) => row.map((value, k) => `${labels[r]}<br>model layer ${x[k]}: score ${fixed(value)}`)),
        hoverinfo: "text",
    colorbar: isNarrow() ? { orientation: "h", y: 1, yanchor: "bottom", thickness: 10, outlinewidth: 0, len: 1,
        title: { text: "score (0 to 1)", side: "top" },
        dtick: 0.5 } : { title: { text: "score (0 to 1)", side: "right" }, thickness: 12, outlinewidth: 0,
        len: Math.min(220, 40 + 18 * labels.length), lenmode: "pixels", y: 1, yanchor: "top", tick0: 0, dtick: 0.5 },
  }];
  if (dots.length)
    traces.push({
      type: "scatter", mode: "markers", x: dots.map(([k]) => x[k]), y: dots.map(([, row]) => row), hoverinfo: "skip",
          showlegend: false,
      marker: { symbol: "circle", size: 8, color: "#ffffff", line: { color: "#000000", width: 1.5 } },
    });
  chart(section, title, traces,
    { xaxis: axis(isNarrow() ? "model layer (0-based)" : "model layer (transformer block, 0-based)",
        { type: "category", showgrid: false, range: [-0.5, x.length - 0.5] }),
      margin: { l: 50, r: 14, t: isNarrow() ? 60 : 28, b: 44 },
      shapes: breaks.map((row) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: row - 0.5, y1: row - 0.5,
          line: { color: colour("page"), width: 5 } })),
      yaxis: axis(what, { range: [labels.length - 0.5, -0.5], tickmode: "array", tickvals: y, ticktext: labels,
          showgrid: false, tickfont: { size: 11 } }) },
    { height: (isNarrow() ? 150 : 116) + (isNarrow() ? 16 : 18) * Math.max(labels.length, 5), note,
        on: { plotly_click: (event) => onRow(event.points[0].y) } });
}
