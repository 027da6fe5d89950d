// Reads CSV (RFC 4180) as Python's csv does, so that `bookstore import` and this page number rows alike.

/** Yield each row: the line it starts at, its cells, and the number of characters read so far. */
export function* readCsv(text) {
  let at = 0;
  let line = 1;
  while (at < text.length) {
    const start = { line, at };
    const cells = [];
    let more = true;
    while (more) {
      let cell = "";
      if (text[at] === '"') {
        at += 1;
        for (;;) {
          const end = text.indexOf('"', at);
          cell += text.slice(at, end < 0 ? text.length : end);
          at = end < 0 ? text.length : end + 1;
          if (text[at] !== '"' || end < 0) break;
          cell += '"';
          at += 1;
        }
        line += cell.match(/\r\n|\r|\n/g)?.length ?? 0;
      }
      // Unquoted text, also after a closing quote.
      const rest = /[^,\r\n]*/y;
      rest.lastIndex = at;
      cell += rest.exec(text)[0];
      at = rest.lastIndex;
      cells.push(cell);
      more = text[at] === ",";
      if (more) at += 1;
    }
    const isBlank = at === start.at;
    if (at < text.length) at += text.startsWith("\r\n", at) ? 2 : 1;
    line += 1;
    if (!isBlank) yield { line: start.line, cells, at };
  }
}

/** Return rows as CSV. */
export function csvText(rows) {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  return rows.map((row) => `${row.map((value) => cell(String(value))).join(",")}\r\n`).join("");
}
