// The page at /docs: Swagger UI configured for this server, with accessibility fixes.

const docs = document.getElementById("docs");

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

// Elements of Swagger UI without an accessible name.
const operation = (element) => element.closest(".opblock").id.split("-").at(-1);
const names = {
  ".copy-to-clipboard button": () => "Copy",
  ".body-param__text": () => "Request body",
  "[data-param-name] select": (element) => element.closest("[data-param-name]").dataset.paramName,
  ".json-schema-form-item input": (element) => element.closest("[data-param-name]").dataset.paramName,
  ".responses-table[role=region]": (element) => `Responses of ${operation(element)}`,
  ".close-modal": () => "Close",
};
// Headings that skip a level.
const levels = { ".modal-ux h3": 2, ".modal-ux h4": 3, ".modal-ux h6": 4 };

const fix = () => {
  for (const [selector, name] of Object.entries(names)) {
    for (const element of docs.querySelectorAll(`${selector}:not([aria-label])`)) element.ariaLabel = name(element);
  }
  for (const [selector, level] of Object.entries(levels)) {
    for (const heading of docs.querySelectorAll(selector)) heading.ariaLevel = level;
  }
  // Buttons of the dialog whose accessible names differ from their text.
  for (const button of docs.querySelectorAll(".modal-btn")) button.removeAttribute("aria-label");
  for (const code of docs.querySelectorAll("pre.microlight")) code.tabIndex = 0; // scrollable by keyboard
};
new MutationObserver(fix).observe(docs, { childList: true, subtree: true });
docs.addEventListener("keydown", ({ key }) => key === "Escape" && docs.querySelector(".close-modal")?.click());

const plugin = ({ React, getComponent }) => ({
  components: {
    // Swagger UI warns that it has no input for int64 strings.
    JsonSchema_integer_int64: (props) => React.createElement(getComponent("JsonSchema_string"), props),
  },
  wrapComponents: {
    // The missing heading level between the page and the services.
    operations: (Original) => (props) =>
      React.createElement("section", null, React.createElement("h2", null, "Operations"), React.createElement(Original, props)),
    // All failures have the same form, which is among the schemas.
    response: (Original) => (props) => {
      const isFailure = !props.code.startsWith("2");
      const response = isFailure ? props.response.delete("content").delete("headers") : props.response;
      return React.createElement(Original, { ...props, response });
    },
    // Its link would be nested in a button with the same target.
    DeepLink: () => ({ text }) => React.createElement("span", null, text),
  },
});

// A stream has no end, which Swagger UI would wait for. It shows what comes in this time.
const STREAM_MS = 5_000;

async function fetchBeginning(url, request) {
  const response = await fetch(url, request);
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const timer = setTimeout(() => reader.cancel(), STREAM_MS);
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) text += part.value;
  clearTimeout(timer);
  return new Response(text, response);
}

SwaggerUIBundle({
  url: "openapi.json",
  domNode: docs,
  plugins: [plugin],
  validatorUrl: null, // the default sends the document to another server
  requestInterceptor: (request) => Object.assign(request, { userFetch: fetchBeginning }),
  deepLinking: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  syntaxHighlight: { theme: "monokai" },
});
