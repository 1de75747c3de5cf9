const say = {episode: "", at: 0};
const rounded = (value) => Number(value.toPrecision(4));
async function label(name, second = null) {
  const said = await ask("moments", {episode: name});
  Object.assign(say, said, {episode: name});
  get("say").hidden = false; get("say-of").textContent = name; get("taught").textContent = "";
  const ticks = say.moments.map(([tick]) => tick), apart = ticks.map((tick) => Math.abs((tick - ticks[0]) * say.tick_s - second));
  get("say-line").replaceChildren(...say.moments.map(([tick, by], at) => { const part = make("span", null, {title: `${by} from tick ${tick}`}); part.style.flex = `${(ticks[at + 1] ?? tick + 1) - tick} 0 0`; part.style.background = color(WHO[by] || "grey"); return part; }));
  get("at").max = say.moments.length - 1;
  get("say").scrollIntoView();
  await moment(second === null ? Math.max(0, say.moments.findIndex(([, by]) => by === "policy")) : apart.indexOf(Math.min(...apart)));
  await labels();
}
async function moment(at) {
  say.at = at; get("at").value = at; get("teach").disabled = true;
  const [tick, by] = say.moments[at], said = await ask("moment", {episode: say.episode, tick});
  if (say.at !== at) return;  // another one was chosen meanwhile
  const own = by === "policy";
  get("moment-is").textContent = `${number(tick * say.tick_s)} s (tick ${tick}): ${by} acted${own ? "" : ", which is not labelled"}`;
  get("moment-pictures").replaceChildren(...said.pictures.map((one) => make("figure", null, {}, make("img", null, {src: one.picture, alt: `camera ${one.camera} at tick ${tick}`}), make("figcaption", one.camera, {class: "quiet"}))));
  if (!said.pictures.length) get("moment-pictures").append(make("p", "Pictures are there if the server was started with --keep_episodes.", {class: "quiet"}));
  gesture(said.done, own);
  get("teach").disabled = !own;
}
// What people see of an entry points as its name says; `value` is the robot's own number.
function gesture(done, own) {
  const rows = make("div", null, {class: "entries"}), marks = [];
  const redraw = () => marks.forEach((mark) => mark());
  say.values = say.entries.map((entry, at) => {
    const span = entry.cost > 0 ? 10 / entry.cost : 1, low = entry.low ?? done[at] - span, high = entry.high ?? done[at] + span;
    entry.range = [entry.sign * low, entry.sign * high].sort((a, b) => a - b);
    return Math.min(high, Math.max(low, done[at]));
  });
  say.entries.forEach((entry, at) => {
    const limits = {min: entry.range[0], max: entry.range[1], step: "any", "data-entry": at, ...(own ? {} : {disabled: ""})};
    const slide = make("input", null, {type: "range", "aria-label": entry.name, ...limits}), exact = make("input", null, {type: "number", "aria-label": `${entry.name} as a number`, ...limits}), about = make("span", null, {class: "quiet"});
    const take = (event) => { if (event.target.value === "") return; say.values[at] = entry.sign * Number(event.target.value); redraw(); };
    slide.addEventListener("input", take); exact.addEventListener("change", take);
    marks.push(() => { const value = rounded(entry.sign * say.values[at]); slide.value = value; exact.value = value; about.textContent = entry.is_length ? `${number(value * entry.cost)} cm` : entry.integrates ? "" : "from then on"; });
    rows.append(make("span", entry.name), slide, exact, about);
  });
  const pad = say.plane ? [plane(done, own, marks, redraw)] : [];
  get("gesture").replaceChildren(...pad, rows);
  redraw();
}
function plane(done, own, marks, redraw) {
  const pair = say.plane.map((at) => say.entries[at]), reach = Math.max(...pair.flatMap((entry) => entry.range.map(Math.abs)));
  const seen = (values) => say.plane.map((at, axis) => (axis ? -100 : 100) * pair[axis].sign * values[at] / reach);
  const picture = draw("svg", {viewBox: "-110 -110 220 220", class: "pad", id: "pad", role: "img", "aria-label": `Draw how far: ${pair[0].name} is to the right, ${pair[1].name} is up`});
  const [x, y] = seen(done), line = draw("line", {x1: 0, y1: 0, stroke: color("amber"), "stroke-width": 3}), dot = draw("circle", {r: 7, fill: color("amber")});
  picture.append(draw("path", {d: "M-110 0H110M0 -110V110", stroke: color("line")}), draw("text", {x: 106, y: -6, "text-anchor": "end"}, pair[0].name), draw("text", {x: 6, y: -98}, pair[1].name), draw("circle", {cx: x, cy: y, r: 5, fill: color("grey")}), line, dot);
  marks.push(() => { const [cx, cy] = seen(say.values); for (const [name, value] of [["cx", cx], ["cy", cy]]) dot.setAttribute(name, value); line.setAttribute("x2", cx); line.setAttribute("y2", cy); });
  const point = (event) => {
    const box = picture.getBoundingClientRect(), to = [220 * (event.clientX - box.left) / box.width - 110, 110 - 220 * (event.clientY - box.top) / box.height];
    say.plane.forEach((at, axis) => { const [low, high] = pair[axis].range; say.values[at] = pair[axis].sign * Math.min(high, Math.max(low, to[axis] * reach / 100)); });
    redraw();
  };
  if (own) {
    picture.addEventListener("pointerdown", (event) => { picture.setPointerCapture(event.pointerId); point(event); });
    picture.addEventListener("pointermove", (event) => { if (picture.hasPointerCapture(event.pointerId)) point(event); });
  }
  return picture;
}
async function labels() {
  const said = await ask("records", {episode: say.episode, sort: "newest", page: 0});
  get("labels").replaceChildren(...said.records.filter((record) => record.labelled).map((record) => make("li", null, {"data-id": record.id}, make("span", `record ${record.id}: a label of tick ${record.tick} `), make("button", "delete", {type: "button", class: "danger", onclick: guarded(async () => { if (!confirm(`Delete the label of tick ${record.tick}?`)) return; await ask("forget", {ids: record.id}); await refresh(); await labels(); })}))));
}
get("at").addEventListener("input", guarded(() => moment(Number(get("at").value))));
get("say-close").addEventListener("click", () => { get("say").hidden = true; });
get("teach").addEventListener("click", guarded(async () => {
  const [tick] = say.moments[say.at], said = await ask("label", {episode: say.episode, tick, gesture: say.values.map((value) => Number(value.toPrecision(7))).join(",")});
  get("taught").textContent = `Record ${said.records[0]} was taught, of tick ${tick}.`;
  await refresh(); await labels();
}));
