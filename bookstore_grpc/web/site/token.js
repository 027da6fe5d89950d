// The bearer token of this tab, and its dialog.

import { byId, onClose } from "./elements.js";

const KEY = "bookstore.token";
const dialog = byId("token");
const form = dialog.querySelector("form");
const field = byId("token-value");
const forget = byId("forget-token");
let asking;

/** Return the token that is sent with calls, or "". */
export function token() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** Ask the user for a token. Returns whether one was given. Concurrent failed calls ask once. */
export function askForToken(why) {
  asking ??= new Promise((resolve) => {
    dialog.querySelector(".message").textContent = why;
    field.value = "";
    dialog.returnValue = "";
    form.onsubmit = () => {
      const given = field.value.trim().replace(/^Bearer\s+/i, "");
      if (given) sessionStorage.setItem(KEY, given);
      dialog.close(given && "given");
      showForget();
    };
    onClose(dialog, () => {
      asking = undefined;
      field.value = "";
      resolve(dialog.returnValue === "given");
    });
    dialog.showModal();
  });
  return asking;
}

function showForget() {
  forget.hidden = !token();
}

forget.addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});
showForget();
