// The TypeScript SDK 1.x stdio client in front of the mcp-remote bridge, as in a
// host that knows only local servers.
// usage: [WEIR_KEY=...] node remote.mjs URL PLAN_JSON [legacy|auto]
//   legacy  the bridge passes the initialize handshake through (its default)
//   auto    the bridge tries server/discover and may speak 2026-07-28 upstream;
//           the client behind it sees a handshake either way
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import {
  PromptListChangedNotificationSchema,
  ResourceListChangedNotificationSchema,
  ToolListChangedNotificationSchema,
} from '@modelcontextprotocol/sdk/types.js';
import { ListChanges, readCommandLine, run } from './plan.mjs';

const { url, plan, era, key } = readCommandLine(['legacy', 'auto']);
const here = dirname(fileURLToPath(import.meta.url));
const state = mkdtempSync(join(tmpdir(), 'weir-remote-'));
process.on('exit', () => rmSync(state, { recursive: true, force: true }));

const args = [
  join(here, 'node_modules/mcp-remote/dist/proxy.js'),
  url.href,
  '--allow-http',
  '--transport', 'http-only',
  '--protocol', era,
  // With the device grant a refused key ends in an error: no browser, no callback port.
  '--device-code',
];
// The bridge puts the value in itself, so the key is in no process list.
if (key) args.push('--header', 'Authorization:${WEIR_REMOTE_AUTHORIZATION}');

const changes = new ListChanges();
const client = new Client({ name: 'weir-test-remote', version: '1.0.0' });
client.setNotificationHandler(ToolListChangedNotificationSchema, () => changes.note('tools'));
client.setNotificationHandler(PromptListChangedNotificationSchema, () => changes.note('prompts'));
client.setNotificationHandler(ResourceListChangedNotificationSchema, () => changes.note('resources'));

const transport = new StdioClientTransport({
  command: process.execPath,
  args,
  env: {
    PATH: process.env.PATH ?? '',
    HOME: state,
    MCP_REMOTE_CONFIG_DIR: state,
    ...(key ? { WEIR_REMOTE_AUTHORIZATION: `Bearer ${key}` } : {}),
  },
  cwd: state,
  stderr: 'pipe',
});
// The bridge tells only in its log that it found a modern server.
let upstreamEra = 'legacy';
transport.stderr.on('data', (chunk) => {
  process.stderr.write(chunk);
  if (/speaks MCP 2026-07-28/.test(chunk)) upstreamEra = 'modern';
});
let protocolVersion = null;
transport.setProtocolVersion = (version) => (protocolVersion = version);

await run(plan, {
  client,
  changes,
  async connect(options) {
    await client.connect(transport, options);
    // The bridge opens its notification stream by itself and does not say when.
    await new Promise((resolve) => setTimeout(resolve, 500));
    return { protocolVersion, upstreamEra };
  },
  callTool: (params, options) => client.callTool(params, undefined, options),
  close: () => client.close(),
});
