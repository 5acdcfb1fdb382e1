// SPDX-License-Identifier: GPL-2.0-or-later
// Filters and sorts the tables. Without it every page reads as it stands.
(function () {
  "use strict";
  var all = function (query, where) { return Array.prototype.slice.call((where || document).querySelectorAll(query)); };
  document.documentElement.classList.add("js");

  function filtered(controls) {
    var rows = all("tbody tr", document.getElementById(controls.dataset.table));
    var bad = controls.querySelector("[name=bad]"), find = controls.querySelector("[name=find]");
    var chosen = all("select", controls);
    function filter() {
      var words = find.value.trim().toLowerCase(), shown = 0;
      rows.forEach(function (row) {
        row.hidden = (bad && bad.checked && row.dataset.ok === "1") ||
          (words && row.textContent.toLowerCase().indexOf(words) < 0) ||
          chosen.some(function (each) { return each.value && row.dataset[each.name] !== each.value; });
        shown += row.hidden ? 0 : 1;
      });
      controls.querySelector("output").textContent = shown === rows.length ? "" : shown + " of " + rows.length;
    }
    controls.addEventListener("input", filter);
    controls.addEventListener("change", filter);
    filter();  // a browser that comes back to a page keeps what was typed
  }
  all(".controls[data-table]").forEach(filtered);

  function worth(row, column) {
    var cell = row.children[column], text = cell.dataset.sort === undefined ? cell.textContent.trim() : cell.dataset.sort;
    return text !== "" && isFinite(text) ? Number(text) : text.toLowerCase();
  }
  function order(a, b) {
    if (typeof a === typeof b) { return typeof a === "number" ? a - b : a.localeCompare(b, "en", {numeric: true}); }
    return typeof a === "number" ? -1 : 1;
  }
  all("table.sortable").forEach(function (table) {
    var body = table.tBodies[0], heads = all("thead th", table);
    heads.forEach(function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) { button.appendChild(head.firstChild); }
      head.appendChild(button);
      button.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach(function (each) { each.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        all("tr", body).map(function (row) { return [worth(row, column), row]; })
          .sort(function (a, b) { return (down ? -1 : 1) * order(a[0], b[0]); })
          .forEach(function (pair) { body.appendChild(pair[1]); });
      });
    });
  });

  document.addEventListener("keydown", function (event) {
    var find = document.querySelector(".controls input[type=search]");
    if (event.key === "/" && find && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      event.preventDefault();
      find.focus();
    }
  });
}());
