// The TypeScript SDK 1.x client over streamable HTTP: what most hosts run today.
// usage: [WEIR_KEY=...] node ts1.mjs URL PLAN_JSON        (see plan.mjs for the steps)
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import {
  PromptListChangedNotificationSchema,
  ResourceListChangedNotificationSchema,
  ToolListChangedNotificationSchema,
} from '@modelcontextprotocol/sdk/types.js';
import { ListChanges, readCommandLine, run, watchedFetch } from './plan.mjs';

const { url, plan, key } = readCommandLine(['legacy']);
const changes = new ListChanges();
const client = new Client({ name: 'weir-test-ts1', version: '1.0.0' });
client.setNotificationHandler(ToolListChangedNotificationSchema, () => changes.note('tools'));
client.setNotificationHandler(PromptListChangedNotificationSchema, () => changes.note('prompts'));
client.setNotificationHandler(ResourceListChangedNotificationSchema, () => changes.note('resources'));

const watched = watchedFetch();
const transport = new StreamableHTTPClientTransport(url, {
  fetch: watched,
  requestInit: key ? { headers: { Authorization: `Bearer ${key}` } } : undefined,
});

await run(plan, {
  client,
  changes,
  async connect(options) {
    await client.connect(transport, options);
    await watched.getAnswered(2_000);
    return { protocolVersion: transport.protocolVersion, sessionId: transport.sessionId ?? null };
  },
  callTool: (params, options) => client.callTool(params, undefined, options),
  async close() {
    await transport.terminateSession();
    await client.close();
  },
});
