// The fields of a book as the page shows them. The server generates fields.js, which lists them.

import { yearText } from "./elements.js";
import { FIELDS as LISTED } from "./fields.js";

// Differences from the defaults below. `orders` names the ascending and the descending order; `text` formats a value.
const PRESENTATIONS = {
  id: { title: "No.", orders: ["Oldest first", "Newest first"] },
  name: { title: "Title" },
  release_year: {
    title: "Year",
    label: "Year of the first release",
    hint: "Negative for BCE: -750 is 750\u00a0BCE.",
    orders: ["Year, earliest first", "Year, latest first"],
    text: yearText,
  },
  create_time: { title: "Added" },
  update_time: { title: "Changed" },
};
const ORDERS = {
  text: [" A–Z", " Z–A"],
  time: [", earliest first", ", latest first"],
  int32: [", lowest first", ", highest first"],
  int64: [", lowest first", ", highest first"],
};

/** The fields, in the order of the table's columns. */
export const FIELDS = LISTED.map((field) => {
  const words = field.name.replaceAll("_", " ");
  const title = PRESENTATIONS[field.name]?.title ?? words[0].toUpperCase() + words.slice(1);
  return {
    ...field,
    title,
    label: title,
    hint: field.isRequired ? "" : "Optional.",
    orders: ORDERS[field.type].map((order) => `${title}${order}`),
    text: String,
    ...PRESENTATIONS[field.name],
  };
});

/** The fields that users enter. */
export const SETTABLE = FIELDS.filter(({ isSettable }) => isSettable);

/** Return the names of fields. */
export const namesOf = (fields) => fields.map(({ name }) => name);

/** Return the entered texts of fields as a book in JSON. An empty number is absent. */
export function bookOf(values, fields) {
  const book = {};
  for (const { name, jsonName, type } of fields) {
    if (type === "text") book[jsonName] = values[name];
    else if (values[name]) book[jsonName] = Number(values[name]);
  }
  return book;
}
