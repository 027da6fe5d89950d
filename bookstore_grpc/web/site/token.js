// The bearer token of this tab, and the dialog that asks for one.

import { byId, onClose } from "./elements.js";

const KEY = "bookstore.token";
const dialog = byId("token");
const form = dialog.querySelector("form");
const field = byId("token-value");
const forget = byId("forget-token");
let asking;

/** Answer the token that calls carry; empty for none. */
export function token() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** Ask for a token and answer whether one was given. Calls that fail together ask once. */
export function askForToken(why) {
  asking ??= new Promise((resolve) => {
    dialog.querySelector(".told").textContent = why;
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
