//! The official Rust SDK as the peer at both ends, and why it is no more than a peer.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::borrow::Cow;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientConfig, ContentBlock, ErrorData,
    JsonRpcMessage, ListToolsResult, PaginatedRequestParams, ProtocolVersion, ServerCapabilities,
    ServerConfig, ServerJsonRpcMessage, Tool,
};
use rmcp::service::{RequestContext, RoleServer, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ClientLifecycleMode, ClientServiceExt as _, RoleClient, ServerHandler};
use serde_json::{Value, json};

use harness::{Weir, call, upstream};

/// One tool, which says what it was given.
#[derive(Clone)]
struct Mirror(&'static [ProtocolVersion]);

impl ServerHandler for Mirror {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(self.0)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = json!({"type": "object"}).as_object().unwrap().clone();
        Ok(ListToolsResult::with_all_items(vec![Tool::new("mirror", "Says it back", schema)]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let said = Value::Object(request.arguments.unwrap_or_default()).to_string();
        Ok(CallToolResult::success(vec![ContentBlock::text(said)]).into())
    }
}

/// Serve it on a free port; its address.
async fn serve(mirror: Mirror) -> String {
    let service: StreamableHttpService<Mirror, LocalSessionManager> = StreamableHttpService::new(
        move || Ok(mirror.clone()),
        std::sync::Arc::default(),
        StreamableHttpServerConfig::default(),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let _ = Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    url
}

async fn connect(url: &str, mode: ClientLifecycleMode) -> RunningService<RoleClient, ClientConfig> {
    let config = StreamableHttpClientTransportConfig::with_uri(url.to_owned());
    let transport = StreamableHttpClientTransport::from_config(config);
    ClientConfig::default().serve_with_lifecycle(transport, mode).await.unwrap()
}

fn modern() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rmcp_on_both_sides_in_both_eras() {
    let old = serve(Mirror(&[ProtocolVersion::V_2025_11_25])).await;
    let new = serve(Mirror(&[ProtocolVersion::V_2026_07_28])).await;
    let weir = Weir::start(
        "",
        &format!("[upstreams.old]\nurl = \"{old}\"\n[upstreams.new]\nurl = \"{new}\"\n"),
    );
    weir.ready(&["old", "new"]).await;
    let status = weir.status().await;
    assert_eq!(upstream(&status, "old")["revision"], "2025-11-25", "{status:#}");
    assert_eq!(upstream(&status, "new")["revision"], "2026-07-28", "{status:#}");

    for (mode, revision) in [
        (ClientLifecycleMode::Initialize, ProtocolVersion::V_2025_11_25),
        (modern(), ProtocolVersion::V_2026_07_28),
    ] {
        let client = connect(&weir.url, mode).await;
        assert_eq!(client.peer_info().unwrap().protocol_version, revision);
        let tools = client.list_all_tools().await.unwrap();
        for upstream in ["old", "new"] {
            let name = format!("{upstream}__mirror");
            assert!(tools.iter().any(|t| t.name == name), "{name} for {revision}: {tools:?}");
            let arguments = json!({"of": upstream}).as_object().unwrap().clone();
            let params = CallToolRequestParams::new(name).with_arguments(arguments);
            let result = client.call_tool(params).await.unwrap();
            let result = serde_json::to_value(result).unwrap();
            assert_eq!(result["content"][0]["text"], format!("{{\"of\":\"{upstream}\"}}"));
        }
        let unknown = client.call_tool(CallToolRequestParams::new("old__none")).await;
        let Err(ServiceError::McpError(error)) = unknown else { panic!("{unknown:?}") };
        assert_eq!(error.code.0, -32602, "{error:?}");
        client.cancel().await.unwrap();
    }

    // And without a typed client between: what was said comes back.
    let answer = call(&weir.url, "new__mirror", json!({"a": "ü"})).await;
    assert_eq!(answer["result"]["content"][0]["text"], "{\"a\":\"ü\"}");
}

/// What a message loses in the SDK's types; src/lib.rs says what follows from it.
#[test]
fn rmcp_spike() {
    let through = |text: &str| {
        let message: ServerJsonRpcMessage = serde_json::from_str(text).unwrap();
        serde_json::to_string(&message).unwrap()
    };

    // Fields that it does not know.
    let list = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"t","inputSchema":{"type":"object"},"x-vendor":"kept?"}]}}"#;
    assert!(!through(list).contains("x-vendor"), "unknown fields of a tool are carried now");
    let result = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"x-vendor":"kept?"}}"#;
    assert!(!through(result).contains("x-vendor"), "unknown fields of a result are carried now");

    // The text of numbers: amounts and identifiers that no double holds.
    let number = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"structuredContent":{"amount":12345678901234567890.10}}}"#;
    assert!(!through(number).contains("12345678901234567890.10"), "number text is carried now");

    // Ids as a peer may write them.
    let id = r#"{"jsonrpc":"2.0","id":1.0,"result":{"content":[]}}"#;
    let kept = serde_json::from_str::<JsonRpcMessage>(id)
        .is_ok_and(|m| serde_json::to_string(&m).unwrap().contains("\"id\":1.0"));
    assert!(!kept, "the text of ids is carried now");
}
