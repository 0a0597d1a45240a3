// Lists what openapi.json says.

const element = (name, text = "", className = "") => Object.assign(document.createElement(name), { textContent: text, className });
const kind = (schema) => {
  const { type, format, items, enum: values, anyOf } = schema ?? {};
  if (anyOf) return anyOf.map(kind).join(" or ");
  if (values) return values.join(" | ");
  return type === "array" ? `${kind(items)}, several times` : [type, format].filter(Boolean).join(", ");
};

const list = document.getElementById("list");
const response = await fetch("openapi.json");
if (!response.ok) list.append(element("p", `openapi.json: ${response.status} ${response.statusText}`));
else {
  const api = await response.json();
  let group = "";
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      if (operation.tags?.[0] !== group) list.append(element("h2", (group = operation.tags[0])));
      const section = element("section");
      const title = element("h3");
      title.append(element("span", method.toUpperCase(), "method"), element("code", path));
      section.append(title, element("p", operation.description));
      const bodies = Object.keys(operation.requestBody?.content ?? {});
      if (bodies.length) section.append(element("p", `Takes ${bodies.join(", ")}.`, "muted"));
      const form = operation.requestBody?.content["multipart/form-data"]?.schema.properties ?? {};
      const fields = Object.entries(form).map(([name, schema]) => [name, schema, schema.description]);
      const given = (operation.parameters ?? []).filter((p) => !(p.name in form)).map((p) => [p.name, p.schema, p.description]);
      if (fields.length || given.length) {
        const table = element("table");
        for (const [name, schema, text] of [...given, ...fields]) {
          const row = table.insertRow();
          row.insertCell().append(element("code", name));
          row.insertCell().textContent = kind(schema);
          row.insertCell().textContent = text ?? "";
        }
        section.append(table);
      }
      list.append(section);
    }
  }
}
