// plotly in the colours of the page. Titles are text of the page above each chart, so that they wrap on a phone.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const isNarrow = () => window.innerWidth < 640;

const axis = (title, more = {}) => ({
  title: { text: title, standoff: 8 }, gridcolor: colour("line"), linecolor: colour("line"), zeroline: false,
  automargin: true, ...more,
});

const awaited = []; // what is being drawn

// A figure: what to see in it, the chart, and what happens on events of plotly.
function chart(parent, title, traces, layout, { height = 320, on = {}, note = null, tools = true } = {}) {
  const plot = el("div", { className: "plot", role: "img", "aria-label": title });
  plot.style.minHeight = `${height}px`; // the page has its final length before the chart is there
  parent.append(el("figure", {}, el("figcaption", {}, title), note && el("p", { className: "quiet" }, say(note)),
      plot));
  const base = {
    height, font: { family: "system-ui, Liberation Sans, sans-serif", size: isNarrow() ? 11 : 12,
        color: colour("ink") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    margin: { l: 50, r: 14, t: 10, b: 44 }, legend: { orientation: "h", y: 1.01, yanchor: "bottom", x: 0,
        traceorder: "normal" },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("quiet"), activecolor: colour("ink") },
  };
  const config = {
    displaylogo: false, responsive: true, doubleClick: "reset",
    modeBarButtons: [["toImage", "resetScale2d"]], displayModeBar: tools && !isNarrow(),
  };
  const drawn = library("plotly").then(async () => {
    if (!plot.isConnected) return; // somebody went elsewhere meanwhile
    await Plotly.newPlot(plot, traces, { ...base, ...layout }, config);
    for (const [event, act] of Object.entries(on)) plot.on(event, act);
  });
  awaited.push(drawn);
}

function clear(section) {
  section.querySelectorAll(".js-plotly-plot").forEach((plot) => Plotly.purge(plot));
  section.replaceChildren();
}

// The boundaries of the grades, as dotted lines along one axis ("x" or "y").
const boundaries = (along) =>
  [0.2, 0.5].map((at) => ({
    type: "line", line: { color: colour("quiet"), width: 1, dash: "dot" }, [`${along}0`]: at, [`${along}1`]: at,
    ...(along === "x" ? { yref: "paper", y0: 0, y1: 1 } : { xref: "paper", x0: 0, x1: 1 }),
  }));

const open = (i) => {
  location.hash = address(i);
};
