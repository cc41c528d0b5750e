//! Real servers of HTTP+SSE, found behind their URL.

use std::process::Command;

use serde_json::json;

use crate::harness::{Program, Weir, call, free_port, modern, peers, tool_names};
use crate::peer::Peer;
use crate::{Old, asked_call, text};

#[tokio::test(flavor = "multi_thread")]
async fn server_everything_over_sse() {
    let port = free_port();
    let _server = Program::everything("sse", port);
    let section = format!("[upstreams.up]\nurl = \"http://127.0.0.1:{port}/sse\"\n");
    let weir = Weir::start("", &section);
    weir.ready(&["up"]).await;
    assert!(tool_names(&weir.url, None).await.contains(&"up__echo".to_owned()));
    let answer = call(&weir.url, "up__echo", json!({"message": "über 1.0"})).await;
    assert_eq!(text(&answer), "Echo: über 1.0");
    let params = json!({"name": "up__trigger-long-running-operation",
        "arguments": {"duration": 1, "steps": 3}, "_meta": {"progressToken": 7}});
    let got = modern(&weir.url, None, "tools/call", params).await;
    let steps = got.messages().iter().filter(|m| m["method"] == "notifications/progress").count();
    assert_eq!(steps, 3, "{}", got.body);
    // It has a tool that asks where its client can be asked, so a conversation of one's own has it.
    let old = Old::open(&weir.url).await;
    let seen = old.call("up__echo").await;
    assert!(seen.last().unwrap()["result"]["isError"] == true, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_over_sse() {
    let port = free_port();
    let script = format!(
        r"
from mcp.server.fastmcp import FastMCP, Context
server = FastMCP('py', host='127.0.0.1', port={port})
@server.tool()
async def steps(n: int, ctx: Context) -> str:
    for i in range(n):
        await ctx.report_progress(i + 1, n)
    return f'{{n}} steps'
server.run('sse')
"
    );
    let mut command = Command::new(peers().join("py1/bin/python"));
    command.args(["-c", &script]);
    let _server = Program::start(&mut command, port);
    let section = format!("[upstreams.up]\nurl = \"http://127.0.0.1:{port}/sse\"\n");
    let weir = Weir::start("", &section);
    weir.ready(&["up"]).await;
    let params =
        json!({"name": "up__steps", "arguments": {"n": 2}, "_meta": {"progressToken": "p"}});
    let got = modern(&weir.url, None, "tools/call", params).await;
    let steps = got.messages().iter().filter(|m| m["method"] == "notifications/progress").count();
    assert_eq!((text(&got.answer()), steps), ("2 steps", 2), "{}", got.body);
    drop(weir);
}

/// The TypeScript SDK's server behind the `ws` package.
const OVER_WS: &str = r"
const { WebSocketServer } = require('DIR/node_modules/ws');
const sdk = 'DIR/node_modules/@modelcontextprotocol/sdk/dist/cjs';
const { Server } = require(`${sdk}/server/index.js`);
const types = require(`${sdk}/types.js`);
const sockets = new WebSocketServer({ host: '127.0.0.1', port: PORT, handleProtocols: () => 'mcp' });
sockets.on('connection', socket => {
  const transport = {
    start: async () => {}, close: async () => socket.close(),
    send: async message => socket.send(JSON.stringify(message)),
  };
  socket.on('message', (data, binary) => {
    if (binary) throw new Error('binary');
    transport.onmessage(JSON.parse(data.toString()));
  });
  socket.on('close', () => transport.onclose && transport.onclose());
  const server = new Server({ name: 'ws', version: '1' }, { capabilities: { tools: {} } });
  server.setRequestHandler(types.ListToolsRequestSchema, async () => ({
    tools: ['ask', 'steps'].map(name => ({ name, inputSchema: { type: 'object' } })),
  }));
  server.setRequestHandler(types.CallToolRequestSchema, async (request, extra) => {
    if (request.params.name === 'ask') {
      const answer = await server.elicitInput({ message: 'sure?',
        requestedSchema: { type: 'object', properties: { n: { type: 'number' } } } });
      return { content: [{ type: 'text', text: answer.action }] };
    }
    await extra.sendNotification({ method: 'notifications/progress',
      params: { progressToken: request.params._meta.progressToken, progress: 1 } });
    return { content: [{ type: 'text', text: 'über' }] };
  });
  server.connect(transport);
});
";

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_sdk_over_another_websocket() {
    let port = free_port();
    let dir = peers().join("servers");
    let script = OVER_WS.replace("DIR", dir.to_str().unwrap()).replace("PORT", &port.to_string());
    let _server = Program::start(Command::new("node").args(["-e", &script]), port);
    let section = format!("[upstreams.up]\nurl = \"ws://127.0.0.1:{port}/\"\n");
    let weir = Weir::start("", &section);
    weir.ready(&["up"]).await;
    let params = json!({"name": "up__steps", "arguments": {}, "_meta": {"progressToken": "p"}});
    let got = modern(&weir.url, None, "tools/call", params).await;
    assert_eq!((text(&got.answer()), got.messages().len()), ("über", 2), "{}", got.body);
    let old = Old::open(&weir.url).await;
    assert_eq!(text(old.call("up__ask").await.last().unwrap()), "accept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_behind_a_gateway_by_each_of_its_doors() {
    let up = Peer::websocket(true).await;
    let inner = crate::weir(&up, "").await;
    let socket = inner.url.replace("http://", "ws://");
    let stream = inner.url.replace("/mcp", "/sse");
    let outer = Weir::start(
        "",
        &format!("[upstreams.socket]\nurl = {socket:?}\n[upstreams.stream]\nurl = {stream:?}\n"),
    );
    outer.ready(&["socket", "stream"]).await;
    for name in ["socket", "stream"] {
        let fine = call(&outer.url, &format!("{name}__up__fine"), json!({})).await;
        assert_eq!(text(&fine), "fine", "{name}");
        let asked = asked_call(&outer.url, &format!("{name}__up__ask"), json!({})).await;
        let requests = asked["result"]["inputRequests"].as_object();
        let key = requests.unwrap_or_else(|| panic!("{name}: {asked}")).keys().next().unwrap();
        let more = json!({"requestState": asked["result"]["requestState"],
            "inputResponses": {key: {"action": "accept", "content": {}}}});
        let done = asked_call(&outer.url, &format!("{name}__up__ask"), more).await;
        assert_eq!(text(&done), "accept", "{name}");
    }
}
