// Shows what another threshold would decide. Without it, the page shows the threshold of the evaluation.
(function () {
  "use strict";
  var box = document.querySelector("[data-threshold]");
  if (!box) return;
  var sweeps = JSON.parse(document.getElementById("sweeps").textContent);
  var slider = box.querySelector("input");
  var output = box.querySelector("output");
  var detectors = Array.prototype.slice.call(box.querySelectorAll("[data-detector]"));
  var first = detectors.map(function (one) { return one.innerHTML; });
  var start = box.getAttribute("data-threshold");

  function percent(part, whole) {
    if (!whole) return "–";
    var share = part / whole;
    if (share === 0 || share === 1) return 100 * share + "\u00a0%";
    if (share < 0.0005) return "<\u00a00.1\u00a0%";
    if (share >= 0.9995) return ">\u00a099.9\u00a0%";
    return (100 * share).toFixed(1) + "\u00a0%";
  }

  function show(one, row) {
    var found = row[1], alarms = row[2], missed = row[3], passed = row[4];
    var counts = { found: found, missed: missed, flagged: alarms, passed: passed };
    Object.keys(counts).forEach(function (key) {
      one.querySelector('[data-count="' + key + '"]').textContent = counts[key].toLocaleString("en-US");
      one.querySelector('[data-length="' + key + '"]').style.flexGrow = counts[key];
    });
    var told = {
      recall: percent(found, found + missed),
      precision: percent(found, found + alarms),
      fpr: percent(alarms, alarms + passed)
    };
    Object.keys(told).forEach(function (key) {
      one.querySelector('[data-figure="' + key + '"]').textContent = told[key];
    });
  }

  slider.addEventListener("input", function () {
    output.textContent = Number(slider.value).toFixed(2);
    detectors.forEach(function (one, index) {
      show(one, sweeps[index][Math.round(slider.value * (sweeps[index].length - 1))]);
    });
  });
  box.querySelector("button").addEventListener("click", function () {
    slider.value = start;
    output.textContent = start;
    detectors.forEach(function (one, index) { one.innerHTML = first[index]; });
  });
  box.querySelector(".slider").hidden = false;
})();
