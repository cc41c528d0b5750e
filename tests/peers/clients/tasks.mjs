// Tasks with the TypeScript SDK 1.x client (`client.experimental.tasks`).
// usage: node tasks.mjs TOOL http URL
//        node tasks.mjs TOOL stdio PROGRAM ARGS...
// Calls TOOL with an ambiguous topic and picks the snake when asked; then gives a second task up.
// Prints one line of JSON: what came, in its order.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CallToolResultSchema, ElicitRequestSchema } from '@modelcontextprotocol/sdk/types.js';

const [tool, kind, target, ...args] = process.argv.slice(2);
const transport =
  kind === 'http'
    ? new StreamableHTTPClientTransport(new URL(target))
    : new StdioClientTransport({ command: target, args, stderr: 'ignore' });
const client = new Client(
  { name: 'weir-test-tasks', version: '1.0.0' },
  { capabilities: { elicitation: { form: {} } } },
);
const asked = [];
client.setRequestHandler(ElicitRequestSchema, (request) => {
  asked.push(request.params._meta?.['io.modelcontextprotocol/related-task']?.taskId ?? null);
  return { action: 'accept', content: { interpretation: 'snake' } };
});
await client.connect(transport);
// Over stdio the first list may come before the upstream is known.
for (let tries = 0; ; tries++) {
  const { tools } = await client.listTools();
  if (tools.some((t) => t.name === tool)) break;
  if (tries > 200) throw new Error(`${tool} is not listed`);
  await new Promise((resolve) => setTimeout(resolve, 100));
}

const tasks = client.experimental.tasks;
const params = { name: tool, arguments: { topic: 'python', ambiguous: true } };
const came = [];
let created;
for await (const message of tasks.callToolStream(params, CallToolResultSchema)) {
  if (message.type === 'taskCreated') created = message.task.taskId;
  if (message.type === 'taskStatus') came.push(message.task.status);
  else came.push(message.type);
  if (message.type === 'error') came.push(String(message.error));
  if (message.type === 'result') came.push(message.result.content[0].text);
}

let cancelled;
for await (const message of tasks.callToolStream(params, CallToolResultSchema)) {
  if (message.type !== 'taskCreated') continue;
  await tasks.cancelTask(message.task.taskId);
  cancelled = (await tasks.getTask(message.task.taskId)).status;
  break;
}
console.log(JSON.stringify({ created, asked, came, cancelled }));
await client.close();
process.exit(0);
