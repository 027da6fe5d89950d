// The page at /docs: Swagger UI, set up for this server, and what it lacks for those who use no mouse.

const docs = document.getElementById("docs");

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

// What Swagger UI leaves without a name that a screen reader could say.
const operation = (element) => element.closest(".opblock").id.split("-").at(-1);
const names = {
  ".copy-to-clipboard button": () => "Copy",
  ".body-param__text": () => "Request body",
  ".json-schema-form-item input": (element) => element.closest("[data-param-name]").dataset.paramName,
  ".responses-table[role=region]": (element) => `Responses of ${operation(element)}`,
  ".close-modal": () => "Close",
};
// Where its headings leave out a level.
const levels = { ".modal-ux h3": 2, ".modal-ux h4": 3, ".modal-ux h6": 4 };

const mend = () => {
  for (const [selector, name] of Object.entries(names)) {
    for (const element of docs.querySelectorAll(`${selector}:not([aria-label])`)) element.ariaLabel = name(element);
  }
  for (const [selector, level] of Object.entries(levels)) {
    for (const heading of docs.querySelectorAll(selector)) heading.ariaLevel = level;
  }
  // Buttons of the dialog have names that differ from what stands on them.
  for (const button of docs.querySelectorAll(".modal-btn")) button.removeAttribute("aria-label");
  for (const code of docs.querySelectorAll("pre.microlight")) code.tabIndex = 0; // what scrolls, does so by keyboard
};
new MutationObserver(mend).observe(docs, { childList: true, subtree: true });
docs.addEventListener("keydown", ({ key }) => key === "Escape" && docs.querySelector(".close-modal")?.click());

const plugin = ({ React, getComponent }) => ({
  components: {
    // It has inputs for all integers and looks, with a warning, for one that is for these.
    JsonSchema_integer_int64: (props) => React.createElement(getComponent("JsonSchema_string"), props),
  },
  wrapComponents: {
    // The heading between the page's and those of the services.
    operations: (Original) => (props) =>
      React.createElement("section", null, React.createElement("h2", null, "Operations"), React.createElement(Original, props)),
    // Its link would stand in a button, which leads to the same place.
    DeepLink: () => ({ text }) => React.createElement("span", null, text),
  },
});

SwaggerUIBundle({
  url: "openapi.json",
  domNode: docs,
  plugins: [plugin],
  validatorUrl: null, // it would send the document elsewhere
  deepLinking: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  syntaxHighlight: { theme: "monokai" },
});
