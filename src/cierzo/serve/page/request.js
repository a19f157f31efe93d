// A conversation as a request, and requests as text.

/** The empty text is no answer yet, and no template holds it. */
const told = (node) => node.role !== "assistant" || node.content || node.calls?.length;

function message(node) {
  if (node.role === "tool") return { role: "tool", tool_call_id: node.call, content: node.content };
  if (!node.calls?.length) return { role: node.role, content: node.content };
  const calls = node.calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
  return { role: "assistant", content: node.content || null, tool_calls: calls };
}

/** The `value` of JSON text that must be a list or an object, or the name of what is `wrong` with it; neither of none. */
export function parsed(text, isList) {
  if (!text.trim()) return {};
  try {
    const value = JSON.parse(text);
    if (value !== null && typeof value === "object" && Array.isArray(value) === isList) return { value };
    return { wrong: isList ? "notList" : "notObject" };
  } catch (error) {
    return { wrong: "notJson", why: error.message };
  }
}

/** The body of a request for an answer after `nodes`, or, when `continued`, for the rest of the last of them. */
export function bodyOf(conversation, nodes, { continued = false, verdicts = false } = {}) {
  const messages = nodes.filter(told).map(message);
  if (conversation.system.trim()) messages.unshift({ role: "system", content: conversation.system });
  const body = { model: conversation.model, messages, ...conversation.sampling };
  const { value: schema } = continued ? {} : parsed(conversation.schema, false);
  const { value: tools } = parsed(conversation.tools, true);
  if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  if (tools) Object.assign(body, { tools, tool_choice: conversation.toolChoice });
  if (continued) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  if (verdicts) body.guard_verdicts = true;
  return body;
}

export const asJson = (body) => JSON.stringify(body, null, 2);

export function asCurl(body, keyed) {
  const header = keyed ? ` \\\n  -H "Authorization: Bearer $CIERZO_API_KEY"` : "";
  const data = asJson(body).replaceAll("'", `'\\''`);
  return `curl ${location.origin}/v1/chat/completions \\\n  -H 'Content-Type: application/json'${header} \\\n  -d '${data}'`;
}

// What the client has no argument for.
const EXTRA = ["top_k", "min_p", "repetition_penalty", "continue_final_message", "add_generation_prompt", "guard_verdicts"];

function python(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const list = Array.isArray(value);
  const parts = list
    ? value.map((each) => python(each, inner))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each, inner)}`);
  const [begin, end] = list ? "[]" : "{}";
  return parts.length ? `${begin}\n${parts.map((part) => `${inner}${part},\n`).join("")}${indent}${end}` : begin + end;
}

export function asPython(body, keyed) {
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => EXTRA.includes(name)));
  const plain = Object.entries(body).filter(([name]) => !EXTRA.includes(name));
  if (Object.keys(extra).length) plain.push(["extra_body", extra]);
  const lines = plain.map(([name, value]) => `    ${name}=${python(value, "    ")},\n`).join("");
  const access = keyed ? `os.environ["CIERZO_API_KEY"]` : `"none"`;
  const head = `${keyed ? "import os\n\n" : ""}from openai import OpenAI\n\n`;
  const client = `client = OpenAI(base_url="${location.origin}/v1", api_key=${access})\n`;
  return `${head}${client}answer = client.chat.completions.create(\n${lines})\nprint(answer.choices[0].message.content)\n`;
}
