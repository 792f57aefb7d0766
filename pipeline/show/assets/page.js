// Draws the charts from the data in the page. Every word and table is there without it.
"use strict";

(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  if (!page.range) return; // nothing is stored

  const DAY = 86400;
  const LANE = 18; // CSS pixels
  const LANE_GAP = 6;
  const MIN_MARK = 2; // a gap of a second in a month is to be seen
  const REACH = 8; // a finger is no needle
  const PAPER = 680; // so wide is a sheet of A4 or Letter between its margins
  const INCREMENTS = [0.001, 0.01, 0.1, 1, 2, 5, 10, 15, 30].concat(
    [1, 2, 5, 10, 15, 30].map((minutes) => minutes * 60),
    [1, 2, 3, 4, 6, 8, 12].map((hours) => hours * 3600),
    [1, 2, 5, 7, 14, 28, 91, 182, 365].map((days) => days * DAY),
  );
  const COUNT_INCREMENTS = [];
  for (let power = 1; power < 1e9; power *= 10) COUNT_INCREMENTS.push(power, 2 * power, 5 * power);
  const BYTE_INCREMENTS = [];
  for (let power = 1; power < 2 ** 50; power *= 2) BYTE_INCREMENTS.push(power);

  const plots = [];
  let view = page.range; // what all charts show, in seconds since the epoch

  // Words and numbers

  const formats = new Map();

  function number(value, digits = 0) {
    if (!formats.has(digits)) {
      const fixed = { minimumFractionDigits: digits, maximumFractionDigits: digits };
      formats.set(digits, new Intl.NumberFormat("en", fixed));
    }
    return formats.get(digits).format(value);
  }

  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

  /** As du -h and verif.py write it. */
  function bytes(value) {
    const units = ["B", "K", "M", "G", "T"];
    let unit = 0;
    while (value >= 1023.95 && unit < units.length - 1) {
      value /= 1024;
      unit += 1;
    }
    return `${value.toFixed(unit && 1)}${units[unit]}`;
  }

  function length(seconds) {
    const units = [["d", DAY, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]];
    for (const [big, ofBig, small, ofSmall] of units) {
      if (seconds >= 2 * ofBig) {
        return `${number(Math.floor(seconds / ofBig))} ${big} ${Math.floor((seconds % ofBig) / ofSmall)} ${small}`;
      }
    }
    return `${number(seconds, 1)} s`;
  }

  const iso = (seconds) => new Date(Math.round(seconds * 1000)).toISOString();
  const date = (seconds) => iso(seconds).slice(0, 10);
  const clock = (seconds, step) => iso(seconds).slice(11, step >= 60 ? 16 : step >= 1 ? 19 : 23);
  const time = (seconds, step) => `${date(seconds)} ${clock(seconds, step)}`;
  const shortTime = (seconds, step) => (narrow() ? time(seconds, step).slice(5) : time(seconds, step));
  const visibleStep = () => ((view[1] - view[0]) / 1000 >= 60 ? 60 : 1);

  function timeLabels(u, splits, axis, space, increment) {
    const edge = u.valToPos(view[1], "x") - 20; // a label further right would be cut off
    let last = "";
    return splits.map((split) => {
      if (u.valToPos(split, "x") > edge) return "";
      const day = iso(split).slice(5, 10);
      if (increment >= DAY) {
        const year = iso(split).slice(0, 4);
        const label = year === last ? day : `${day}\n${year}`;
        last = year;
        return label;
      }
      const label = day === last ? clock(split, increment) : `${clock(split, increment)}\n${day}`;
      last = day;
      return label;
    });
  }

  // What all charts have in common

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = () => window.innerWidth < 520;
  const gutter = () => (narrow() ? 60 : 68);
  const AXIS = 42; // the height of a labelled x axis
  const FONT = "12px system-ui, sans-serif";

  function xAxis(labelled, grid) {
    return {
      show: true,
      incrs: INCREMENTS,
      space: () => (narrow() ? 56 : 80),
      size: labelled ? AXIS : 4,
      gap: 8,
      values: labelled ? timeLabels : (u, splits) => splits.map(() => ""),
      stroke: () => color("--faint"),
      font: FONT,
      grid: { show: grid, stroke: () => color("--line"), width: 1 },
      ticks: { show: false },
    };
  }

  function yAxis(values, more) {
    return {
      space: 26,
      size: gutter,
      gap: 6,
      values,
      stroke: () => color("--faint"),
      font: FONT,
      grid: { stroke: () => color("--line"), width: 1 },
      ticks: { show: false },
      ...more,
    };
  }

  function line(more) {
    return { stroke: () => color("--data"), width: 1.5, ...more };
  }

  // The lower edge is drawn, so that a minute without rows is seen where a bucket is narrower than a pixel.
  const upper = (more) => ({ stroke: "transparent", width: 0, points: { show: false }, ...more });
  const lower = (more) => ({ stroke: () => color("--edge"), width: 1, points: { show: false }, ...more });
  const band = { series: [1, 2], fill: () => color("--band") };

  /** The bucket that a moment is in, where each point stands for the time from it to the next. */
  function bucketBefore(u, series, closest, x) {
    return closest > 0 && u.data[0][closest] > x ? closest - 1 : closest;
  }

  /** Least and most of what is visible, if only in part: a bucket may begin before the view does. */
  function extent(u) {
    const times = u.data[0];
    let [least, most] = [Infinity, -Infinity];
    for (let index = 0; index < times.length; index += 1) {
      if (times[index] > view[1] || times[index + 1] < view[0]) continue;
      for (const values of u.data.slice(1)) {
        if (values[index] === null) continue;
        least = Math.min(least, values[index]);
        most = Math.max(most, values[index]);
      }
    }
    return least <= most ? [least, most] : [0, 1];
  }

  function fromZero(u) {
    const [least, most] = extent(u);
    return [Math.min(0, least), most * 1.15 || 1];
  }

  function around(u) {
    const [least, most] = extent(u);
    const room = (most - least || Math.abs(most) * 1e-3 || 1) * 0.06;
    return [least - room, most + room];
  }

  /** Draw a chart; `tell` returns what its readout says of the cursor's place, or null for what it says otherwise. */
  function draw(figure, { height, data, tell, grid = true, axes, hooks = {}, cursor = {}, ...options }) {
    const target = figure.querySelector(".plot");
    const readout = figure.querySelector(".readout");
    const silent = readout.textContent;
    const labelled = figure.dataset.labelled === "yes";
    const full = 4 + height + (labelled ? AXIS : 4); // padding, plot, axis
    const u = new uPlot(
      {
        ...options,
        width: target.clientWidth,
        height: full,
        padding: [4, 1, 0, 0],
        legend: { show: false },
        axes: [xAxis(labelled, grid), ...axes],
        scales: { x: { time: false, range: () => view }, ...options.scales },
        cursor: {
          y: false,
          drag: { x: true, y: false, setScale: false },
          sync: { key: "page", scales: ["x", null], filters: { pub: (type) => /^mouse(move|leave)$/.test(type) } },
          bind: { dblclick: () => () => show(page.range) },
          ...cursor,
        },
        hooks: {
          ...hooks,
          setCursor: [
            (u) => {
              const told = u.cursor.left >= 0 ? tell(u) : null;
              readout.textContent = told ? told.text : silent;
              readout.classList.toggle("gap", Boolean(told && told.gap));
            },
          ],
          setSelect: [
            (u) => {
              const { left, width } = u.select;
              if (width > 2) show([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
              u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            },
          ],
        },
      },
      data,
      target,
    );
    u.over.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "mouse") {
        const { clientX, clientY } = event;
        u.over.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY }));
      }
    });
    plots.push({ u, target, full });
    return u;
  }

  // The charts

  function coverage(figure, symbol) {
    const lanes = symbol.lanes;
    const marks = [];
    const top = (lane) => lane * (LANE + LANE_GAP) + LANE_GAP / 2;

    function element(u, name, lane, start, end) {
      const box = document.createElement("div");
      box.className = name;
      box.style.top = `${top(lane)}px`;
      box.style.height = `${LANE}px`;
      u.under.append(box);
      return { box, lane, start, end };
    }

    function place(u, { box, start, end }) {
      box.hidden = end < view[0] || start > view[1];
      const left = u.valToPos(Math.max(start, view[0]), "x");
      const right = u.valToPos(Math.min(end, view[1]), "x");
      box.style.left = `${Math.min(left, u.over.clientWidth - MIN_MARK)}px`;
      box.style.width = `${Math.max(MIN_MARK, right - left)}px`;
    }

    const boxes = [];

    function init(u) {
      lanes.forEach((lane, number) => {
        boxes.push(element(u, "lane outside", number, ...page.range));
        boxes.push(element(u, "lane", number, ...symbol.range));
        for (const [start, end, count, seconds] of lane.gaps) {
          const mark = { ...element(u, "mark", number, start, end), count, seconds };
          // Many gaps in one mark, with rows between them, are as dense as they are dark.
          if (count > 1) mark.box.style.opacity = Math.max(0.3, Math.min(1, seconds / (end - start)));
          boxes.push(mark);
          marks.push(mark);
        }
      });
    }

    /** The mark under the cursor, or the nearest one that a finger could mean; of its own lane, if it is in this chart. */
    function pointed(u) {
      const { left, top: y, event } = u.cursor;
      const lane = event ? Math.floor(y / (LANE + LANE_GAP)) : null;
      let nearest = null;
      let reach = REACH;
      for (const mark of marks) {
        if (lane !== null && mark.lane !== lane) continue;
        const from = u.valToPos(mark.start, "x");
        const to = Math.max(from + MIN_MARK, u.valToPos(mark.end, "x"));
        const distance = Math.max(from - left, left - to, 0);
        if (distance < reach) {
          nearest = mark;
          reach = distance;
        }
      }
      return nearest;
    }

    function tell(u) {
      const mark = pointed(u);
      for (const other of marks) other.box.classList.toggle("hot", other === mark);
      const moment = u.posToVal(u.cursor.left, "x");
      if (!mark) return { text: shortTime(moment, visibleStep()) };
      const { lane, start, end, count, seconds } = mark;
      const day = date(start) === date(end) ? "" : `${date(end)} `;
      const span = `${time(start, 1)} to ${day}${clock(end, 1)}`;
      const { missing } = lanes[lane];
      const one = `no ${missing} for ${length(seconds)}`;
      const many = `${number(count)} gaps without ${missing}, ${length(seconds)} in all`;
      return { text: `${span}: ${count === 1 ? one : many}`, gap: true };
    }

    draw(figure, {
      height: lanes.length * (LANE + LANE_GAP),
      data: [symbol.range, symbol.range.map(() => null)],
      series: [{}, { scale: "y" }],
      scales: { y: { range: [0, lanes.length] } },
      axes: [
        yAxis(() => lanes.map((lane) => lane.name), {
          splits: () => lanes.map((lane, number) => lanes.length - number - 0.5),
          grid: { show: false },
        }),
      ],
      grid: false,
      hooks: { init: [init], draw: [(u) => boxes.forEach((box) => place(u, box))] },
      tell,
    });
  }

  function rate(figure, symbol) {
    const { start, step, mean, low, high } = symbol.rates[figure.dataset.channel];
    const close = (values) => values.concat(values[values.length - 1]); // the last bucket has a width, too
    const within = (seconds) => Math.min(Math.max(seconds, symbol.range[0]), symbol.range[1]);
    const times = close(mean).map((_, bucket) => within(start + bucket * step));
    const paths = uPlot.paths.stepped({ align: 1 });
    const axes = [yAxis((u, splits) => splits.map((split) => compact.format(split)), { incrs: COUNT_INCREMENTS })];
    const [data, series, bands] = low
      ? [[times, close(high), close(low), close(mean)], [{}, upper({ paths }), lower({ paths }), line({ paths })], [band]]
      : [[times, close(mean)], [{}, line({ paths })], []];
    for (const one of series.slice(1)) one.points = { show: false };

    draw(figure, {
      height: 66,
      data,
      series,
      bands,
      scales: { y: { range: fromZero } },
      axes,
      cursor: { dataIdx: bucketBefore },
      tell: (u) => {
        const index = u.cursor.idxs[series.length - 1];
        const moment = u.posToVal(u.cursor.left, "x");
        if (index === null || index >= mean.length || moment < start || mean[index] === null) return null;
        const when = shortTime(times[index], 60);
        const text = `${when}: ${number(mean[index], mean[index] % 1 ? 1 : 0)} a minute`;
        return { text: low ? `${text} (${number(low[index])} to ${number(high[index])})` : text };
      },
    });
  }

  function missing(figure, symbol) {
    const { start, step, end, missing, too_many: tooMany } = symbol.missing;
    const close = (values) => values.concat(values[values.length - 1]); // the last bucket has a width, too
    const times = close(missing).map((_, bucket) => Math.min(start + bucket * step, end));
    const paths = uPlot.paths.stepped({ align: 1 });
    const drawn = (stroke) => line({ paths, points: { show: false }, stroke: () => color(stroke) });
    draw(figure, {
      height: 66,
      data: [times, close(tooMany), close(missing)],
      series: [{}, drawn("--edge"), drawn("--gap")],
      scales: { y: { range: fromZero } },
      axes: [yAxis((u, splits) => splits.map((split) => compact.format(split)), { incrs: COUNT_INCREMENTS })],
      cursor: { dataIdx: bucketBefore },
      tell: (u) => {
        const index = u.cursor.idxs[2];
        const moment = u.posToVal(u.cursor.left, "x");
        if (index === null || index >= missing.length || moment < start || moment >= end) return null;
        const more = tooMany[index] ? `, ${number(tooMany[index])} too many` : "";
        const text = `${shortTime(times[index], 60)}: ${number(missing[index])} missing${more}`;
        return { text, gap: missing[index] > 0 };
      },
    });
  }

  function decimals(u, splits, axis, space, increment) {
    let digits = 0;
    while (digits < 15 && Math.abs(increment * 10 ** digits - Math.round(increment * 10 ** digits)) > 1e-6) digits += 1;
    return splits.map((split) => number(split, digits));
  }

  function price(figure, symbol) {
    const { times, mid, low, high, step, digits } = symbol.prices;
    draw(figure, {
      height: narrow() ? 130 : 180,
      data: [times, high, low, mid],
      series: [{}, upper(), upper(), line()],
      bands: [band],
      scales: { y: { range: around } },
      axes: [yAxis(decimals)],
      tell: (u) => {
        const index = u.cursor.idxs[3];
        if (index === null || mid[index] === null) return null;
        const range = high[index] > low[index] ? ` (${number(low[index], digits)} to ${number(high[index], digits)})` : "";
        return { text: `${shortTime(times[index], step)}: ${number(mid[index], digits)}${range}` };
      },
    });
  }

  function spread(figure, symbol) {
    const { times, mid, spread, widest, step, digits } = symbol.prices;
    draw(figure, {
      height: 66,
      data: [times, widest, spread, spread],
      series: [{}, upper(), upper(), line()],
      bands: [band],
      scales: { y: { range: fromZero } },
      axes: [yAxis(decimals)],
      tell: (u) => {
        const index = u.cursor.idxs[3];
        if (index === null || spread[index] === null) return null;
        const points = number((spread[index] / mid[index]) * 1e4, 2);
        const most = widest[index] > spread[index] ? `, at most ${number(widest[index], digits)}` : "";
        return { text: `${shortTime(times[index], step)}: ${number(spread[index], digits)}, ${points} bp${most}` };
      },
    });
  }

  function growth(figure, symbol) {
    const { times, rows, bytes_per_row: each } = symbol.growth;
    const sizes = rows.map((count) => count * each);
    draw(figure, {
      height: 90,
      data: [times, sizes],
      series: [{}, line({ fill: () => color("--band"), points: { show: false } })],
      scales: { y: { range: fromZero } },
      axes: [yAxis((u, splits) => splits.map((split) => bytes(split).replace(".0", "")), { incrs: BYTE_INCREMENTS })],
      tell: (u) => {
        const index = u.cursor.idxs[1];
        if (index === null) return null;
        return { text: `${shortTime(times[index], 60)}: ${number(rows[index])} rows, about ${bytes(sizes[index])}` };
      },
    });
  }

  // What moves them all

  const wholeRange = document.getElementById("whole");

  function show([from, to]) {
    const middle = (from + to) / 2;
    const half = Math.max(to - from, 1) / 2;
    view = [Math.max(page.range[0], middle - half), Math.min(page.range[1], middle + half)];
    for (const { u } of plots) u.setScale("x", { min: view[0], max: view[1] });
    wholeRange.hidden = view[0] <= page.range[0] && view[1] >= page.range[1];
  }

  const charts = { coverage, missing, rate, price, spread, growth };
  function drawIn(place) {
    for (const figure of place.querySelectorAll("figure[data-chart]")) {
      if (figure.querySelector(".uplot") || figure.closest("details:not([open])")) continue;
      charts[figure.dataset.chart](figure, page.symbols[figure.dataset.table]);
    }
  }

  /** Open what an address within this page leads to. */
  function unfold(hash) {
    const place = document.getElementById(hash.slice(1));
    for (const details of place ? place.querySelectorAll("details") : []) details.open = true;
  }

  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", () => drawIn(details));
  for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", () => unfold(link.hash));
  addEventListener("hashchange", () => unfold(location.hash));
  unfold(location.hash);
  drawIn(document);

  for (const row of document.querySelectorAll("tr[data-start]")) {
    const button = document.createElement("button");
    const [start, end] = [Number(row.dataset.start), Number(row.dataset.end)];
    button.type = "button";
    button.textContent = "Zoom";
    button.setAttribute("aria-label", `Zoom to the gap of ${row.dataset.length} from ${time(start, 1)}`);
    button.addEventListener("click", () => show([start - 2 * (end - start), end + 2 * (end - start)]));
    row.lastElementChild.append(button);
  }

  wholeRange.addEventListener("click", () => show(page.range));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(page.range);
  });

  function fit(width) {
    for (const { u, target, full } of plots) {
      const space = width || target.clientWidth;
      if (space && space !== u.width) u.setSize({ width: space, height: full });
    }
  }

  new ResizeObserver(() => fit()).observe(document.body);
  addEventListener("beforeprint", () => fit(PAPER));
  addEventListener("afterprint", () => fit());

  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () => {
      for (const { u } of plots) u.redraw(false, true);
    });
  }
})();
