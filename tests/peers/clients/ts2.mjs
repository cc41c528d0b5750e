// The TypeScript SDK 2.x client over streamable HTTP.
// usage: [WEIR_KEY=...] node ts2.mjs URL PLAN_JSON [auto|modern|legacy]
//   auto    server/discover first, initialize when that is not understood
//   modern  2026-07-28 or fail
//   legacy  the initialize handshake only (the SDK's own default)
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { ListChanges, readCommandLine, run, watchedFetch } from './plan.mjs';

const { url, plan, era, key } = readCommandLine(['auto', 'modern', 'legacy']);
const changes = new ListChanges();
const client = new Client(
  { name: 'weir-test-ts2', version: '1.0.0' },
  { versionNegotiation: { mode: era === 'modern' ? { pin: '2026-07-28' } : era } },
);
client.setNotificationHandler('notifications/tools/list_changed', () => changes.note('tools'));
client.setNotificationHandler('notifications/prompts/list_changed', () => changes.note('prompts'));
client.setNotificationHandler('notifications/resources/list_changed', () => changes.note('resources'));

const watched = watchedFetch();
const transport = new StreamableHTTPClientTransport(url, {
  fetch: watched,
  requestInit: key ? { headers: { Authorization: `Bearer ${key}` } } : undefined,
});

// A modern server announces changes only on a stream the client asked for.
async function listen() {
  try {
    const subscription = await client.listen(
      { toolsListChanged: true, promptsListChanged: true, resourcesListChanged: true },
      { timeout: 5_000 },
    );
    return subscription.honoredFilter;
  } catch (error) {
    return { error: String(error?.message ?? error) };
  }
}

await run(plan, {
  client,
  changes,
  async connect(options) {
    await client.connect(transport, options);
    const common = {
      protocolVersion: client.getNegotiatedProtocolVersion(),
      era: client.getProtocolEra(),
      sessionId: transport.sessionId ?? null,
    };
    if (common.era === 'modern') return { ...common, listening: await listen() };
    await watched.getAnswered(2_000);
    return common;
  },
  callTool: (params, options) => client.callTool(params, options),
  async close() {
    if (client.getProtocolEra() === 'legacy') await transport.terminateSession();
    await client.close();
  },
});
