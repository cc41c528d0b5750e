// Runs a plan (a JSON list of steps) with a connected SDK client and prints one
// JSON line per step. Used by ts1.mjs, ts2.mjs and remote.mjs.
//
// Steps, with their fields (all take an optional "timeout_ms", default 30000):
//   list_tools, list_prompts, list_resources, list_templates   cursor?
//   call_tool          name, arguments?
//   get_prompt         name, arguments?
//   read_resource      uri
//   complete           ref, argument, context?
//   ping
//   wait_list_changed  kinds? ("tools" | "prompts" | "resources")
//   stdin              waits for one line on standard input (null at its end)
//
// wait_list_changed answers {"seen": [...]}: the kinds that changed since connect
// or since the previous wait. It returns when one kind (or, with "kinds", each of
// those) has been seen, and otherwise at its timeout with what there is.
import process from 'node:process';
import { createInterface } from 'node:readline';

const DEFAULT_TIMEOUT_MS = 30_000;
const OPS = [
  'list_tools', 'call_tool', 'list_prompts', 'get_prompt', 'list_resources', 'read_resource',
  'list_templates', 'complete', 'ping', 'wait_list_changed', 'stdin',
];

/** The command line shared by all client scripts: URL, plan, era. */
export function readCommandLine(eras) {
  const [url, planText, era = eras[0]] = process.argv.slice(2);
  if (!url || !planText || !eras.includes(era)) {
    process.stderr.write(`usage: <script> URL PLAN_JSON [${eras.join('|')}]  (bearer key in WEIR_KEY)\n`);
    process.exit(2);
  }
  const plan = JSON.parse(planText);
  if (!Array.isArray(plan)) throw new TypeError('the plan must be a JSON array');
  for (const { op } of plan) if (!OPS.includes(op)) throw new TypeError(`unknown op ${JSON.stringify(op)}`);
  return { url: new URL(url), plan, era, key: process.env.WEIR_KEY || undefined };
}

function emit(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

function describe(error) {
  const out = { code: error?.code ?? null, message: String(error?.message ?? error) };
  if (error?.data !== undefined) out.data = error.data;
  if (error?.cause) out.cause = String(error.cause.code ?? error.cause.message ?? error.cause);
  // SDK 2.x hands a JSON-RPC error under HTTP 404 over as text: `wire` is that error.
  try {
    out.wire = JSON.parse(error.data.text).error;
  } catch {
    // an answer of another kind
  }
  return out;
}

/** Remembers which lists changed; `note` is called from the notification handlers. */
export class ListChanges {
  #seen = new Set();
  #wake = () => {};

  note(kind) {
    this.#seen.add(kind);
    this.#wake();
  }

  async wait(kinds, timeoutMs) {
    const done = () => (kinds ? kinds.every((kind) => this.#seen.has(kind)) : this.#seen.size > 0);
    const deadline = Date.now() + timeoutMs;
    while (!done() && Date.now() < deadline) {
      let timer;
      await new Promise((resolve) => {
        this.#wake = resolve;
        timer = setTimeout(resolve, deadline - Date.now());
      });
      clearTimeout(timer);
    }
    const seen = [...this.#seen].sort();
    this.#seen.clear();
    return { seen };
  }
}

/**
 * A fetch that tells when the first GET (the legacy notification stream) was
 * answered, so that a client is known to listen before its first step.
 */
export function watchedFetch() {
  let opened;
  const answered = new Promise((resolve) => (opened = resolve));
  const watched = async (input, init) => {
    const isGet = (init?.method ?? 'GET').toUpperCase() === 'GET';
    try {
      return await fetch(input, init);
    } finally {
      if (isGet) opened();
    }
  };
  watched.getAnswered = (limitMs) =>
    Promise.race([answered, new Promise((resolve) => setTimeout(resolve, limitMs))]);
  return watched;
}

/**
 * Connects, runs every step and exits. `peer` has:
 *   client, changes, connect() -> extra fields of the connect line,
 *   callTool(params, options), close()
 */
export async function run(plan, peer) {
  const { client } = peer;
  try {
    const extra = await peer.connect({ timeout: DEFAULT_TIMEOUT_MS });
    emit({
      op: 'connect',
      ok: true,
      ...extra,
      serverInfo: client.getServerVersion() ?? null,
      instructions: client.getInstructions() ?? null,
      capabilities: client.getServerCapabilities() ?? null,
    });
  } catch (error) {
    emit({ op: 'connect', ok: false, error: describe(error) });
    await peer.close().catch(() => {});
    process.exit(0);
  }

  const page = ({ cursor }) => (cursor === undefined ? undefined : { cursor });
  const ops = {
    list_tools: (step, options) => client.listTools(page(step), options),
    call_tool: ({ name, arguments: args }, options) => peer.callTool({ name, arguments: args }, options),
    list_prompts: (step, options) => client.listPrompts(page(step), options),
    get_prompt: ({ name, arguments: args }, options) => client.getPrompt({ name, arguments: args }, options),
    list_resources: (step, options) => client.listResources(page(step), options),
    read_resource: ({ uri }, options) => client.readResource({ uri }, options),
    list_templates: (step, options) => client.listResourceTemplates(page(step), options),
    complete: ({ ref, argument, context }, options) => client.complete({ ref, argument, context }, options),
    ping: (_step, options) => client.ping(options),
    wait_list_changed: ({ kinds }, { timeout }) => peer.changes.wait(kinds, timeout),
    stdin: (_step, { timeout }) => nextLine(timeout),
  };

  for (const step of plan) {
    const timeout = step.timeout_ms ?? DEFAULT_TIMEOUT_MS;
    try {
      emit({ op: step.op, ok: true, result: await ops[step.op](step, { timeout, maxTotalTimeout: timeout }) });
    } catch (error) {
      emit({ op: step.op, ok: false, error: describe(error) });
    }
  }
  await peer.close().catch((error) => process.stderr.write(`close: ${error?.message ?? error}\n`));
  process.exit(0);
}

let lines;
let pendingLine; // survives a step that gave up waiting, so that no line is lost
async function nextLine(timeoutMs) {
  lines ??= createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  pendingLine ??= lines.next();
  let timer;
  const late = new Promise((_, reject) => {
    const error = Object.assign(new Error('no line on standard input in time'), { code: 'timeout' });
    timer = setTimeout(() => reject(error), timeoutMs);
  });
  try {
    const { value, done } = await Promise.race([pendingLine, late]);
    pendingLine = undefined;
    return done ? null : value;
  } finally {
    clearTimeout(timer);
  }
}
